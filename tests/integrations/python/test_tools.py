"""Each tool in a sandbox, in the shapes of providers; and what goes wrong in code is a result."""

import asyncio
import json
import time
from types import SimpleNamespace

import pytest
from conftest import PNG, TEMPLATE, please
from e2b_code_interpreter import AsyncSandbox, Sandbox
from soulbox_agents import AsyncToolbox, CallFinished, Output, Settings, Shown, Toolbox, ToolCall

CHART = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n"


def call(name: str, **arguments) -> ToolCall:
    return ToolCall("call-1", name, arguments)


def run(sandbox: Sandbox, name: str, settings: Settings | None = None, **arguments):
    return Toolbox(sandbox, settings=settings).run(call(name, **arguments))


def test_shapes_of_anthropic(sandbox):
    box = Toolbox(sandbox)
    assert [set(one) for one in box.anthropic()] == [{"name", "description", "input_schema"}] * 5
    block = SimpleNamespace(type="tool_use", id="toolu_1", name="run_code", input={"code": CHART + "'drawn'"})
    for given in (block, vars(block)):
        answer = box.execute(given)
        assert (answer["type"], answer["tool_use_id"], answer["is_error"]) == ("tool_result", "toolu_1", False)
        text, image = answer["content"]
        assert "drawn" in text["text"] and image["source"]["media_type"] == "image/png"


def test_shapes_of_openai(sandbox):
    box = Toolbox(sandbox)
    assert {one["type"] for one in box.openai()} == {"function"}
    function = {"name": "run_code", "arguments": json.dumps({"code": "6 * 7"})}
    objects = SimpleNamespace(id="call_1", function=SimpleNamespace(**function))
    parsed = {"id": "call_1", "function": {"name": "run_code", "arguments": {"code": "6 * 7"}}}
    for given in (objects, {"id": "call_1", "function": function}, parsed):
        assert box.execute(given) == {"role": "tool", "tool_call_id": "call_1", "name": "run_code", "content": "42"}
    with pytest.raises(TypeError, match="neither"):
        box.execute("run_code")


def test_shapes_with_an_event_loop():
    async def main() -> None:
        async with await AsyncSandbox.create(TEMPLATE, timeout=120) as sandbox:
            box = AsyncToolbox(sandbox)
            answer = await box.execute({"type": "tool_use", "id": "1", "name": "run_code", "input": {"code": "6 * 7"}})
            assert answer["content"][0]["text"] == "42"
            assert await box.execute_fenced("No code here.") is None
            assert await box.execute_fenced(please("6 * 7")) == "Result of code block 1:\n42"

    asyncio.run(main())


def test_fenced_blocks_in_several_languages(sandbox):
    answer = "```python\nkept = 5\n```\nand\n~~~js\n6 * 7\n~~~\n```bash\necho $((5 + 5))\n```\n```text\nno code\n```\n```py\nkept"
    told = Toolbox(sandbox).execute_fenced(answer)
    assert "block 1:\n(no output)" in told and "block 2:\n42" in told and "block 3:\n10" in told
    assert "block 4 (failed):\nthe code block has no end" in told
    assert Toolbox(sandbox).execute_fenced("```python\n1\n```", languages=("bash",)) is None
    assert Toolbox(sandbox).execute_fenced("`inline`") is None


def test_files_and_commands(sandbox):
    assert run(sandbox, "write_file", path="work/notes.txt", content="äöü\n").text == "wrote 7 bytes to work/notes.txt"
    assert run(sandbox, "read_file", path="work/notes.txt").text == "äöü\n"
    assert run(sandbox, "list_files", path="work").text == "name,bytes\nnotes.txt,7"
    assert "work/" in run(sandbox, "list_files").text
    assert run(sandbox, "run_command", command="cat work/notes.txt; echo oops >&2").text == "äöü\nstderr:\noops"
    failed = run(sandbox, "run_command", command="echo before; exit 3")
    assert (failed.text, failed.failed, failed.exit_code) == ("before\nexit code 3", True, 3)
    assert run(sandbox, "run_command", command="true").text == "(no output)"
    assert run(sandbox, "read_file", path="nowhere").failed
    assert run(sandbox, "read_file", path="work").text == "work is a directory"


def test_files_that_are_not_text(sandbox):
    run(sandbox, "run_command", command="head -c 300 /dev/zero > zeros && printf '\\377\\376\\000' > bytes && truncate -s 20M large")
    assert run(sandbox, "read_file", path="bytes").text == "bytes is not text (3 bytes)"
    large = run(sandbox, "read_file", path="large")
    assert large.failed and "20971520 bytes, more than 16000000" in large.text
    run(sandbox, "run_code", code="import matplotlib.pyplot as plt\nfigure = plt.figure()\nfigure.savefig('saved.png')\nplt.close()")
    image = run(sandbox, "read_file", path="saved.png")
    assert image.pictures[0].data.startswith(PNG) and not image.failed


def test_what_code_raises_is_one_line(sandbox):
    result = run(sandbox, "run_code", code="def broken():\n    raise ValueError('on purpose\\nand more')\n\nbroken()")
    assert result.failed
    assert result.text == "ValueError: on purpose (line 4: broken())"
    assert run(sandbox, "run_code", code="def").text.startswith("SyntaxError: ")
    assert run(sandbox, "run_code", code="(exit 4)", language="bash").text == "exit code 4"


