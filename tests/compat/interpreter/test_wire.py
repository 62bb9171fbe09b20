"""The interpreter's protocol, byte by byte: lines, statuses and texts that clients parse."""

import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

from conftest import Port


def test_ci_001_health(port):
    status, headers, text = port.ask("GET", "/health")
    assert (status, text, headers["content-type"]) == (200, '"OK"', "application/json")


def test_ci_002_lines_of_an_execution(own):
    port = Port(own())
    assert port.lines("1+1") == [
        {"type": "number_of_executions", "execution_count": 1},
        {"type": "result", "text": "2", "is_main_result": True, "extra": {}},
        {"type": "end_of_execution"},
    ]


def test_ci_003_a_body_of_another_shape(port):
    for body in ({}, {"code": 1}):
        status, _, text = port.ask("POST", "/execute", body)
        assert status == 422
        assert json.loads(text)["detail"][0]["loc"] == ["body", "code"]
    for body in (b"{", b"[1]", b'{"code": "1", "env_vars": {"A": 1}}', b'{"code": "1", "env_vars": {"A=B": "1"}}'):
        status, _, text = port.ask("POST", "/execute", body)
        assert status == 422, text
        assert json.loads(text)["detail"][0]["loc"][0] == "body"


def test_ci_004_a_context_and_a_language(port):
    body = {"code": "1", "context_id": "x", "language": "python"}
    status, headers, text = port.ask("POST", "/execute", body)
    assert (status, text) == (400, "Only one of context_id or language can be provided")
    assert headers["content-type"].startswith("text/plain")


def test_ci_005_a_context_that_is_not_there(port):
    for method, path, body in (
        ("POST", "/execute", {"code": "1", "context_id": "nope"}),
        ("POST", "/contexts/nope/restart", None),
        ("DELETE", "/contexts/nope", None),
    ):
        assert port.ask(method, path, body)[::2] == (404, "Context nope not found"), path
    assert port.ask("GET", "/nothing")[::2] == (404, '{"detail":"Not Found"}')


def test_ci_006_a_language_that_is_not_there(port):
    for path, body in (("/execute", {"code": "1", "language": "cobol"}), ("/contexts", {"language": "COBOL"})):
        status, _, text = port.ask("POST", path, body)
        assert status == 500
        assert text.startswith("Failed to create context") and '"short_message": "cobol not found"' in text
    assert port.ask("GET", "/health")[0] == 200


def test_ci_007_contexts_of_a_fresh_sandbox(own):
    status, _, text = Port(own()).ask("GET", "/contexts")
    contexts = json.loads(text)
    assert [(each["language"], each["cwd"]) for each in contexts] == [
        ("python", "/home/user"),
        ("javascript", "/home/user"),
    ]


def test_ci_008_a_new_context_is_the_last(port):
    status, _, text = port.ask("POST", "/contexts", {})
    made = json.loads(text)
    assert (status, made["language"], made["cwd"]) == (200, "python", "/home/user")
    assert json.loads(port.ask("GET", "/contexts")[2])[-1] == made
    port.ask("DELETE", f"/contexts/{made['id']}")


def test_ci_009_restart(port):
    made = json.loads(port.ask("POST", "/contexts", {"language": "python"})[2])["id"]
    port.lines("x = 1", context_id=made)
    assert port.ask("POST", f"/contexts/{made}/restart")[::2] == (200, "null")
    lines = port.lines("x", context_id=made)
    assert lines[0] == {"type": "number_of_executions", "execution_count": 1}
    assert (lines[1]["name"], lines[1]["value"]) == ("NameError", "name 'x' is not defined")
    assert made in [each["id"] for each in json.loads(port.ask("GET", "/contexts")[2])]
    port.ask("DELETE", f"/contexts/{made}")


def test_ci_010_a_removed_context_is_gone(port, sandbox):
    made = json.loads(port.ask("POST", "/contexts", {})[2])["id"]
    (pid,) = [line["text"] for line in port.lines("import os; os.getpid()", context_id=made) if line["type"] == "result"]
    assert port.ask("DELETE", f"/contexts/{made}")[::2] == (200, "null")
    assert made not in port.ask("GET", "/contexts")[2]
    assert port.ask("POST", "/execute", {"code": "1", "context_id": made})[::2] == (404, f"Context {made} not found")
    time.sleep(1)
    assert sandbox.commands.run(f"test -e /proc/{pid} && echo there || echo gone").stdout == "gone\n"


