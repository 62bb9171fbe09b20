"""Each provider by its official client: an answer, code run for it, a streamed call, an error."""

import asyncio
import json
import time
from typing import Any

import pytest
from conftest import PNG, SINE, Fake, please
from providers import (
    ALL,
    ANTHROPIC,
    ASYNC_ANTHROPIC,
    ASYNC_GROQ,
    CODESTRAL,
    FIREWORKS,
    GRANITE,
    GROQ,
    MISTRAL,
    TOGETHER,
    WATSONX,
    WITH_TOOLS,
    Provider,
)
from soulbox_agents import AsyncConversation, CallStarted, Conversation, Ending, Outcome, Retry, Retrying, Text

pytestmark = pytest.mark.usefixtures("nothing_left")
QUICK = Retry(first=0.05)


def label(provider: Provider) -> str:
    return provider.name + ("-fenced" if provider.fenced else "") + ("-async" if provider in (ASYNC_ANTHROPIC, ASYNC_GROQ) else "")


each = pytest.mark.parametrize("provider", ALL, ids=label)
each_with_tools = pytest.mark.parametrize("provider", WITH_TOOLS, ids=label)


def draws(fake: Fake, provider: Provider) -> Outcome:
    """A chart comes back as a picture with what was drawn, and the wire is the provider's."""
    with Conversation(provider.model(fake)) as conversation:
        outcome = conversation.run(please(SINE))
    assert outcome.ending is Ending.FINISHED, outcome
    assert outcome.calls == 1 and not outcome.results[0].failed, outcome.results
    (picture,) = outcome.pictures
    assert picture.data.startswith(PNG) and picture.media_type == "image/png"
    assert picture.chart["title"] == "A wave"
    assert "a line chart titled 'A wave'" in outcome.results[0].text
    first, second = fake.requests(provider.name)
    for asked in (first, second):
        assert (asked["path"], asked["auth"]["scheme"], asked["model"]) == (provider.path, provider.auth, provider.real)
        assert asked["status"] == 200 and asked["violation"] is None, asked
    return outcome


def offered(fake: Fake) -> dict:
    """Names and schemas of the tools that the model was told of."""
    tools = fake.requests()[0]["body"]["tools"]
    functions = [one.get("function", one) for one in tools]
    return {one["name"]: one.get("parameters") or one["input_schema"] for one in functions}


def check_tools(fake: Fake) -> None:
    tools = offered(fake)
    assert set(tools) == {"run_code", "run_command", "read_file", "write_file", "list_files"}
    assert tools["run_code"]["required"] == ["code"]
    assert tools["run_code"]["properties"]["language"]["enum"] == ["python", "javascript", "typescript", "bash"]


def test_ci_076_anthropic_draws_a_chart(fake):
    draws(fake, ANTHROPIC)
    check_tools(fake)
    result = fake.requests()[1]["body"]["messages"][-1]["content"][0]
    assert [part["type"] for part in result["content"]] == ["text", "image"], "the model sees the chart"


def test_ci_077_codestral_draws_a_chart(fake):
    draws(fake, CODESTRAL)
    assert "tools" not in fake.requests()[0]["body"]
    assert "Result of code block 1" in fake.requests()[1]["body"]["messages"][-1]["content"]


def test_ci_078_groq_draws_a_chart(fake):
    draws(fake, GROQ)
    check_tools(fake)


def test_ci_079_fireworks_draws_a_chart(fake):
    draws(fake, FIREWORKS)
    check_tools(fake)


def test_ci_080_together_draws_a_chart(fake):
    draws(fake, TOGETHER)
    check_tools(fake)


def test_ci_081_watsonx_draws_a_chart(fake):
    draws(fake, WATSONX)
    check_tools(fake)


def test_ci_081_granite_draws_a_chart(fake):
    draws(fake, GRANITE)
    assert "plt.plot" in fake.requests()[0]["body"]["input"]


@each
def test_an_answer_without_code_makes_no_sandbox(fake, provider):
    said = []
    with Conversation(provider.model(fake, "fake-answer")) as conversation:
        outcome = conversation.run("Say something.", said.append)
        assert conversation.sandbox_id is None
    assert (outcome.ending, outcome.cause) == (Ending.FINISHED, "the model answered without running code")
    assert outcome.text == "".join(event.text for event in said if isinstance(event, Text)) != ""
    assert outcome.turns == 1 and outcome.usage.output > 0 and not outcome.usage.estimated, "the provider's own count"


@each
def test_a_value_comes_back(fake, provider):
    with Conversation(provider.model(fake)) as conversation:
        outcome = conversation.run(please("print('adding')\n20 + 22"))
    assert outcome.results[0].text == "adding\n42"
    assert outcome.turns == 2 and outcome.finished
    assert "42" in outcome.text, "the model was told"


def test_ci_083_a_streamed_call_of_anthropic(fake):
    streamed(fake, ANTHROPIC)


def test_ci_083_a_streamed_call_in_the_shape_of_openai(fake):
    streamed(fake, GROQ)


