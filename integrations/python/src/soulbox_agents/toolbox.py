"""Carries out tool calls in a sandbox. Whatever the model asked for, there is a result to give back to it."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from e2b_code_interpreter import (
    AsyncSandbox,
    AuthenticationException,
    InvalidArgumentException,
    Sandbox,
    SandboxException,
    TimeoutException,
)
from e2b_code_interpreter.exceptions import format_execution_timeout_error

from . import fenced, shapes
from .budget import Prose, fit
from .events import CallFinished, CallStarted, Event, Output, Shown
from .messages import ToolCall, ToolResult
from .tools import TOOLS, Content, Listener, Refused, Settings, Steps, Tool

# What the official package raises when a call of its methods fails, besides its own errors those of its transport.
_FAILURES = (SandboxException, AuthenticationException, httpx.HTTPError, httpx.StreamError, OSError)
_TIMED_OUT = str(format_execution_timeout_error())


def _ignore(event: Event) -> None:
    pass


class CallbackFailed(Exception):
    """A callback raised, not the provider or the sandbox in whose stream it was called."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Heard:
    """Keeps what a callback raised inside the official package, which may take it for an error of its own."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def fail(self, error: Exception) -> CallbackFailed:
        self.error = self.error or error
        return CallbackFailed(error)


@dataclass(frozen=True)
class _Call:
    """One call: the decision before it and the words after it are the same for both kinds of sandbox."""

    call: ToolCall
    settings: Settings

    def begin(self, sandbox: Any, tools: Sequence[Tool], listener: Listener) -> Steps | ToolResult:
        call = self.call
        if call.problem:
            return self.failed(call.problem)
        tool = next((tool for tool in tools if tool.name == call.name), None)
        if tool is None:
            return self.failed(f"there is no tool {call.name!r}, only {', '.join(tool.name for tool in tools)}")
        if problem := tool.problem(call.arguments):
            return self.failed(problem)
        return tool.perform(sandbox, call.arguments, self.settings, listener)

    def done(self, content: Content) -> ToolResult:
        text = fit(content.parts, self.settings.tokens)
        return ToolResult(self.call, text, content.failed, content.pictures, exit_code=content.exit_code)

    def failed(self, cause: str, lost: bool = False) -> ToolResult:
        return ToolResult(self.call, Prose(cause).cut(self.settings.tokens), failed=True, lost=lost)

    def error(self, error: Exception, running: bool | None) -> ToolResult:
        """`running` says whether the sandbox still is; None, when it does not say."""
        if isinstance(error, Refused):
            return self.failed(str(error))
        if running is None:
            return self.failed(f"the sandbox cannot be reached: {_line(error)}", lost=True)
        if not running:
            return self.failed(f"the sandbox is gone: {_line(error)}", lost=True)
        if isinstance(error, TimeoutException) and (self.call.name == "run_command" or str(error) == _TIMED_OUT):
            kept = "; variables are kept" if self.call.name == "run_code" else ""
            return self.failed(f"stopped after {self.settings.timeout:g} s{kept}")
        return self.failed(_line(error))


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _said_by_sandbox(error: Exception) -> bool:
    """Whether only a running sandbox can have given this error."""
    return isinstance(error, (Refused, InvalidArgumentException))


class _Offering:
    """Definitions of tools for a provider."""

    tools: Sequence[Tool]

    def anthropic(self) -> list[dict[str, Any]]:
        return shapes.anthropic_tools(self.tools)

    def openai(self) -> list[dict[str, Any]]:
        return shapes.openai_tools(self.tools)


class Toolbox(_Offering):
    """Tool calls of a model, in a sandbox that is yours.

    Definitions for a provider are `anthropic()` and `openai()` (the shape of Groq, Together, Fireworks, Mistral and WatsonX too); `execute`
    takes a call in either shape and answers in the same.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        settings: Settings | None = None,
        tools: Sequence[Tool] = TOOLS,
        on_event: Callable[[Event], None] = _ignore,
    ) -> None:
        self.sandbox = sandbox
        self.settings = settings or Settings()
        self.tools = tools
        self.on_event = on_event

    def execute(self, call: Any) -> Any:
        """The result of a call, in the shape of its provider. What the code did wrong is in the result, never raised."""
        read, write = shapes.of(call)
        return write(self.run(read(call)))

    def execute_fenced(self, answer: str, languages: Sequence[str] = fenced.LANGUAGES) -> str | None:
        """Runs the fenced blocks of an answer; what to tell the model, or None where there are none."""
        calls = fenced.calls(answer, languages)
        return fenced.told([self.run(call) for call in calls]) if calls else None

    def run(self, call: ToolCall) -> ToolResult:
        heard = _Heard()

        def tell(event: Event) -> None:
            try:
                self.on_event(event)
            except Exception as error:
                raise heard.fail(error) from error

        listener = Listener(
            lambda text: tell(Output(call, "stdout", text)),
            lambda text: tell(Output(call, "stderr", text)),
            lambda picture: tell(Shown(call, picture)),
        )
        self.on_event(CallStarted(call))
        result = self._run(_Call(call, self.settings), listener, heard)
        self.on_event(CallFinished(result))
        return result

    def _run(self, one: _Call, listener: Listener, heard: _Heard) -> ToolResult:
        try:
            steps = one.begin(self.sandbox, self.tools, listener)
            return steps if isinstance(steps, ToolResult) else one.done(drive(steps))
        except (Refused, CallbackFailed, *_FAILURES) as error:
            if heard.error is not None:
                raise heard.error from None
            return one.error(error, _said_by_sandbox(error) or self._running())

    def _running(self) -> bool | None:
        try:
            return self.sandbox.is_running(request_timeout=5)
        except _FAILURES:
            return None


