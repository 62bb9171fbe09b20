"""The loop: its limits, what ends it, and that nothing is left of it."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid

import anthropic
import groq
import pytest
from conftest import ROOT, live, please
from e2b_code_interpreter import AsyncSandbox, Sandbox, SandboxQuery, SandboxState
from providers import ANTHROPIC, CODESTRAL, GROQ, MISTRAL
from soulbox_agents import (
    AnthropicModel,
    Assistant,
    AsyncConversation,
    CallFinished,
    CallStarted,
    ChatModel,
    Conversation,
    Ending,
    Limits,
    Output,
    Prices,
    Reply,
    Results,
    Retry,
    Retrying,
    Settings,
    StreamCut,
    Text,
)

pytestmark = pytest.mark.usefixtures("nothing_left")
QUICK = Retry(attempts=3, first=0.02)


def kept(key: str) -> list:
    return Sandbox.list(
        query=SandboxQuery(metadata={"soulboxConversation": key}, state=[SandboxState.RUNNING, SandboxState.PAUSED])
    ).next_items()


# Limits


@pytest.mark.parametrize("provider", [GROQ, MISTRAL, ANTHROPIC], ids=lambda one: one.name)
def test_a_limit_of_turns(fake, provider):
    with Conversation(provider.model(fake, "fake-endless"), limits=Limits(turns=3)) as conversation:
        outcome = conversation.run("Go on for ever.")
        assert (outcome.ending, outcome.cause) == (Ending.TURN_LIMIT, "the limit of 3 turns was reached")
        assert outcome.turns == 3 == outcome.calls == len(fake.requests())
        assert isinstance(conversation.messages[-2], Results), "the last code was run"
        assert conversation.messages[-1] == Assistant("[stopped: the limit of 3 turns was reached]")
        assert conversation.run("On.").turns == 3, "and the conversation can go on"
    assert all(one["violation"] is None for one in fake.requests())


def test_a_limit_of_time_ends_code_that_runs(fake):
    began = time.monotonic()
    with Conversation(GROQ.model(fake, "fake-tool"), limits=Limits(seconds=5)) as conversation:
        outcome = conversation.run(please("kept = 7\nwhile True: pass"))
        assert (outcome.ending, outcome.cause) == (Ending.TIME_LIMIT, "the time limit of 5 s was reached")
        assert 4.9 < time.monotonic() - began < 30
        assert Sandbox.connect(conversation.sandbox_id).run_code("kept").text == "7", "interrupted, and its variables are kept"
        result = conversation.messages[-2].results[0]
        assert result.failed and result.text == "not run, or not to its end", "the history has a result for each call"
        assert conversation.run(please("kept * 6")).results[0].text == "42"


def test_a_limit_of_time_ends_a_stalled_provider(fake):
    for provider in (GROQ, MISTRAL, ANTHROPIC):
        began = time.monotonic()
        with Conversation(provider.model(fake, "fake-stall"), limits=Limits(seconds=1)) as conversation:
            outcome = conversation.run("Hello?")
        assert outcome.ending is Ending.TIME_LIMIT and time.monotonic() - began < 15, outcome


def test_a_limit_of_cost(fake):
    prices = Prices(input=1000, output=1000)
    with Conversation(GROQ.model(fake, "fake-endless"), limits=Limits(cost=0.5), prices=prices) as conversation:
        outcome = conversation.run("Go on.")
    assert outcome.ending is Ending.COST_LIMIT and "reached the limit of 0.5" in outcome.cause
    assert outcome.cost == pytest.approx((outcome.usage.input + outcome.usage.output) / 1000) and outcome.cost >= 0.5
    with pytest.raises(ValueError, match="needs prices"):
        Conversation(GROQ.model(fake), limits=Limits(cost=1))


# Ends


def test_cancelled_from_another_thread(fake):
    with Conversation(GROQ.model(fake, "fake-endless-code")) as conversation:
        threading.Timer(1.5, conversation.cancel).start()
        began = time.monotonic()
        outcome = conversation.run("For ever.")
        assert (outcome.ending, outcome.cause) == (Ending.CANCELLED, "cancelled by the caller")
        assert time.monotonic() - began < 20


def test_cancelled_by_a_callback(fake):
    with Conversation(GROQ.model(fake, "fake-slow")) as conversation:
        outcome = conversation.run("Slowly.", lambda event: conversation.cancel() if isinstance(event, Text) else None)
    assert outcome.ending is Ending.CANCELLED and outcome.text == ""


def test_a_cancelled_task(fake):
    async def main() -> None:
        async with AsyncConversation(GROQ.model(fake, "fake-endless-code")) as conversation:
            started = asyncio.Event()

            def on_event(event) -> None:
                if isinstance(event, CallStarted):
                    started.set()

            running = asyncio.create_task(conversation.run("For ever.", on_event))
            await started.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            with pytest.raises(RuntimeError, match="running already"):
                await asyncio.gather(conversation.run("One."), conversation.run("Two."))

    asyncio.run(main())


def test_cancelled_while_its_sandbox_is_made(fake, monkeypatch):
    made = []
    create = AsyncSandbox.create

    async def slowly(*arguments, **options):
        made.append(await create(*arguments, **options))
        # It is there, and the answer is on its way.
        conversation.cancel()
        await asyncio.sleep(0.2)
        return made[-1]

    async def main() -> None:
        async with conversation:
            outcome = await conversation.run(please("1"))
            assert (outcome.ending, conversation.sandbox_id) == (Ending.CANCELLED, None)

    monkeypatch.setattr(AsyncSandbox, "create", slowly)
    conversation = AsyncConversation(GROQ.model(fake, "fake-tool"))
    asyncio.run(main())
    assert len(made) == 1 and made[0].sandbox_id not in live()


def test_an_interrupt_without_with(fake):
    def interrupted(event) -> None:
        if isinstance(event, Output):
            raise KeyboardInterrupt

    conversation = Conversation(GROQ.model(fake, "fake-tool"))
    with pytest.raises(KeyboardInterrupt):
        conversation.run(please("print('here', flush=True)\nwhile True: pass"), interrupted)
    assert conversation.run(please("6 * 7")).results[0].text == "42", "nothing runs any more"
    conversation.close()


def test_ctrl_c_leaves_no_sandbox(fake):
    code = f"""
