"""Each provider by its own wire: a loop of tools, a text, refusals, and faults of the stream."""

import json
import time

import pytest

PROVIDERS = {
    "anthropic": "/anthropic/v1/messages",
    "mistral": "/mistral/v1/chat/completions",
    "groq": "/groq/openai/v1/chat/completions",
    "together": "/together/v1/chat/completions",
    "fireworks": "/fireworks/inference/v1/chat/completions",
    "watsonx": "/watsonx/ml/v1/text/chat",
    "compatible": "/compatible/v1/chat/completions",
}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_loop_of_tools(agent, fake, provider):
    ran = agent("Add the numbers up to 100.", "--model", "fake-tool", provider=provider)
    assert ran.code == 0, ran
    assert "5050" in ran.out, ran
    assert "hello from the sandbox" in ran.err, ran
    asked = fake.answers()
    assert [request["path"] for request in asked] == [PROVIDERS[provider]] * 2
    assert [request["violation"] for request in asked] == [None, None]
    assert [request["turn"] for request in asked] == [0, 1]
    assert asked[0]["auth"]["scheme"] == ("x-api-key" if provider == "anthropic" else "bearer")
    tools = asked[0]["body"]["tools"]
    names = [tool["name"] if provider == "anthropic" else tool["function"]["name"] for tool in tools]
    assert names == ["run_code", "run_command", "read_file", "write_file", "list_files"]


@pytest.mark.parametrize("provider", PROVIDERS)
def test_a_text_is_an_answer(agent, fake, provider):
    ran = agent("[scenario: answer] What is it?", "--model", "fake-answer", "--json", provider=provider)
    assert ran.code == 0, ran
    outcome = json.loads(ran.out)
    assert (outcome["ending"], outcome["turns"], outcome["calls"]) == ("finished", 1, 0)
    assert "the answer is 42" in outcome["text"]
    assert outcome["usage"]["input_tokens"] > 0 and outcome["usage"]["output_tokens"] > 0


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("status", [400, 401])
def test_a_refusal_for_good_is_asked_once(agent, fake, provider, status):
    ran = agent(f"[scenario: error-{status}] x", "--model", "fake-x", provider=provider)
    assert ran.code == 1, ran
    assert f"error: {provider} answered {status}: scenario `error-{status}` answers {status}" in ran.err, ran
    assert len(fake.answers()) == 1


@pytest.mark.parametrize("provider", ["anthropic", "groq", "watsonx"])
@pytest.mark.parametrize("status", [429, 500, 529])
def test_a_busy_service_is_asked_again(agent, fake, provider, status):
    began = time.monotonic()
    ran = agent(f"[scenario: retry-{status}] x", "--model", "fake-x", provider=provider)
    assert ran.code == 0, ran
    assert [request["status"] for request in fake.answers()] == [status, status, 200, 200]
    assert ran.err.count("asking again in") == 2, ran
    if status == 429:
        # Twice the second that Retry-After names.
        assert "asking again in 1.0 s" in ran.err, ran
        assert time.monotonic() - began > 2


def test_a_service_that_stays_down_is_given_up(agent, fake):
    ran = agent("[scenario: error-503] x", "--json")
    assert ran.code == 1, ran
    assert json.loads(ran.out)["ending"] == "provider_failed"
    assert [request["status"] for request in fake.answers()] == [503] * 5


def test_nobody_listens(agent, fake):
    ran = agent("x", "--base-url", "http://127.0.0.1:9", "--json")
    assert ran.code == 1, ran
    outcome = json.loads(ran.out)
    assert outcome["ending"] == "provider_failed"
    assert "cannot be reached" in outcome["cause"], ran


@pytest.mark.parametrize("provider", ["anthropic", "groq", "mistral"])
def test_a_stream_that_breaks_off(agent, fake, provider):
    ran = agent("[scenario: cut] x", "--model", "fake-x", "--json", provider=provider)
    assert ran.code == 1, ran
    outcome = json.loads(ran.out)
    assert outcome["ending"] == "provider_failed"
    assert "broke off" in outcome["cause"], ran
    # What was said already is not said twice.
    assert len(fake.answers()) == 1


@pytest.mark.parametrize("provider", ["anthropic", "groq"])
def test_a_stream_that_breaks_off_in_a_call(agent, fake, provider):
    ran = agent("[scenario: cut-tool] x", "--model", "fake-x", "--json", provider=provider)
    assert ran.code == 1, ran
    outcome = json.loads(ran.out)
    assert (outcome["ending"], outcome["calls"]) == ("provider_failed", 0)


def test_a_wrong_key(agent, fake):
    ran = agent("x", key="wrong-key-of-somebody")
    assert ran.code == 1, ran
    assert "error: anthropic answered 401: invalid key" in ran.err, ran
    assert len(fake.answers()) == 1
    assert "wrong-key-of-somebody" not in ran.err + ran.out


def test_a_wrong_key_of_watsonx(agent, fake):
    ran = agent("x", key="wrong-key-of-somebody", provider="watsonx")
    assert ran.code == 1, ran
    assert "error: watsonx answered 400: Provided API key could not be found." in ran.err, ran


def test_models_without_tools_write_fenced_code(agent, fake):
    ran = agent("Add the numbers up to 100.", provider="mistral")
    assert ran.code == 0, ran
    assert "5050" in ran.out, ran
    asked = fake.answers()
    assert asked[0]["model"] == "codestral-2508"
    assert "tools" not in asked[0]["body"]
    assert len(asked) == 2
