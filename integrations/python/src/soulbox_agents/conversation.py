"""The loop: the model is asked, its code is run, it is told what that did, until it is done or a limit is met.

`AsyncConversation` is the loop itself. `Conversation` runs it in the one background thread that all of them share, and calls back in
the thread of its caller.
"""

import asyncio
import atexit
import concurrent.futures
import inspect
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self, TypeVar, cast

import httpx
from e2b_code_interpreter import AsyncSandbox, AuthenticationException, Sandbox, SandboxException

from .budget import tokens
from .events import CallFinished, CallStarted, Event, Retrying, Shown, Text
from .kept import KeptSandbox
from .messages import Assistant, Message, Picture, Results, ToolCall, ToolResult, Usage, User
from .model import Model, Reply
from .outcome import Ending, Limits, Outcome, Prices
from .retry import MISTAKES, Failure, Retry, failure
from .toolbox import AsyncToolbox, CallbackFailed
from .tools import TOOLS, Settings, Tool

SYSTEM = "You can run code in a sandbox. Do what you are asked by running code, look at what it did, and then answer in words."

Approval = bool | str
"""True runs the call. False or a reason does not, and the model is told."""
T = TypeVar("T")


class _Ended(Exception):
    def __init__(self, ending: Ending, cause: str, status: int | None = None) -> None:
        super().__init__(cause)
        self.ending = ending
        self.cause = cause
        self.status = status


class _Run:
    """What one run has come to so far."""

    def __init__(self, prices: Prices | None) -> None:
        self.prices = prices
        self.text = ""
        self.turns = 0
        self.results: list[ToolResult] = []
        self.pictures: list[Picture] = []
        self.usage = Usage()

    @property
    def cost(self) -> float | None:
        return self.prices.of(self.usage) if self.prices else None

    def outcome(self, ending: Ending, cause: str, status: int | None = None) -> Outcome:
        return Outcome(
            ending, cause, self.text, self.turns, tuple(self.results), tuple(self.pictures), self.usage, self.cost, status
        )  # fmt: skip