import groq
from soulbox_agents import ChatModel, Conversation, Output
with Conversation(ChatModel(groq.Groq(api_key='k', base_url='{fake.http}/groq'), 'fake-tool')) as conversation:
    conversation.run({please("print('here', flush=True)" + chr(10) + "while True: pass")!r}, lambda event: print(event, flush=True))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "integrations/python/src")}
    running = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A shell has its jobs in the background ignore it, and so would this program.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in running.stdout:
        if "Output" in line:
            break
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode != 0 and "KeyboardInterrupt" in said


@pytest.mark.parametrize("provider", [GROQ, ANTHROPIC, MISTRAL, CODESTRAL])
def test_a_stream_that_is_cut(fake, provider):
    heard = []
    with Conversation(provider.model(fake, "fake-cut"), retry=QUICK) as conversation:
        outcome = conversation.run("Answer.", heard.append)
        assert conversation.sandbox_id is None
    assert outcome.ending is Ending.PROVIDER_FAILED and outcome.cause.endswith("(3 attempts)"), outcome
    assert len([event for event in heard if isinstance(event, Retrying)]) == 2


@pytest.mark.parametrize("provider", [GROQ, ANTHROPIC, MISTRAL])
def test_a_stream_that_is_cut_amid_a_call(fake, provider):
    heard = []
    with Conversation(provider.model(fake, "fake-cut-tool"), retry=QUICK) as conversation:
        outcome = conversation.run(please("print('never')"), heard.append)
    assert outcome.ending is Ending.PROVIDER_FAILED and outcome.calls == 0, outcome
    assert not any(isinstance(event, CallStarted) for event in heard), "half a call is not run"


