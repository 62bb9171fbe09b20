"""What needs neither a provider nor a sandbox: cuts, fenced blocks, streams, failures."""

from types import SimpleNamespace

import pytest
from soulbox_agents import (
    AnthropicModel,
    Assistant,
    ChatModel,
    Results,
    Retry,
    StreamCut,
    ToolCall,
    ToolResult,
    User,
    WatsonxTextModel,
    fenced,
)
from soulbox_agents.budget import Prose, Rows, fit, tokens
from soulbox_agents.messages import Picture
from soulbox_agents.models.chat import ChatAssembler, written
from soulbox_agents.retry import failure


def test_short_parts_leave_their_share_to_long_ones():
    text = fit([Prose("short"), Prose("x" * 100_000), Prose("y" * 100_000, "stderr:")], 1000)
    assert text.startswith("short\nxxx") and "stderr:\nyyy" in text
    assert 3800 < len(text) <= 4002
    assert abs(text.count("x") - text.count("y")) < 60


def test_what_fits_is_not_touched():
    assert fit([Prose("a"), Rows({"n": [1, 2], "m": ["b", "c,d"]})], 100) == 'a\nn,m\n1,b\n2,"c,d"'
    assert fit([], 10) == ""
    assert tokens("") == 0 and tokens("12345") == 2


@pytest.mark.parametrize("budget", [0, 1, 10, 16, 17, 40])
def test_tiny_budgets_still_say_the_cut(budget):
    assert "left out" in Prose("z" * 1000).cut(budget)
    assert "rows shown]" in Rows({"n": range(1000)}).cut(budget) or "left out" in Rows({"n": range(1000)}).cut(budget)


def test_a_chart_in_words():
    elements = [{"label": f"series {number}"} for number in range(12)]
    chart = {"type": "bar", "title": "Sales", "x_label": "month", "y_label": None, "elements": elements}
    said = Picture("image/png", b"12", chart).describe()
    assert said == "a bar chart titled 'Sales' x 'month' of " + ", ".join(f"series {n}" for n in range(10)) + " and 2 more"
    assert Picture("image/png", b"12").describe() == "an image (image/png, 2 bytes)"


def test_fences():
    def found(text: str) -> list[tuple[str, str]]:
        return [(call.arguments["language"], call.arguments["code"]) for call in fenced.calls(text)]

    assert found("```python\n1\n```") == [("python", "1")]
    assert found("````py\n```\ninner\n```\n````") == [("python", "```\ninner\n```")], "a longer fence holds a shorter one"
    assert found("~~~ts title=a.ts\nlet a\n~~~") == [("typescript", "let a")]
    assert found("```\nplain\n```\n```json\n{}\n```") == [], "nobody asked for these to be run"
    assert found("```json\n{}\n```\n```sh\nls\n```") == [("bash", "ls")], "the end of one is not the beginning of another"
    assert fenced.calls("```python\n1")[0].problem


def test_a_call_in_pieces():
    assembler = ChatAssembler()
    pieces = [
        {"index": 0, "id": "a", "function": {"name": "run_code", "arguments": ""}},
        {"index": 0, "function": {"arguments": '{"co'}},
        {"index": 1, "id": "b", "function": {"name": "run_command", "arguments": '{"command": "ls"}'}},
        {"index": 0, "function": {"arguments": 'de": "1"}'}},
    ]
    for piece in pieces:
        assembler.feed({"choices": [{"delta": {"tool_calls": [piece]}}]})
    with pytest.raises(StreamCut, match="in the middle of a tool call"):
        assembler.finish()
    assembler.feed({"choices": [{"delta": {}, "finish_reason": "tool_calls"}]})
    first, second = assembler.finish().calls
    assert (first.id, first.arguments) == ("a", {"code": "1"}) and (second.id, second.arguments) == ("b", {"command": "ls"})


def test_a_call_of_anthropic_in_pieces():
    def content(**said):
        return SimpleNamespace(type=said["type"], model_dump=lambda exclude_none: dict(said))

    def delta(index, **said):
        return SimpleNamespace(type="content_block_delta", index=index, delta=SimpleNamespace(**said))

    assembler = AnthropicModel(Client(), "m").assembler()
    for chunk in (
        SimpleNamespace(type="message_start", message=SimpleNamespace(usage=SimpleNamespace(input_tokens=7))),
        SimpleNamespace(type="content_block_start", index=0, content_block=content(type="thinking", thinking="")),
        delta(0, type="thinking_delta", thinking="hm"),
        delta(0, type="signature_delta", signature="signed"),
        SimpleNamespace(type="content_block_start", index=1, content_block=content(type="tool_use", id="a", name="run_code", input={})),
        delta(1, type="input_json_delta", partial_json='{"co'),
        delta(1, type="input_json_delta", partial_json='de": "1"}'),
    ):
        assert assembler.feed(chunk) == ""
    with pytest.raises(StreamCut, match="in the middle of a tool call"):
        assembler.finish()
    assembler.feed(
        SimpleNamespace(type="message_delta", delta=SimpleNamespace(stop_reason="tool_use"), usage=SimpleNamespace(output_tokens=5))
    )
    reply = assembler.finish()
    assert reply.calls[0].arguments == {"code": "1"} and (reply.usage.input, reply.usage.output) == (7, 5)
    assert reply.raw == [
        {"type": "thinking", "thinking": "hm", "signature": "signed"},
        {"type": "tool_use", "id": "a", "name": "run_code", "input": {"code": "1"}},
    ], "thinking goes back as it came"