class AsyncConversation:
    """A conversation with a model that has a sandbox.

    `key` names one that goes on later, also in another process: its sandbox is found again and paused in between. Without a key the sandbox
    is killed at `close`, which `async with` does. `sandbox` are options of `AsyncSandbox.create`. `messages` is the history, yours to keep.
    One run at a time.
    """

    def __init__(
        self,
        model: Model,
        *,
        key: str | None = None,
        template: str | None = None,
        system: str = SYSTEM,
        limits: Limits | None = None,
        prices: Prices | None = None,
        settings: Settings | None = None,
        retry: Retry | None = None,
        tools: Sequence[Tool] = TOOLS,
        approve: Callable[[ToolCall], Any] | None = None,
        idle: int = 300,
        sandbox: Mapping[str, Any] | None = None,
        messages: Sequence[Message] = (),
    ) -> None:
        self.model = model
        self.system = system
        self.limits = limits or Limits()
        if self.limits.cost is not None and prices is None:
            raise ValueError("a limit of cost needs prices")
        self.prices = prices
        self.settings = settings or Settings()
        self.retry = retry or Retry()
        self.tools = tools
        self.approve = approve
        self.messages = list(messages)
        # Code that may run for longer than the sandbox would is not cut off by it.
        self._kept = KeptSandbox(key, template, max(idle, int(self.settings.timeout) + 30), sandbox or {})
        self._toolbox: AsyncToolbox | None = None
        self._running: asyncio.Task[Outcome] | None = None
        self._telling = asyncio.Lock()
        self._asking = asyncio.Lock()

    @property
    def sandbox_id(self) -> str | None:
        return self._kept.id

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, *, kill: bool = False) -> None:
        """Gives the sandbox back: pauses it where there is a key, else kills it. `kill` does so in any case."""
        self.cancel()
        if self._running is not None:
            await asyncio.wait([self._running])
        await self._kept.close(kill)
        self._toolbox = None

    def cancel(self) -> None:
        """Ends what runs. Its outcome says `cancelled`, and the conversation can go on."""
        if self._running is not None:
            self._running.cancel()

    @property
    def server(self) -> Mapping[str, Any]:
        """Those options of the sandbox that say on which server it is."""
        return self._kept.server

    async def sandbox(self) -> AsyncSandbox:
        """For files that code should find, or has left. Made if there is none yet."""
        return await self._kept.get()

    async def run(self, prompt: str, on_event: Callable[[Event], Any] | None = None) -> Outcome:
        """One question to its answer. Ends with a typed outcome whatever the provider, the sandbox or the code do; raises what is wrong
        with the program itself, and what its callbacks raise."""
        if self._running is not None:
            raise RuntimeError("this conversation is running already")
        # A task of its own, so that `cancel` ends the run and not the caller.
        self._running = asyncio.create_task(self._run(prompt, on_event or (lambda event: None)))
        try:
            return await asyncio.shield(self._running)
        except asyncio.CancelledError:
            self._running.cancel()
            await asyncio.wait([self._running])
            raise
        finally:
            self._running = None

    async def _run(self, prompt: str, on_event: Callable[[Event], Any]) -> Outcome:
        run = _Run(self.prices)
        self.messages.append(User(prompt))

        async def tell(event: Event) -> None:
            if isinstance(event, Shown):
                run.pictures.append(event.picture)
            async with self._telling:
                told = on_event(event)
                if inspect.isawaitable(told):
                    await told

        outcome = await self._limited(run, tell)
        if not isinstance(self.messages[-1], Assistant):
            # Providers refuse a history in which somebody was not answered, and the conversation may go on.
            self.messages.append(Assistant(f"[stopped: {outcome.cause}]"))
        return outcome

    async def _limited(self, run: _Run, tell: Callable[[Event], Any]) -> Outcome:
        clock = asyncio.timeout(self.limits.seconds)
        try:
            try:
                async with clock:
                    return await self._loop(run, tell)
            except TimeoutError:
                if not clock.expired():
                    raise
                return run.outcome(Ending.TIME_LIMIT, f"the time limit of {self.limits.seconds:g} s was reached")
        except _Ended as ended:
            return run.outcome(ended.ending, ended.cause, ended.status)
        except asyncio.CancelledError:
            return run.outcome(Ending.CANCELLED, "cancelled by the caller")

    async def _loop(self, run: _Run, tell: Callable[[Event], Any]) -> Outcome:
        while True:
            if self.limits.turns is not None and run.turns >= self.limits.turns:
                raise _Ended(Ending.TURN_LIMIT, f"the limit of {self.limits.turns} turns was reached")
            if self.limits.cost is not None and (run.cost or 0) >= self.limits.cost:
                raise _Ended(Ending.COST_LIMIT, f"the cost of {run.cost:g} reached the limit of {self.limits.cost:g}")
            reply = await self._ask(tell)
            run.turns += 1
            run.text = reply.text
            run.usage += reply.usage or self._estimate(reply)
            self.messages.append(Assistant(reply.text, reply.calls, reply.raw))
            if not reply.calls:
                cause = "the model answered" if run.results else "the model answered without running code"
                return run.outcome(Ending.FINISHED, "the answer was cut at the model's limit of tokens" if reply.cut_short else cause)
            if reply.cut_short:
                # What was cut looks malformed; the model does better when it hears why.
                cut = "your answer was cut at its limit of tokens"
                reply = replace(reply, calls=tuple(replace(one, problem=cut) if one.problem else one for one in reply.calls))
            results = await self._perform(reply.calls, run, tell)
            if lost := next((result for result in results if result.lost), None):
                self._kept.forget()
                self._toolbox = None
                raise _Ended(Ending.SANDBOX_LOST, lost.text)

    def _estimate(self, reply: Reply) -> Usage:
        said = sum(tokens(str(message)) for message in self.messages)
        return Usage(said + tokens(self.system), tokens(reply.text), estimated=True)

    async def _ask(self, tell: Callable[[Event], Any]) -> Reply:
        attempt = 1
        while True:
            said: list[str] = []
            try:
                return await self._turn(said, tell)
            except MISTAKES:
                raise
            except CallbackFailed as failed:
                raise failed.error from None
            except Exception as error:
                failed = failure(error, self.model.secrets)
            wait = self.retry.wait(attempt, failed)
            if wait is None:
                raise _Ended(Ending.PROVIDER_FAILED, self._why(failed, attempt), failed.status)
            attempt += 1
            await tell(Retrying(failed.cause, wait, "".join(said)))
            await asyncio.sleep(wait)

    def _why(self, failed: Failure, attempt: int) -> str:
        if failed.retry_after is not None and failed.retry_after > self.retry.longest:
            return f"{failed.cause} (and wants {failed.retry_after:g} s of patience, more than {self.retry.longest:g})"
        return f"{failed.cause} ({attempt} attempts)" if attempt > 1 else failed.cause

    async def _turn(self, said: list[str], tell: Callable[[Event], Any]) -> Reply:
        assembler = self.model.assembler()
        async for chunk in _chunks(lambda: self.model.open(self.system, self.messages, self.tools)):
            if text := assembler.feed(chunk):
                said.append(text)
                try:
                    await tell(Text(text))
                except Exception as error:
                    raise CallbackFailed(error) from error
        return assembler.finish()

    async def _perform(self, calls: Sequence[ToolCall], run: _Run, tell: Callable[[Event], Any]) -> list[ToolResult]:
        """All calls of a turn at once. Each gets a result in the history, also when the run ends in the middle: providers want that."""
        results = [ToolResult(call, "not run, or not to its end", failed=True) for call in calls]

        async def one(index: int, call: ToolCall) -> None:
            results[index] = await self._call(call, tell)
            run.results.append(results[index])

        try:
            async with asyncio.TaskGroup() as group:
                for index, call in enumerate(calls):
                    group.create_task(one(index, call))
        except ExceptionGroup as failed:
            # The first says what went wrong; the others were ended for it.
            raise failed.exceptions[0] from None
        finally:
            self.messages.append(Results(tuple(results)))
        return results

    async def _call(self, call: ToolCall, tell: Callable[[Event], Any]) -> ToolResult:
        refused = await self._refused(call)
        result = None
        if refused is None:
            try:
                sandbox = await self._kept.get()
            except (SandboxException, AuthenticationException, httpx.HTTPError, OSError) as error:
                lines = str(error).strip().splitlines() or [type(error).__name__]
                refused = f"there is no sandbox: {lines[0]}"
                result = ToolResult(call, refused, failed=True, lost=True)
            else:
                if self._toolbox is None or self._toolbox.sandbox is not sandbox:
                    self._toolbox = AsyncToolbox(sandbox, settings=self.settings, tools=self.tools)
                self._toolbox.on_event = tell
                return await self._toolbox.run(call)
        result = result or ToolResult(call, refused or "", failed=True)
        await tell(CallStarted(call))
        await tell(CallFinished(result))
        return result

    async def _refused(self, call: ToolCall) -> str | None:
        if self.approve is None:
            return None
        # One question at a time. A plain function may wait for a person, so it has a thread.
        async with self._asking:
            if inspect.iscoroutinefunction(self.approve):
                answer: Any = await self.approve(call)
            else:
                answer = await asyncio.to_thread(self.approve, call)
        if answer is True:
            return None
        return f"refused: {answer}" if isinstance(answer, str) and answer else "refused by the user"