class Breaking:
    """A model whose first stream breaks off."""

    name, sees_pictures, secrets = "breaking", False, ()

    def __init__(self):
        self.opened = 0

    def open(self, system, messages, tools):
        self.opened += 1
        return iter(["The answer ", "is 42."][: self.opened])

    def assembler(self):
        return BreakingAssembler()


class BreakingAssembler:
    def __init__(self):
        self.said = ""

    def feed(self, chunk):
        self.said += chunk
        return chunk

    def finish(self):
        if not self.said.endswith("."):
            raise StreamCut("the stream ended before its end")
        return Reply(self.said)


def test_a_cut_stream_that_recovers():
    heard = []
    with Conversation(Breaking(), retry=QUICK) as conversation:
        outcome = conversation.run("Answer.", heard.append)
    assert (outcome.ending, outcome.text) == (Ending.FINISHED, "The answer is 42.")
    first, retrying, *rest = heard
    assert first == Text("The answer ") and retrying.text == "The answer ", "what was said in vain is named"
    assert rest == [Text("The answer "), Text("is 42.")] and outcome.usage.estimated


def test_a_provider_that_is_down():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        for model in (
            AnthropicModel(anthropic.Anthropic(api_key="k", base_url=url), "m"),
            ChatModel(groq.Groq(api_key="k", base_url=url), "m"),
        ):
            with Conversation(model, retry=QUICK) as conversation:
                outcome = conversation.run("Hello?")
            assert (outcome.ending, outcome.status) == (Ending.PROVIDER_FAILED, None)
            assert "onnect" in outcome.cause and "refused" in outcome.cause and "(3 attempts)" in outcome.cause, outcome.cause


def test_too_long_a_wait_is_a_failure(fake):
    name = fake.scenario("patience", {"error": {"status": 429, "retry_after": 3600}})
    with Conversation(GROQ.model(fake, name)) as conversation:
        outcome = conversation.run("Hello?")
    assert outcome.ending is Ending.PROVIDER_FAILED and "wants 3600 s of patience, more than 60" in outcome.cause


@pytest.mark.parametrize("end", ["kill", "expire"])
def test_a_sandbox_that_ends_in_the_middle(fake, end):
    heard = []
    with Conversation(GROQ.model(fake, "fake-tool"), retry=QUICK) as conversation:

        def on_event(event) -> None:
            heard.append(event)
            if isinstance(event, Output):
                sandbox = Sandbox.connect(conversation.sandbox_id)
                sandbox.kill() if end == "kill" else sandbox.set_timeout(1)

        outcome = conversation.run(please("print('running', flush=True)\nimport time\ntime.sleep(30)"), on_event)
        assert outcome.ending is Ending.SANDBOX_LOST and outcome.cause.startswith("the sandbox is gone: "), outcome
        assert heard[-1].result.lost
        again = conversation.run(please("20 + 22"))
        assert again.finished and again.results[0].text == "42", "the next run has a new one"


def test_no_sandbox_to_be_had(fake):
    with Conversation(GROQ.model(fake, "fake-tool"), template="no-such-template") as conversation:
        outcome = conversation.run(please("1"))
    assert (
        outcome.ending is Ending.SANDBOX_LOST and outcome.cause.startswith("there is no sandbox: ") and "no-such-template" in outcome.cause
    )


# What models get wrong


@pytest.mark.parametrize("provider", [ANTHROPIC, GROQ, MISTRAL])
def test_malformed_arguments_are_told_to_the_model(fake, provider):
    with Conversation(provider.model(fake, "fake-malformed")) as conversation:
        outcome = conversation.run(please("6 * 7"))
    assert outcome.finished and [one.failed for one in outcome.results] == [True, False], outcome
    assert outcome.results[0].text.startswith("the arguments are not JSON") and outcome.results[1].text == "42"
    assert all(one["violation"] is None for one in fake.requests())


def test_other_nonsense_is_told_to_the_model(fake):
    for name, said in {"fake-wrong-arguments": "argument", "fake-unknown-tool": "there is no tool 'no_such_tool'"}.items():
        with Conversation(GROQ.model(fake, name)) as conversation:
            outcome = conversation.run(please("6 * 7"))
        assert outcome.finished and outcome.results[0].failed and said in outcome.results[0].text, outcome


