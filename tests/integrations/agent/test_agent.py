"""What the agent does with whatever a model says, what it leaves, and how it ends."""

import json
import os
import signal
import subprocess
import time

import pytest

from conftest import CANARY, environment, results, sandboxes, scenario
from served import BINARY, TEMPLATE, kill


def outcome(ran) -> dict:
    return json.loads(ran.out)


def test_the_demo_needs_no_key(tmp_path):
    command = [BINARY, "agent", "Say hello.", "--provider", "demo", "--template", TEMPLATE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(None), cwd=tmp_path)
    assert done.returncode == 0, done
    assert "5050" in done.stdout


def test_text_is_passed_on_as_it_comes(fake, tmp_path):
    command = [BINARY, "agent", "[scenario: slow] x", "--template", TEMPLATE]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment(fake), cwd=tmp_path)
    times = []
    while process.stdout.read1(4096):
        times.append(time.monotonic())
    assert process.wait(30) == 0
    # Ten pieces, a tenth of a second apart.
    assert len(times) >= 5
    assert times[-1] - times[0] > 0.4


def test_several_calls_at_once(agent, fake):
    ran = agent("[scenario: parallel] x", "--json")
    assert (ran.code, outcome(ran)["calls"]) == (0, 3), ran
    assert [text.strip() for text in results(fake.answers()[1])] == ["1", "2", "3"]


def test_commands_run_at_once_and_code_takes_turns(agent, fake):
    def command(mine: str, other: str) -> dict:
        return {"name": "run_command", "arguments": {"command": f"touch {mine}; until [ -e {other} ]; do sleep 0.05; done; echo {mine}"}}

    code = ["import time; time.sleep(1); x = 1", "x = x * 10 + 2", "x"]
    ran = agent(scenario({"calls": [command("a", "b"), command("b", "a"), *({"code": one} for one in code)]}, {"text": "Done."}), "--json")
    assert (ran.code, outcome(ran)["calls"]) == (0, 5), ran
    assert [text.strip() for text in results(fake.answers()[1])] == ["a", "b", "[no output]", "[no output]", "12"]
    # Each call is announced with its number, and so is output that does not belong to the one announced last.
    assert "[call 5] [run_code]\nx" in ran.err and "\n[call 1]\na" in ran.err, ran


@pytest.mark.parametrize("provider", ["anthropic", "groq"])
@pytest.mark.parametrize(
    "name, told",
    [
        ("malformed", "the arguments of run_code are no JSON"),
        ("wrong-arguments", "the arguments of run_code do not fit: missing field `code`"),
        ("unknown-tool", "there is no tool `no_such_tool`"),
    ],
)
def test_what_a_model_does_wrong_is_told_to_it(agent, fake, provider, name, told):
    ran = agent(f"[scenario: {name}] x", "--model", "fake-x", "--json", provider=provider)
    # An unknown tool is all that its scenario calls, so the last call has failed.
    assert outcome(ran)["ending"] == ("last_call_failed" if name == "unknown-tool" else "finished"), ran
    assert told in json.dumps(fake.answers()[1]["body"]["messages"][-1])
    assert [request["violation"] for request in fake.answers()] == [None] * len(fake.answers())


@pytest.mark.parametrize("name", ["endless", "malformed-always"])
def test_a_model_that_never_stops(agent, fake, name):
    ran = agent(f"[scenario: {name}] x", "--max-turns", "3", "--json")
    assert (ran.code, outcome(ran)["ending"], outcome(ran)["turns"]) == (1, "turn_limit", 3), ran
    assert len(fake.answers()) == 3
    assert "hint: more are allowed with --max-turns" in ran.err


def test_a_limit_of_cost(agent, fake):
    ran = agent("[scenario: endless] x", "--price-input", "1000000", "--price-output", "0", "--max-cost", "1", "--json")
    assert (ran.code, outcome(ran)["ending"]) == (1, "cost_limit"), ran
    assert outcome(ran)["cost"] >= 1
    assert len(fake.answers()) == 1


def test_a_limit_of_time(agent):
    began = time.monotonic()
    ran = agent("[scenario: stall] x", "--max-seconds", "2", "--json")
    assert (ran.code, outcome(ran)["ending"]) == (1, "time_limit"), ran
    assert time.monotonic() - began < 30


def test_code_without_end(agent, fake):
    ran = agent("[scenario: endless-code] x", "--call-seconds", "2", "--json")
    assert (ran.code, outcome(ran)["ending"]) == (1, "last_call_failed"), ran
    assert "it was interrupted after 2 s" in json.dumps(fake.answers()[1]["body"]["messages"][-1])


def test_code_that_fails(agent, fake):
    ran = agent("[scenario: raise] x", "--json")
    assert (ran.code, outcome(ran)["ending"]) == (1, "last_call_failed"), ran
    assert "error: ValueError: on purpose" in json.dumps(fake.answers()[1]["body"]["messages"][-1])


