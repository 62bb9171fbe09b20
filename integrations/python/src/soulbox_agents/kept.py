"""The one sandbox of a conversation: made when the first code wants to run, found again by its key, paused when idle."""

import asyncio
import logging
import os
import time
from collections.abc import Mapping
from typing import Any, cast

import httpx
from e2b_code_interpreter import AsyncSandbox, SandboxException, SandboxQuery, SandboxState

logger = logging.getLogger("soulbox_agents")

# In the metadata of a sandbox that is kept, the key of its conversation.
METADATA = "soulboxConversation"


def default_template() -> str | None:
    """As `E2B_API_URL` says which server, `SOULBOX_TEMPLATE` says which template; without it the official package's own."""
    return os.environ.get("SOULBOX_TEMPLATE") or None


class KeptSandbox:
    """`key` names a conversation that goes on later: its sandbox is paused at the end, and when it has been idle for `idle` seconds,
    even if this process is gone by then. Without one it is killed."""

    def __init__(self, key: str | None, template: str | None, idle: int, options: Mapping[str, Any]) -> None:
        self.key = key
        self._template = template or default_template()
        self._idle = idle
        self._options = dict(options)
        self._opening: asyncio.Task[AsyncSandbox] | None = None
        self._told = 0.0

    @property
    def server(self) -> dict[str, Any]:
        """Options that say which server."""
        return _api(self._options)

    @property
    def id(self) -> str | None:
        opening = self._opening
        return opening.result().sandbox_id if opening and opening.done() and not opening.cancelled() and not opening.exception() else None

    async def get(self) -> AsyncSandbox:
        """Running, and for at least `idle` seconds or a little less."""
        if self._opening is None:
            self._told = time.monotonic()
            self._opening = asyncio.create_task(self._open())
        try:
            # Shielded: a create that nobody waits for any more still makes a sandbox, which `close` then ends.
            sandbox = await asyncio.shield(self._opening)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._opening = None
            raise
        if time.monotonic() - self._told > self._idle / 4:
            await sandbox.set_timeout(self._idle)
            self._told = time.monotonic()
        return sandbox

    async def _open(self) -> AsyncSandbox:
        options = dict(self._options)
        if self.key is None:
            return await AsyncSandbox.create(self._template, timeout=self._idle, **options)
        query = SandboxQuery(metadata={METADATA: self.key}, state=[SandboxState.RUNNING, SandboxState.PAUSED])
        for found in await AsyncSandbox.list(query=query, limit=1, **self.server).next_items():
            try:
                # The package types a connection as its base class; it is one of the class that is asked.
                return cast(AsyncSandbox, await AsyncSandbox.connect(found.sandbox_id, timeout=self._idle, **self.server))
            except SandboxException as error:
                # It may have ended since it was listed. Work that is lost is not lost silently.
                logger.warning("sandbox %s of this conversation cannot be used any more: %s", found.sandbox_id, error)
        options["metadata"] = {**options.get("metadata", {}), METADATA: self.key}
        options.setdefault("lifecycle", {"on_timeout": "pause"})
        return await AsyncSandbox.create(self._template, timeout=self._idle, **options)

    def forget(self) -> None:
        """It is gone; the next `get` makes another."""
        self._opening = None

    async def close(self, kill: bool = False) -> None:
        """Pauses or kills it. One that cannot be paused is left to its own end."""
        opening, self._opening = self._opening, None
        if opening is None:
            return
        try:
            sandbox = await opening
        except (SandboxException, httpx.HTTPError, OSError, asyncio.CancelledError):
            # There is none. Whoever waited for it was told why.
            return
        if self.key is None or kill:
            await sandbox.kill()
            return
        try:
            await sandbox.pause()
        except SandboxException as error:
            logger.warning("sandbox %s was not paused and ends when it has been idle: %s", sandbox.sandbox_id, error)


def _api(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that say which server, and not which sandbox."""
    names = ("api_key", "domain", "api_url", "sandbox_url", "debug", "request_timeout", "headers", "proxy")
    return {name: options[name] for name in names if name in options}