async def _chunks(opening: Callable[[], Any]) -> AsyncIterator[Any]:
    """The chunks of a stream, whatever kind it is. A client that blocks does so in a thread of its own."""
    loop = asyncio.get_running_loop()
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    given_up = threading.Event()

    def put(item: Any) -> None:
        if not given_up.is_set():
            loop.call_soon_threadsafe(arrived.put_nowait, item)

    def pump() -> None:
        try:
            stream = opening()
            if inspect.isawaitable(stream) or hasattr(stream, "__aiter__"):
                put(("later", stream))
                return
            for chunk in stream:
                put(("chunk", chunk))
                if given_up.is_set():
                    _close(stream)
                    return
            put(("end", None))
        except Exception as error:
            put(("error", error))

    # A blocked read cannot be interrupted: given up, the thread ends with the client's own time limit.
    threading.Thread(target=pump, name="soulbox-agents-model", daemon=True).start()
    try:
        while True:
            kind, item = await arrived.get()
            match kind:
                case "chunk":
                    yield item
                case "later":
                    async for chunk in _later(item):
                        yield chunk
                    return
                case "error":
                    raise item
                case _:
                    return
    finally:
        given_up.set()


async def _later(opened: Any) -> AsyncIterator[Any]:
    stream = await opened if inspect.isawaitable(opened) else opened
    try:
        async for chunk in stream:
            yield chunk
    finally:
        closing = _close(stream)
        if inspect.isawaitable(closing):
            await closing