def test_ten_megabytes_of_output(agent, fake):
    ran = agent("[scenario: loud] x", "--json")
    assert (ran.code, outcome(ran)["ending"]) == (0, "finished"), ran.err[-500:]
    told = json.dumps(fake.answers()[1]["body"]["messages"][-1])
    assert "characters left out" in told
    assert len(told) < 30_000


def test_ten_megabytes_of_text(agent):
    ran = agent("[scenario: big] x")
    assert ran.code == 0, ran
    assert len(ran.out) >= 10_000_000


def test_a_chart_is_saved(agent, tmp_path):
    ran = agent("[scenario: chart] x", "--json")
    assert ran.code == 0, ran
    assert (tmp_path / "output/chart-1.png").read_bytes().startswith(b"\x89PNG")
    assert outcome(ran)["saved"] == [str(tmp_path / "output/chart-1.png")]


def pictures(fake) -> list[str]:
    """In which places of the second question there is the picture that was saved."""
    return [message["role"] for message in fake.answers()[1]["body"]["messages"] if "iVBORw0KGgo" in json.dumps(message)]


@pytest.mark.parametrize(
    "provider, flags, places",
    [
        ("anthropic", [], ["user"]),
        ("anthropic", ["--charts", "told"], []),
        ("groq", [], []),
        ("groq", ["--charts", "seen"], ["user"]),
        ("compatible", ["--model", "llama-4-x"], ["user"]),
        ("mistral", ["--charts", "seen"], ["user"]),
    ],
)
def test_a_model_that_sees_gets_the_chart(agent, fake, provider, flags, places):
    task = "[scenario: fenced]\n```python\nimport matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\n```" if provider == "mistral" else "[scenario: chart] x"
    ran = agent(task, *flags, provider=provider)
    assert ran.code == 0, ran
    assert pictures(fake) == places
    assert ("you see 1 of them" in json.dumps(fake.answers()[1]["body"]["messages"])) == bool(places)
    assert [request["violation"] for request in fake.answers()] == [None, None]


def test_a_model_that_cannot_be_shown_a_chart(agent):
    ran = agent("x", "--charts", "seen", "--tools", "called", provider="mistral")
    assert ran.code == 2 and "mistral takes no pictures beside the results of tools" in ran.err, ran


def test_a_chart_per_line(agent, tmp_path):
    ran = agent("[scenario: charts] x")
    assert ran.code == 0, ran
    assert len(list((tmp_path / "output").glob("chart-*.png"))) == 20


def test_files_go_in_and_come_out(agent, tmp_path):
    (tmp_path / "numbers.csv").write_text("1\n2\n3\n")
    code = "total = sum(map(int, open('/home/user/numbers.csv')))\nimport os\nos.makedirs('/home/user/sub', exist_ok=True)\n"
    code += "open('/home/user/sub/total.txt', 'w').write(str(total))\n"
    code += "os.symlink('/etc/shadow', '/home/user/link')\nopen('/home/user/.hidden', 'w').write('x')"
    ran = agent(scenario({"calls": [{"code": code}]}, {"text": "Done."}), "--files", str(tmp_path / "numbers.csv"))
    assert ran.code == 0, ran
    assert (tmp_path / "output/sub/total.txt").read_text() == "6"
    found = sorted(str(path.relative_to(tmp_path / "output")) for path in (tmp_path / "output").rglob("*") if path.is_file())
    # The link leads to a file of the sandbox that its user may not read, or may: never to one of this machine.
    assert [name for name in found if name != "link"] == ["sub/total.txt"]
    if "link" in found:
        assert (tmp_path / "output/link").read_text() != open("/etc/shadow").read()


def test_every_tool(agent, fake):
    turns = [
        {"calls": [{"name": "write_file", "arguments": {"path": "notes/a.txt", "content": "first line\n"}}]},
        {"calls": [{"name": "read_file", "arguments": {"path": "notes/a.txt"}}, {"name": "list_files", "arguments": {"path": "notes"}}]},
        {"calls": [{"name": "run_command", "arguments": {"command": "wc -c < notes/a.txt; exit 3"}}]},
        {"calls": [{"name": "read_file", "arguments": {"path": "/nowhere"}}]},
        {"calls": [{"name": "run_command", "arguments": {"command": "touch empty"}}]},
        {"calls": [{"name": "read_file", "arguments": {"path": "empty"}}]},
        {"text": "Done."},
    ]
    agent(scenario(*turns))
    told = [results(request) for request in fake.answers()[1:]]
    assert told[0] == ["11 bytes written to notes/a.txt"]
    assert told[1] == ["first line\n", "/home/user/notes/a.txt (11 bytes)"]
    assert told[2] == ["11\n\n[exit status 3]"]
    assert "/nowhere" in told[3][0] and told[3][0].startswith("error: ")
    assert told[5] == [""]
    failed = [block["is_error"] for request in fake.answers()[1:] for block in request["body"]["messages"][-1]["content"]]
    assert failed == [False, False, False, True, True, False, False]


