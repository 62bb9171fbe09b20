"""What code does to the interpreter, and what is left of it afterwards."""

import json
import time

from conftest import Port


def until_it_answers(sandbox, within: float) -> float:
    start = time.monotonic()
    while sandbox.run_code("1+1").text != "2":
        assert time.monotonic() - start < within
    return time.monotonic() - start


def test_ci_040_memory_that_is_not_there(own):
    sandbox = own()
    execution = sandbox.run_code("held = bytearray(6 << 30)\nfor at in range(0, len(held), 4096): held[at] = 1")
    assert execution.error.name in ("ContextRestarting", "MemoryError")
    assert sandbox.run_code("1+1").text == "2"
    assert sandbox.commands.run("echo alive").stdout == "alive\n"


def test_ci_053_bash_keeps_its_state(sandbox):
    sandbox.run_code("cd /tmp; export A=1; declare -A map; map[k]=v", language="bash")
    execution = sandbox.run_code("pwd; echo $A ${map[k]}; ls /nope", language="bash")
    text = "".join(execution.logs.stdout)
    assert text.startswith("/tmp\n1 v\n") and "No such file" in text
    assert (execution.error.name, execution.error.value) == ("", "2")
    assert sandbox.run_code("false", language="bash").error.value == "1"
    variables = {"QUOTED": "it's \"two\"\nlines $HOME"}
    execution = sandbox.run_code('printf %s "$QUOTED"', language="bash", envs=variables)
    assert "".join(execution.logs.stdout) == variables["QUOTED"]
    assert sandbox.run_code("echo ${QUOTED-unset}", language="bash").logs.stdout == ["unset\n"]


def test_ci_057_the_server_is_killed(own):
    sandbox = own()
    sandbox.run_code("x = 1")
    sandbox.commands.run("kill -9 $(pgrep -f lib/soulbox/[i]nterpreter)", user="root")
    assert until_it_answers(sandbox, 5 * 5) < 5 * 5
    languages = [each.language for each in sandbox.list_code_contexts()]
    assert languages[:2] == ["python", "javascript"]
    assert sandbox.run_code("x").error.name == "NameError"


def test_ci_058_a_kernel_is_killed(own):
    sandbox = own()
    pid = sandbox.run_code("import os; os.getpid()").text
    sandbox.commands.run(f"kill -9 {pid}", user="root")
    start = time.monotonic()
    assert sandbox.run_code("1+1").text == "2"
    assert time.monotonic() - start < 3 * 5


def test_ci_063_contexts_leave_nothing(own):
    sandbox = own()
    port = Port(sandbox)
    sandbox.run_code("1")
    count = "ls /proc | grep -c '^[0-9]'; ls /proc/$(pgrep -f lib/soulbox/[i]nterpreter)/fd | wc -l; ls -R /run /tmp | wc -l"
    before = sandbox.commands.run(count, user="root").stdout
    for _ in range(50):
        made = json.loads(port.ask("POST", "/contexts", {})[2])["id"]
        assert port.ask("DELETE", f"/contexts/{made}")[0] == 200
    for _ in range(50):
        after = sandbox.commands.run(count, user="root").stdout
        if after == before:
            break
        time.sleep(0.1)
    assert after == before


def test_ci_064_forks_do_not_share_their_random_numbers(sandbox):
    code = "import random, numpy, uuid\n[random.random(), float(numpy.random.rand()), str(uuid.uuid4())]"
    seen = []
    for _ in range(2):
        context = sandbox.create_code_context()
        seen.append(sandbox.run_code(code, context=context).results[0].json)
        sandbox.remove_code_context(context)
    assert all(one != other for one, other in zip(*seen))


def test_a_cell_that_closes_its_output(sandbox):
    sandbox.run_code("import os; os.close(1); os.close(2)")
    assert sandbox.run_code("print('again')").logs.stdout == ["again\n"]
    sandbox.run_code("import sys; sys.stdout = None")
    assert sandbox.run_code("print('and again'); 3").text == "3"
    sandbox.run_code("sys.stdout = sys.__stdout__")


def test_bytes_that_are_no_text(sandbox):
    execution = sandbox.run_code(r"import os; os.write(1, b'a\xff\xe2\x82\xac\n'); None")
    assert execution.logs.stdout == ["a\ufffd\u20ac\n"]


def test_output_of_an_endless_loop_is_bounded(sandbox):
    context = sandbox.create_code_context()
    heard = 0

    class Enough(Exception):
        pass

    def hear(message):
        nonlocal heard
        heard += len(message.line)
        if heard > 10 << 20:
            raise Enough

    try:
        sandbox.run_code("while True: print('x' * 1000)", context=context, on_stdout=hear)
    except Enough:
        pass
    assert heard > 10 << 20
    assert sandbox.run_code("1+1", context=context, timeout=30).text == "2"
    sandbox.remove_code_context(context)