def test_arguments_that_make_no_sense(sandbox):
    cases = {
        "the argument `code` is missing": call("run_code"),
        "the argument `code` has to be a string": call("run_code", code=5),
        "there is no argument `speed`, only code, language": call("run_code", code="1", speed="9"),
        "`language` has to be one of python, javascript, typescript, bash": call("run_code", code="1", language="cobol"),
        "there is no tool 'fly', only run_code, run_command, read_file, write_file, list_files": call("fly"),
        "the arguments are not a JSON object": ToolCall.parse("1", "run_code", "[1]"),
    }
    for text, given in cases.items():
        result = Toolbox(sandbox).run(given)
        assert (result.text, result.failed, result.lost) == (text, True, False)
    malformed = Toolbox(sandbox).execute({"id": "1", "function": {"name": "run_code", "arguments": "{not json"}})
    assert malformed["content"].startswith("the arguments are not JSON: ")


def test_code_without_end_is_stopped_and_keeps_its_variables(sandbox):
    run(sandbox, "run_code", code="kept = 42")
    began = time.monotonic()
    result = run(sandbox, "run_code", Settings(timeout=1), code="while True: pass")
    assert (result.text, result.failed) == ("stopped after 1 s; variables are kept", True)
    assert run(sandbox, "run_code", code="kept").text == "42"
    assert time.monotonic() - began < 20


def test_a_command_without_end_is_ended(sandbox):
    result = run(sandbox, "run_command", Settings(timeout=1), command="exec sleep 4567")
    assert (result.text, result.failed) == ("stopped after 1 s", True)
    assert run(sandbox, "run_command", command="pgrep -fx 'sleep 4567' || echo none").text == "none"


def test_ten_megabytes_are_cut_and_the_cut_is_said(sandbox):
    heard = []
    box = Toolbox(sandbox, on_event=heard.append)
    result = box.run(call("run_code", code="print('begin'); print('x' * 10_000_000); print('end')"))
    assert not result.failed and len(result.text) < 4 * 4000 + 100
    assert result.text.startswith("begin") and result.text.endswith("end") and "characters left out ...]" in result.text
    assert sum(len(event.text) for event in heard if isinstance(event, Output)) == 10_000_011, "the user sees all of it"


@pytest.mark.parametrize("tool", ["run_code", "run_command"])
def test_a_flood_is_stopped(sandbox, tool):
    settings = Settings(output_bytes=2_000_000)
    arguments = {"code": "while True: print('y' * 1000)"} if tool == "run_code" else {"command": "yes"}
    began = time.monotonic()
    result = run(sandbox, tool, settings, **arguments)
    assert (result.text, result.failed) == ("stopped, because it printed more than 2000000 bytes", True)
    assert run(sandbox, "run_code", code="1").text == "1"
    assert run(sandbox, "run_command", command="pgrep -x yes || echo none").text == "none"
    assert time.monotonic() - began < 20


def test_a_table_is_cut_to_whole_rows(sandbox):
    code = "import pandas\npandas.DataFrame({'n': range(10_000), 'square': [n * n for n in range(10_000)]})"
    result = run(sandbox, "run_code", Settings(tokens=500), code=code)
    lines = result.text.splitlines()
    shown = len(lines) - 2
    assert lines[0] == "n,square" and lines[1] == "0,0" and lines[-1] == f"[{shown} of 10000 rows shown]"
    assert lines[-2] == f"{shown - 1},{(shown - 1) ** 2}"
    assert 100 < shown < 400 and len(result.text) <= 500 * 4
    assert run(sandbox, "run_code", code="pandas.DataFrame({'a': [1, 2]})").text == "a\n1\n2"


def test_charts_beyond_the_limit_are_said(sandbox):
    heard = []
    result = Toolbox(sandbox, on_event=heard.append).run(call("run_code", code=CHART * 7))
    assert len(result.pictures) == 4 and "[3 more of 7 images are left out here]" in result.text
    assert len([event for event in heard if isinstance(event, Shown)]) == 7, "the user sees all of them"
    assert isinstance(heard[-1], CallFinished)


def test_output_is_heard_as_it_comes(sandbox):
    times = []
    box = Toolbox(sandbox, on_event=lambda event: times.append(time.monotonic()) if isinstance(event, Output) else None)
    box.run(call("run_code", code="import time\nfor n in range(3):\n    print(n, flush=True)\n    time.sleep(0.4)"))
    assert len(times) == 3 and times[2] - times[0] > 0.6


@pytest.mark.parametrize("tool", ["run_code", "run_command"])
def test_what_a_callback_raises_is_raised(sandbox, tool):
    def angry(event) -> None:
        if isinstance(event, Output):
            raise BrokenPipeError("the terminal is gone")

    with pytest.raises(BrokenPipeError, match="the terminal is gone"):
        Toolbox(sandbox, on_event=angry).run(call(tool, **{"code": "print(1)"} if tool == "run_code" else {"command": "echo 1"}))
    assert run(sandbox, "run_code", code="2").text == "2"


@pytest.mark.parametrize("name", ["run_code", "run_command", "read_file"])
def test_a_sandbox_that_is_gone_is_said(name):
    arguments = {"run_code": {"code": "1"}, "run_command": {"command": "true"}, "read_file": {"path": "x"}}[name]
    sandbox = Sandbox.create(TEMPLATE, timeout=60)
    sandbox.kill()
    result = run(sandbox, name, **arguments)
    assert result.failed and result.lost and result.text.startswith("the sandbox is gone: "), result