def _close(stream: Any) -> Any:
    """Frees the connection; what it is called differs."""
    for name in ("aclose", "close"):
        if close := getattr(stream, name, None):
            return close()
    return None


class _Background:
    """One event loop in one thread, for all conversations of programs that have none: connections belong to a loop, so a client that is
    used by two conversations needs them on the same."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(target=self._loop.run_forever, name="soulbox-agents", daemon=True)
                thread.start()
                atexit.register(self._end, self._loop, thread)
            return self._loop

    @staticmethod
    def _end(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(1)
        # The sandbox package's transport has threads of its own that outlive an answer for a moment. One that still needs the
        # interpreter while that ends aborts the process, after everything is done.
        time.sleep(0.05)

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop()).result()


_background = _Background()


class Conversation:
    """[AsyncConversation][], for programs without an event loop. `on_event` and `approve` are called in the thread that called `run`;
    Ctrl-C there ends the run."""

    def __init__(self, model: Model, *, approve: Callable[[ToolCall], Approval] | None = None, **options: Any) -> None:
        async def make() -> AsyncConversation:
            return AsyncConversation(model, **options)

        self._approve = approve
        self._conversation = _background.call(make())

    @property
    def messages(self) -> list[Message]:
        return self._conversation.messages

    @property
    def sandbox_id(self) -> str | None:
        return self._conversation.sandbox_id

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, kill: bool = False) -> None:
        """As `AsyncConversation.close`."""
        _background.call(self._conversation.close(kill=kill))

    def cancel(self) -> None:
        """Ends what runs, from another thread or from a callback."""
        _background.loop().call_soon_threadsafe(self._conversation.cancel)

    def sandbox(self) -> Sandbox:
        """As `AsyncConversation.sandbox`."""
        made = _background.call(self._conversation.sandbox())
        # The package types a connection as its base class; it is one of the class that is asked.
        return cast(Sandbox, Sandbox.connect(made.sandbox_id, **self._conversation.server))

    def run(self, prompt: str, on_event: Callable[[Event], None] | None = None) -> Outcome:
        """As `AsyncConversation.run`."""
        inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

        async def start() -> Outcome:
            if self._approve is not None:
                self._conversation.approve = _here(inbox, self._approve)
            return await self._conversation.run(prompt, _here(inbox, on_event) if on_event else None)

        running: Future[Outcome] = asyncio.run_coroutine_threadsafe(start(), _background.loop())
        running.add_done_callback(lambda _: inbox.put(None))
        try:
            while (work := inbox.get()) is not None:
                work()
        except BaseException:
            # Ctrl-C: the run is over when this returns, with or without `with`.
            self.cancel()
            concurrent.futures.wait([running], 10)
            raise
        return running.result()


def _here(inbox: "queue.SimpleQueue[Callable[[], None] | None]", function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The function as a coroutine function that is performed by whoever reads the inbox."""

    async def ask(argument: Any) -> Any:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()

        def settle(value: Any, error: Exception | None) -> None:
            # Nobody waits any more after a cancellation.
            if not answer.done():
                if error is None:
                    answer.set_result(value)
                else:
                    answer.set_exception(error)

        def work() -> None:
            try:
                value, error = function(argument), None
            except Exception as raised:
                value, error = None, raised
            loop.call_soon_threadsafe(settle, value, error)

        inbox.put(work)
        return await answer

    return ask
