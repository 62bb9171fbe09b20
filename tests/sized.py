"""Sandboxes of other sizes than their template's, which no SDK asks for."""

import json
import os
import urllib.request

from e2b import Sandbox


def create(template: str = "base", timeout: int = 600, **limits: int) -> Sandbox:
    """With `memoryMB`, `cpuCount` or `diskSizeMB`."""
    body = {"templateID": template, "timeout": timeout, **limits}
    request = urllib.request.Request(
        f"{os.environ['E2B_API_URL']}/v2/sandboxes",
        method="POST",
        data=json.dumps(body).encode(),
        headers={"X-API-Key": os.environ["E2B_API_KEY"], "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return Sandbox.connect(json.load(answer)["sandboxID"], timeout=timeout)