def test_malformed_for_ever_meets_the_limit(fake):
    with Conversation(GROQ.model(fake, "fake-malformed-always"), limits=Limits(turns=4)) as conversation:
        outcome = conversation.run(please("1"))
        assert conversation.sandbox_id is None or outcome.calls == 4
    assert outcome.ending is Ending.TURN_LIMIT and all(one.failed for one in outcome.results)


def test_code_of_every_unpleasant_kind(fake):
    settings = Settings(timeout=2)
    for name, said in {"loud": "characters left out", "raise": "ValueError: on purpose", "endless-code": "stopped after 2 s"}.items():
        with Conversation(GROQ.model(fake, f"fake-{name}"), settings=settings) as conversation:
            outcome = conversation.run("Go.")
        assert outcome.finished and said in outcome.results[0].text, (name, outcome)


def test_blocks_of_every_unpleasant_kind(fake):
    cases = {
        "print('x' * 10_000_000)": "characters left out",
        "raise ValueError('on purpose')": "ValueError: on purpose",
        "while True: pass": "stopped after 2 s",
    }
    with Conversation(CODESTRAL.model(fake), settings=Settings(timeout=2)) as conversation:
        for code, said in cases.items():
            outcome = conversation.run(please(code))
            assert outcome.finished and said in outcome.results[0].text, (code, outcome)


def test_a_chart_per_line(fake):
    with Conversation(ANTHROPIC.model(fake, "fake-charts")) as conversation:
        outcome = conversation.run("Go.")
    assert outcome.finished and len(outcome.pictures) == 20 and len(outcome.results[0].pictures) == 4
    assert "[16 more of 20 images are left out here]" in outcome.results[0].text


def test_ten_megabytes_of_answer(fake):
    with Conversation(GROQ.model(fake, "fake-big")) as conversation:
        outcome = conversation.run("Much.")
    assert outcome.finished and len(outcome.text) == 10_000_000


def test_blocks_for_ever_meet_the_limit(fake):
    with Conversation(CODESTRAL.model(fake, "fake-fenced-always"), limits=Limits(turns=3)) as conversation:
        outcome = conversation.run(please("1"))
    assert outcome.ending is Ending.TURN_LIMIT and outcome.calls == 3


# What a user decides


def test_calls_that_are_not_approved(fake):
    asked, here = [], threading.get_ident()

    def approve(call):
        asked.append((call.name, threading.get_ident()))
        return "not on a Friday"

    with Conversation(GROQ.model(fake, "fake-tool"), approve=approve) as conversation:
        outcome = conversation.run(please("1"))
        assert conversation.sandbox_id is None, "nothing was run, so there is no sandbox"
    assert outcome.finished and outcome.results[0].text == "refused: not on a Friday"
    assert asked == [("run_code", here)], "asked in the thread of the caller"
    with Conversation(GROQ.model(fake, "fake-tool"), approve=lambda call: call.name == "run_code") as conversation:
        assert conversation.run(please("6 * 7")).results[0].text == "42"
    with Conversation(GROQ.model(fake, "fake-tool"), approve=lambda call: None) as conversation:
        assert conversation.run(please("1")).results[0].text == "refused by the user", "only True is a yes"


def test_approval_with_an_event_loop(fake):
    async def approve(call):
        await asyncio.sleep(0.01)
        return True

    async def main() -> None:
        for given in (approve, lambda call: True):
            async with AsyncConversation(GROQ.model(fake, "fake-tool"), approve=given) as conversation:
                assert (await conversation.run(please("6 * 7"))).results[0].text == "42"

    asyncio.run(main())


@pytest.mark.parametrize("wanted", [Text, CallStarted, Output, CallFinished])
def test_what_callbacks_raise_is_raised(fake, wanted):
    class Ours(Exception):
        pass

    def angry(event):
        if isinstance(event, wanted):
            raise Ours

    with Conversation(GROQ.model(fake, "fake-tool-text")) as conversation, pytest.raises(Ours):
        conversation.run(please("print(1)"), angry)