class AsyncToolbox(_Offering):
    """As [Toolbox][], with an `AsyncSandbox`. Calls may run at once; those of the interpreter take turns in the order of their start."""

    def __init__(
        self,
        sandbox: AsyncSandbox,
        *,
        settings: Settings | None = None,
        tools: Sequence[Tool] = TOOLS,
        on_event: Callable[[Event], Any] = _ignore,
    ) -> None:
        self.sandbox = sandbox
        self.settings = settings or Settings()
        self.tools = tools
        self.on_event = on_event
        # They share variables, so their order matters, and one that waits inside would use up its own time.
        self._interpreter = asyncio.Lock()

    async def execute(self, call: Any) -> Any:
        """As `Toolbox.execute`."""
        read, write = shapes.of(call)
        return write(await self.run(read(call)))

    async def execute_fenced(self, answer: str, languages: Sequence[str] = fenced.LANGUAGES) -> str | None:
        """As `Toolbox.execute_fenced`."""
        calls = fenced.calls(answer, languages)
        return fenced.told([await self.run(call) for call in calls]) if calls else None

    async def run(self, call: ToolCall) -> ToolResult:
        heard = _Heard()

        async def tell(event: Event) -> None:
            try:
                await self._tell(event)
            except Exception as error:
                raise heard.fail(error) from error

        listener = Listener(
            lambda text: tell(Output(call, "stdout", text)),
            lambda text: tell(Output(call, "stderr", text)),
            lambda picture: tell(Shown(call, picture)),
        )
        await self._tell(CallStarted(call))
        one = _Call(call, self.settings)
        if call.name == "run_code":
            async with self._interpreter:
                result = await self._run(one, listener, heard)
        else:
            result = await self._run(one, listener, heard)
        await self._tell(CallFinished(result))
        return result

    async def _tell(self, event: Event) -> None:
        told = self.on_event(event)
        if inspect.isawaitable(told):
            await told

    async def _run(self, one: _Call, listener: Listener, heard: _Heard) -> ToolResult:
        try:
            steps = one.begin(self.sandbox, self.tools, listener)
            return steps if isinstance(steps, ToolResult) else one.done(await drive_async(steps))
        except (Refused, CallbackFailed, *_FAILURES) as error:
            if heard.error is not None:
                raise heard.error from None
            return one.error(error, _said_by_sandbox(error) or await self._running())

    async def _running(self) -> bool | None:
        try:
            return await self.sandbox.is_running(request_timeout=5)
        except _FAILURES:
            return None


def drive(steps: Steps) -> Content:
    """Performs a tool whose steps have happened when they are yielded."""
    try:
        step = next(steps)
        while True:
            step = steps.send(step)
    except StopIteration as end:
        return end.value


async def drive_async(steps: Steps) -> Content:
    """Performs a tool whose steps are still to be awaited."""
    try:
        step = next(steps)
        while True:
            try:
                value = await step if inspect.isawaitable(step) else step
            except BaseException as error:  # A cancelled tool cleans up as well.
                step = steps.throw(error)
            else:
                step = steps.send(value)
    except StopIteration as end:
        return end.value
