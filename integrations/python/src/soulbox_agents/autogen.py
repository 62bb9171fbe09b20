"""A code executor for AutoGen's agents."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Self

from autogen_core import CancellationToken, Component
from autogen_core.code_executor import CodeBlock, CodeExecutor, CodeResult
from e2b_code_interpreter import AsyncSandbox
from pydantic import BaseModel

from .events import Event, Shown
from .fenced import NAMES
from .kept import default_template
from .messages import Picture, ToolCall
from .toolbox import AsyncToolbox
from .tools import Settings


class SoulBoxCodeExecutorConfig(BaseModel):
    """Where the server is and its key come from the environment, so neither is ever part of a saved agent."""

    template: str | None = None
    timeout: float = 60
    idle: int = 300


@dataclass
class SoulBoxCodeResult(CodeResult):
    pictures: list[Picture] = field(default_factory=list[Picture])


class SoulBoxCodeExecutor(CodeExecutor, Component[SoulBoxCodeExecutorConfig]):
    """Runs code blocks in a sandbox of its own, which `start` makes and `stop` kills; variables are kept in between.

    `timeout` is of one block, `idle` is how long the sandbox stays without one, both in seconds.
    """

    component_config_schema = SoulBoxCodeExecutorConfig
    component_provider_override = "soulbox_agents.autogen.SoulBoxCodeExecutor"

    def __init__(self, template: str | None = None, timeout: float = 60, idle: int = 300) -> None:
        self._template = template
        self._settings = Settings(timeout=timeout)
        self._idle = max(idle, int(timeout) + 30)
        self._sandbox: AsyncSandbox | None = None

    @property
    def sandbox(self) -> AsyncSandbox:
        if self._sandbox is None:
            raise RuntimeError("the executor is not started: use `async with`, or await start()")
        return self._sandbox

    async def start(self) -> None:
        if self._sandbox is None:
            self._sandbox = await AsyncSandbox.create(self._template or default_template(), timeout=self._idle)

    async def stop(self) -> None:
        sandbox, self._sandbox = self._sandbox, None
        if sandbox is not None:
            await sandbox.kill()

    async def restart(self) -> None:
        """Forgets all variables; files stay."""
        for context in await self.sandbox.list_code_contexts():
            await self.sandbox.restart_code_context(context)

    async def execute_code_blocks(self, code_blocks: list[CodeBlock], cancellation_token: CancellationToken) -> SoulBoxCodeResult:
        """One after the other, up to the first that fails."""
        work = asyncio.ensure_future(self._execute(code_blocks))
        cancellation_token.link_future(work)
        return await work

    async def _execute(self, code_blocks: list[CodeBlock]) -> SoulBoxCodeResult:
        await self.sandbox.set_timeout(self._idle)
        pictures: list[Picture] = []

        def heard(event: Event) -> None:
            if isinstance(event, Shown):
                pictures.append(event.picture)

        box = AsyncToolbox(self.sandbox, settings=self._settings, on_event=heard)
        said: list[str] = []
        for block in code_blocks:
            call = _call(block)
            if call is None:
                known = ", ".join(sorted(NAMES))
                return SoulBoxCodeResult(1, "\n".join([*said, f"no code in {block.language!r} can be run, only {known}"]), pictures)
            result = await box.run(call)
            if result.lost:
                raise RuntimeError(result.text)
            said.append(result.text)
            if result.failed:
                return SoulBoxCodeResult(result.exit_code or 1, "\n".join(said), pictures)
        return SoulBoxCodeResult(0, "\n".join(said), pictures)

    def _to_config(self) -> SoulBoxCodeExecutorConfig:
        return SoulBoxCodeExecutorConfig(template=self._template, timeout=self._settings.timeout, idle=self._idle)

    @classmethod
    def _from_config(cls, config: SoulBoxCodeExecutorConfig) -> Self:
        return cls(config.template, config.timeout, config.idle)


def _call(block: CodeBlock) -> ToolCall | None:
    # A block without a language is Python, as with AutoGen's other executors.
    language = NAMES.get((block.language or "python").lower())
    arguments: dict[str, Any]
    if language == "bash":
        arguments = {"command": block.code}
        return ToolCall("", "run_command", arguments)
    return ToolCall("", "run_code", {"code": block.code, "language": language}) if language else None