def test_pictures_for_anthropic():
    call = ToolCall("1", "run_code")
    history = [Results((ToolResult(call, "drawn", pictures=(Picture("image/png", b"x"),)),))]
    for sees, types in ((True, ["text", "image"]), (False, ["text"])):
        client = Client()
        AnthropicModel(client, "m", sees_pictures=sees).open("", history, ())
        assert [part["type"] for part in client.asked["messages"][0]["content"][0]["content"]] == types


def test_whole_calls_without_an_index():
    assembler = ChatAssembler()
    calls = [{"id": id, "function": {"name": "run_code", "arguments": {"code": id}}} for id in ("a", "b")]
    assembler.feed({"choices": [{"delta": {"tool_calls": calls}, "finish_reason": "tool_calls"}]})
    assert [call.arguments["code"] for call in assembler.finish().calls] == ["a", "b"]


def test_a_history_of_chat():
    call = ToolCall("1", "run_code", problem="no JSON")
    picture = Picture("image/png", b"x")
    history = [User("hello"), Assistant("", (call,)), Results((ToolResult(call, "no JSON", True, (picture,)),))]
    blind = written("be kind", history, sees_pictures=False)
    assert [one["role"] for one in blind] == ["system", "user", "assistant", "tool"]
    assert blind[2]["tool_calls"][0]["function"]["arguments"] == "{}"
    seeing = written("", history, sees_pictures=True)
    assert seeing[-1]["role"] == "user" and seeing[-1]["content"][1]["image_url"]["url"].startswith("data:image/png;base64,")


class Refusal(Exception):
    def __init__(self, status=None, headers=None, body=None, message="no"):
        super().__init__(message)
        self.status_code, self.body = status, body
        self.response = type("Response", (), {"headers": headers or {}, "status_code": status})()


def test_what_is_tried_again():
    retry = Retry(attempts=3, first=1, longest=60)
    for status, again in {400: False, 401: False, 403: False, 404: False, 422: False, 429: True, 500: True, 503: True, 529: True}.items():
        wait = retry.wait(1, failure(Refusal(status), []))
        assert (wait is not None) == again, status
        assert wait is None or 0.75 <= wait <= 1.25
    assert 1.5 <= retry.wait(2, failure(Refusal(500), [])) <= 2.5, "twice as long"
    assert retry.wait(3, failure(Refusal(500), [])) is None, "the third attempt was the last"
    assert retry.wait(1, failure(Refusal(429, {"retry-after": "7"}), [])) == 7
    assert retry.wait(1, failure(Refusal(429, {"Retry-After": "3600"}), [])) is None
    assert failure(Refusal(429, {"retry-after-ms": "1500"}), []).retry_after == 1.5
    assert failure(Refusal(503, {"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}), []).retry_after == 0
    assert failure(Refusal(503, {"retry-after": "soon"}), []).retry_after is None
    assert failure(ConnectionResetError("reset"), []).passing and failure(StreamCut("cut"), []).passing
    assert not failure(ValueError("garbage"), []).passing


def test_an_error_amid_a_stream_has_its_status():
    overloaded = Refusal(200, body={"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    said = failure(overloaded, [])
    assert (said.status, said.passing, said.cause) == (529, True, "529: Overloaded")


def test_a_key_is_in_no_cause():
    said = failure(Refusal(401, message="the key sk-secret is not known\nsecond line"), ["sk-secret"])
    assert said.cause == "401: the key *** is not known"


class Client:
    """Remembers what it was asked."""

    def __init__(self):
        self.chat = self.completions = self.messages = self
        self.asked = None

    def with_options(self, max_retries):
        assert max_retries == 0, "retries are the conversation's"
        return self

    def create(self, **request):
        self.asked = request


def test_options_go_along():
    client = Client()
    ChatModel(client, "m", temperature=0.5, extra_body={"top_k": 3}).open("", [User("hi")], ())
    assert client.asked["temperature"] == 0.5 and "tools" not in client.asked
    assert client.asked["extra_body"] == {"stream_options": {"include_usage": True}, "top_k": 3}
    AnthropicModel(client, "m", max_tokens=10, thinking={"type": "disabled"}).open("be kind", [User("hi")], ())
    assert client.asked["max_tokens"] == 10 and client.asked["system"] == "be kind" and client.asked["thinking"]


def test_prompts_of_granite():
    class Inference:
        deployment_id = None

        def __init__(self, model_id):
            self.model_id = model_id

        def agenerate_stream(self, prompt, params):
            return prompt

    turns = [User("one"), Assistant("two"), User("three")]
    old = WatsonxTextModel(Inference("ibm/granite-34b-code-instruct")).open("be kind", turns, ())
    assert old == "System:\nbe kind\n\nQuestion:\none\n\nAnswer:\ntwo\n\nQuestion:\nthree\n\nAnswer:\n"
    new = WatsonxTextModel(Inference("ibm/granite-3-3-8b-instruct")).open("", turns, ())
    assert new.startswith("<|start_of_role|>user<|end_of_role|>one<|end_of_text|>\n") and new.endswith("assistant<|end_of_role|>")
    with pytest.raises(TypeError, match="Fenced"):
        WatsonxTextModel(Inference("x")).open("", [Results(())], ())