@pytest.mark.parametrize("provider", [one for one in WITH_TOOLS if one not in (ANTHROPIC, GROQ)], ids=label)
def test_a_streamed_call(fake, provider):
    streamed(fake, provider)


def streamed(fake: Fake, provider: Provider) -> None:
    code = "\n".join(f"value_{number} = {number} * 1234567" for number in range(40)) + "\nvalue_39"
    heard = []
    with Conversation(provider.model(fake, "fake-stream-tool")) as conversation:
        outcome = conversation.run(please(code), heard.append)
    assert next(event for event in heard if isinstance(event, CallStarted)).call.arguments["code"].rstrip("\n") == code
    assert outcome.results[0].text == str(39 * 1234567)
    assert outcome.finished


@each
def test_ci_084_too_many_requests_are_tried_again(fake, provider):
    heard = []
    began = time.monotonic()
    name = "fake-retry-429"
    if provider.fenced:
        busy = {"error": {"status": 429, "retry_after": 1, "times": 2}, "text": "```python\n20 + 22\n```"}
        name = fake.scenario(f"busy-{provider.name}", busy, {"text": "It is {{result}}."})
    with Conversation(provider.model(fake, name), retry=QUICK) as conversation:
        outcome = conversation.run(please("20 + 22"), heard.append)
    retries = [event for event in heard if isinstance(event, Retrying)]
    assert outcome.finished and outcome.results[0].text == "42"
    assert len(retries) >= 2 and all("429" in one.cause for one in retries)
    if provider.name != "watsonx":
        # Its client throws the answer's headers away.
        assert [one.after for one in retries[:2]] == [1, 1], "as Retry-After says"
        assert time.monotonic() - began >= 2


@each
def test_ci_084_a_wrong_key_is_not_tried_again(fake, provider):
    try:
        with Conversation(provider.model(fake, key="wrong-key-of-a-test")) as conversation:
            outcome = conversation.run("Add.")
    except Exception as error:
        # That client asks for a token when it is made, before there is a conversation.
        assert provider.name == "watsonx" and "401" in str(error), error
    else:
        assert (outcome.ending, outcome.status) == (Ending.PROVIDER_FAILED, 401), outcome
        assert outcome.cause.startswith("401: ") and "attempts" not in outcome.cause
        assert "wrong-key-of-a-test" not in outcome.cause
        assert len(fake.requests()) == 1


@each
@pytest.mark.parametrize("status", [400, 500, 529])
def test_ci_084_only_what_passes_is_tried_again(fake, provider, status):
    with Conversation(provider.model(fake, f"fake-error-{status}"), retry=Retry(attempts=3, first=0.02)) as conversation:
        outcome = conversation.run("Add.")
    assert (outcome.ending, outcome.status) == (Ending.PROVIDER_FAILED, status), outcome
    # The client of watsonx.ai repeats a 500 some times more.
    asked, least = len(fake.requests()), 1 if status == 400 else 3
    assert asked >= least if provider.name == "watsonx" and status == 500 else asked == least
    assert outcome.cause.startswith(f"{status}: ") and outcome.cause.endswith("(3 attempts)") == (status != 400)


@pytest.mark.parametrize("provider, role", [(ANTHROPIC, "user"), (MISTRAL, "tool"), (GROQ, "user")], ids=["anthropic", "mistral", "groq"])
def test_a_model_that_sees_gets_the_chart(fake, provider, role):
    model: Any = provider.model(fake)
    model.sees_pictures = True
    with Conversation(model) as conversation:
        assert conversation.run(f"[scenario: tool] {please(SINE)}").finished
    asked = fake.requests()[1]
    assert asked["violation"] is None
    assert [one["role"] for one in asked["body"]["messages"] if "iVBORw0KGgo" in json.dumps(one)] == [role]


@each_with_tools
def test_calls_at_once(fake, provider):
    blocks = [f"print('block {number}')\n{number}" for number in (1, 2, 3)]
    with Conversation(provider.model(fake, "fake-parallel")) as conversation:
        outcome = conversation.run(please(*blocks))
    assert outcome.finished and outcome.turns == 2
    assert [one.text for one in outcome.results] == ["block 1\n1", "block 2\n2", "block 3\n3"]


@each
def test_an_event_loop_of_ones_own(fake, provider):
    async def main() -> Outcome:
        heard = []

        async def on_event(event) -> None:
            await asyncio.sleep(0)
            heard.append(event)

        async with AsyncConversation(provider.model(fake)) as conversation:
            outcome = await conversation.run(please("20 + 22"), on_event)
        assert "".join(event.text for event in heard if isinstance(event, Text)).endswith(outcome.text)
        return outcome

    outcome = asyncio.run(main())
    assert outcome.finished and outcome.results[0].text == "42"


@each
def test_the_history_goes_on(fake, provider):
    with Conversation(provider.model(fake)) as conversation:
        assert conversation.run(please("kept = 40\nkept")).results[0].text == "40"
        outcome = conversation.run(please("kept + 2"))
        assert outcome.results[0].text == "42"
    assert all(one["violation"] is None for one in fake.requests())