def test_ci_011_output_has_times_and_errors_have_texts(port):
    lines = port.lines("import sys\nprint('a')\nprint('b', file=sys.stderr)\nprint('c')\n1/0")
    assert [(line["type"], line.get("text")) for line in lines[1:4]] == [("stdout", "a\n"), ("stderr", "b\n"), ("stdout", "c\n")]
    for line in lines[1:4]:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", line["timestamp"])
    error = lines[4]
    assert (error["name"], error["value"]) == ("ZeroDivisionError", "division by zero")
    assert "\x1b" not in error["traceback"] and "line 5" in error["traceback"]


def test_ci_012_silence_is_kept_alive(port):
    lines = port.lines("import time; time.sleep(12)")
    kinds = [line["type"] for line in lines]
    assert kinds == ["number_of_executions", "keepalive", "keepalive", "end_of_execution"]


def test_ci_013_a_browser_may_ask_first(port):
    asked = {
        "Origin": "http://x",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "x-access-token,x-anything",
    }
    status, headers, _ = port.ask("OPTIONS", "/execute", headers=asked)
    assert status == 200
    assert headers["access-control-allow-origin"] == "*"
    assert "x-anything" in headers["access-control-allow-headers"]


def test_ci_014_contexts_need_the_traffic_token_only(own):
    sandbox = own(network={"allow_public_traffic": False})
    port = Port(sandbox)
    assert port.ask("GET", "/contexts")[0] == 403
    assert port.ask("GET", "/contexts", headers={"E2B-Traffic-Access-Token": "wrong"})[0] == 403
    right = {"E2B-Traffic-Access-Token": sandbox.traffic_access_token}
    assert port.ask("GET", "/contexts", headers=right)[0] == 200
    assert sandbox.run_code("1+1").text == "2"


def test_ci_015_one_context_for_ten_at_once(own):
    port = Port(own())
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda n: port.lines(f"echo {n}", language="bash"), range(10)))
    for number, lines in enumerate(answers):
        assert [line["text"] for line in lines if line["type"] == "stdout"] == [f"{number}\n"]
    languages = [each["language"] for each in json.loads(port.ask("GET", "/contexts")[2])]
    assert languages.count("bash") == 1


def test_ci_016_large_output_arrives_whole(port):
    lines = port.lines("print('x' * (20 << 20))")
    text = "".join(line["text"] for line in lines if line["type"] == "stdout")
    assert len(text) == (20 << 20) + 1
    lines = port.lines("from IPython.display import HTML\nHTML('y' * (10 << 20))")
    (result,) = [line for line in lines if line["type"] == "result"]
    assert len(result["html"]) == 10 << 20


def test_ci_017_many_executions_on_one_connection(port):
    connection = port.connection()
    took = []
    for _ in range(1000):
        start = time.monotonic()
        status, _, text = port.ask("POST", "/execute", {"code": "1+1"}, connection=connection)
        took.append(time.monotonic() - start)
        assert status == 200 and '"text":"2"' in text
    # Five times the figure.
    assert sorted(took)[500] < 0.05
    connection.close()


def test_sdk_16_contexts_without_the_token_of_the_daemon(own):
    sandbox = own()
    port = Port(sandbox)
    made = json.loads(port.ask("POST", "/contexts", {"language": "python"})[2])
    assert port.ask("GET", "/contexts")[0] == 200
    assert port.ask("POST", f"/contexts/{made['id']}/restart")[0] == 200
    assert port.ask("DELETE", f"/contexts/{made['id']}")[0] == 200
    # The daemon's own port does ask for it.
    daemon = port.to | {"E2b-Sandbox-Port": "49983"}
    connection = port.connection()
    connection.request("GET", "/files?path=/etc/hostname", headers=daemon)
    assert connection.getresponse().status == 401
    connection.close()
