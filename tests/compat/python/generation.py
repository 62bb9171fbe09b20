"""The generation of the official package that these tests run with. Both are asked the same; what the older one has no
word for is skipped with that as the reason, and what it says otherwise is asserted as it says it."""

from importlib.metadata import version

import pytest

NAME = f"e2b {version('e2b')}"
OLD = tuple(int(part) for part in version("e2b").split(".")[:3]) <= (2, 45, 1)


def newer(missing: str) -> pytest.MarkDecorator:
    """For a test of what only the newer package can ask for: `newer("stream_input")`."""
    return pytest.mark.skipif(OLD, reason=f"{NAME} has no {missing}")