def test_without_an_interpreter_commands_work(agent, fake):
    ran = agent(scenario({"calls": [{"code": "1"}]}, {"calls": [{"name": "run_command", "arguments": {"command": "echo $((6 * 7))"}}]}, {"text": "Done."}), template="base")
    assert ran.code == 0, ran
    told = [results(request) for request in fake.answers()[1:]]
    assert "its template has no code interpreter" in told[0][0]
    assert told[1] == ["42\n"]


def test_nothing_runs_that_is_not_approved(agent, fake):
    ran = agent("[scenario: tool] x", "--approve", "never", "--json")
    assert (ran.code, outcome(ran)["calls"]) == (1, 0), ran
    assert "the user did not allow this call" in json.dumps(fake.answers()[1]["body"]["messages"][-1])


def started(fake, tmp_path, *flags: str) -> subprocess.Popen:
    """An agent whose code sleeps, with its sandbox."""
    task = scenario({"calls": [{"code": "import time; print('begun', flush=True); time.sleep(60)"}]})
    command = [BINARY, "agent", task, "--template", TEMPLATE, "--json", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(fake), cwd=tmp_path)
    while b"begun" not in process.stderr.readline():
        assert process.poll() is None
    assert len(sandboxes()) == 1
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(fake, tmp_path, number):
    process = started(fake, tmp_path)
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out)["ending"] == "cancelled"
    assert sandboxes() == []


def test_a_sandbox_that_is_killed(fake, tmp_path):
    process = started(fake, tmp_path)
    kill(sandboxes()[0])
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert json.loads(out)["ending"] == "sandbox_lost"


def test_keys_are_nowhere(agent, fake, tmp_path):
    code = "import os, subprocess\nprint(dict(os.environ))\nprint(open('/proc/1/cmdline').read())\n"
    code += "print(subprocess.run('env; cat /proc/[0-9]*/environ; grep -rs canary- /home /tmp /root /etc; ps aux', shell=True, capture_output=True).stdout)"
    ran = agent(scenario({"calls": [{"code": code}]}, {"text": "Done. {{result}}"}))
    assert ran.code == 0, ran
    # The half that the search itself names is there, the whole is not.
    assert "canary-" in ran.out + ran.err
    for text in (ran.out, ran.err, json.dumps(fake.requests())):
        assert CANARY not in text


def test_a_key_in_a_providers_words_is_not_shown(agent):
    ran = agent(scenario({"error": {"status": 400, "message": f"bad key {CANARY}!"}}))
    assert ran.code == 1, ran
    assert "bad key [key]!" in ran.err
    assert CANARY not in ran.err + ran.out


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--provider", "nobody"], "there is no provider `nobody`"),
        (["--files", "/nowhere/x"], "`/nowhere/x` is no file"),
        (["--approve", "ask"], "--approve ask needs a terminal"),
        (["--max-turns", "0"], "invalid value '0'"),
        (["--max-cost", "1"], "--price-input"),
        (["--keys", "/nowhere/keys.toml"], "failed to read `/nowhere/keys.toml`"),
    ],
)
def test_what_is_asked_wrong(fake, tmp_path, flags, told):
    command = [BINARY, "agent", "x", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment(fake), stdin=subprocess.DEVNULL, cwd=tmp_path)
    assert done.returncode in (1, 2), done
    assert told in done.stderr, done
    assert fake.requests() == []


def test_without_a_key(fake, tmp_path):
    done = subprocess.run([BINARY, "agent", "x"], capture_output=True, text=True, timeout=30, env=environment(None) | {"HOME": str(tmp_path)}, cwd=tmp_path)
    assert done.returncode == 2, done
    assert "error: anthropic needs a key" in done.stderr
    assert "ANTHROPIC_API_KEY" in done.stderr


def test_keys_from_a_file(fake, tmp_path):
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[groq]\napi_key = "{CANARY}"\nbase_url = "{fake.url}/groq"\n')
    command = [BINARY, "agent", "[scenario: answer] x", "--provider", "groq", "--keys", str(keys), "--template", TEMPLATE]

    def run():
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(None), cwd=tmp_path)

    keys.chmod(0o644)
    refused = run()
    assert refused.returncode == 2 and "can be read by other users" in refused.stderr, refused
    keys.chmod(0o600)
    assert run().returncode == 0
    keys.write_text(f'[groq]\napi_kye = "{CANARY}"\n')
    refused = run()
    assert refused.returncode == 2 and "line 2: unknown field `api_kye`" in refused.stderr, refused
    assert CANARY not in refused.stderr


def test_the_template_of_the_environment(agent):
    ran = agent("x", template=None, variables={"SOULBOX_TEMPLATE": "no-such-template"})
    assert ran.code == 1 and "no-such-template" in ran.err, ran
    ran = agent("[scenario: answer] x", variables={"SOULBOX_TEMPLATE": "no-such-template"})
    assert ran.code == 0, f"the flag wins: {ran}"


def test_a_template_that_is_not_there(agent):
    ran = agent("x", template="no-such-template")
    assert ran.code == 1, ran
    assert "no-such-template" in ran.err and "hint: " in ran.err, ran
    assert os.environ["E2B_API_KEY"] not in ran.err