def test_mistakes_of_the_program_are_raised(fake):
    with (
        Conversation(ChatModel(groq.Groq(api_key="k", base_url=fake.http), "m", no_such_option=1)) as conversation,
        pytest.raises(TypeError),
    ):
        conversation.run("Hello?")


def test_events_tell_the_story_in_order(fake):
    heard = []
    with Conversation(GROQ.model(fake, "fake-tool-text")) as conversation:
        conversation.run(please("print('out')"), heard.append)
    kinds = [type(event) for event in heard]
    started = kinds.index(CallStarted)
    assert set(kinds[:started]) == {Text} and kinds[started : started + 3] == [CallStarted, Output, CallFinished]
    assert set(kinds[started + 3 :]) == {Text}


# One sandbox for a conversation


def test_a_conversation_that_goes_on_later(fake):
    key = f"chat-{uuid.uuid4()}"
    with Conversation(GROQ.model(fake, "fake-tool"), key=key) as first:
        assert first.run(please("kept = 40\nkept")).results[0].text == "40"
        identifier = first.sandbox_id
    (found,) = kept(key)
    assert found.sandbox_id == identifier and found.state is SandboxState.PAUSED
    with Conversation(ANTHROPIC.model(fake, "fake-tool"), key=key) as second:
        assert second.run(please("kept + 2")).results[0].text == "42", "its variables are still there"
        assert second.sandbox_id == identifier
        second.close(kill=True)
    assert kept(key) == []


def test_an_idle_one_is_paused_by_the_server(fake):
    key = f"chat-{uuid.uuid4()}"
    conversation = Conversation(GROQ.model(fake, "fake-tool"), key=key)
    assert conversation.run(please("kept = 42\nkept")).results[0].text == "42"
    # As if it had been idle for all but a second of its time.
    conversation.sandbox().set_timeout(1)
    deadline = time.monotonic() + 60
    while kept(key)[0].state is not SandboxState.PAUSED:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    with Conversation(GROQ.model(fake, "fake-tool"), key=key) as again:
        assert again.run(please("kept")).results[0].text == "42"
        again.close(kill=True)
    conversation.close()


def test_files_for_the_code(fake):
    with Conversation(GROQ.model(fake, "fake-tool")) as conversation:
        conversation.sandbox().files.write("numbers.csv", "1,2,3")
        assert conversation.run(please("open('numbers.csv').read()")).results[0].text == "1,2,3"
        assert conversation.sandbox().sandbox_id == conversation.sandbox_id


# Keys


def test_keys_are_in_no_log_prompt_or_sandbox(fake, caplog, monkeypatch):
    canary = f"canary-{uuid.uuid4().hex}"
    monkeypatch.setenv("GROQ_API_KEY", canary)
    caplog.set_level(logging.DEBUG)
    # A pattern that does not find itself.
    search = "env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'; grep -rIh 'can[a]ry-' /home /tmp /etc /root 2>/dev/null"
    code = f"import subprocess\nprint(subprocess.run({search!r}, shell=True, capture_output=True, text=True).stdout)"
    before = live()
    with Conversation(ChatModel(groq.Groq(base_url=f"{fake.http}/groq"), "fake-tool")) as conversation:
        outcome = conversation.run(please(code))
        assert outcome.finished and "PATH=" in outcome.results[0].text
        assert canary not in outcome.results[0].text and os.environ["E2B_API_KEY"] not in outcome.results[0].text
    wrong = f"wrong-{canary}"
    with Conversation(ChatModel(groq.Groq(api_key=wrong, base_url=f"{fake.http}/groq"), "fake-tool")) as conversation:
        failed = conversation.run("Hello?")
    assert failed.status == 401
    sent = str(fake.ask("GET", "/_requests"))
    said = caplog.text + repr(outcome) + repr(failed) + repr(conversation.__dict__)
    assert "POST" in caplog.text, "the log was heard"
    for secret in (canary, os.environ["E2B_API_KEY"]):
        assert secret not in sent and secret not in said
    assert live() == before
