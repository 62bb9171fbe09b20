"""`GET /ws/pty`: a terminal for browsers, driven by a plain WebSocket client through the ingress."""

import base64
import json
import os
import time
import urllib.parse

import pytest
from wire import Wire
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

PROTOCOL = "soulbox.pty.v1"


class Terminal:
    """What a page does: bytes in and out, and JSON beside them."""

    def __init__(self, sandbox, headers: dict | None = None, subprotocols=None, **query) -> None:
        address = os.environ["E2B_SANDBOX_URL"].replace("http", "ws", 1) + "/ws/pty?" + urllib.parse.urlencode(query)
        routed = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
        self.context = connect(
            address, additional_headers=routed | (headers or {}), subprotocols=subprotocols, open_timeout=30, proxy=None
        )
        self.socket = self.context.__enter__()
        self.shown, self.notices = b"", []

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *raised) -> None:
        self.context.__exit__(*raised)

    def read(self) -> None:
        message = self.socket.recv(timeout=30)
        if isinstance(message, bytes):
            self.shown += message
        else:
            self.notices.append(json.loads(message))

    def pid(self) -> int:
        while not self.notices:
            self.read()
        assert self.notices[0]["type"] == "start"
        return self.notices[0]["pid"]

    def type(self, text: str) -> None:
        self.socket.send(text.encode())

    def until(self, expected: bytes) -> None:
        while expected not in self.shown:
            self.read()

    def notice(self, kind: str) -> dict:
        while (found := [notice for notice in self.notices if notice["type"] == kind]) == []:
            self.read()
        return found[-1]

    def closed(self) -> tuple[int, str]:
        with pytest.raises(ConnectionClosed) as raised:
            while True:
                self.read()
        return raised.value.rcvd.code, raised.value.rcvd.reason


def token(sandbox) -> str:
    return sandbox._envd_access_token


def test_input_output_sizes_and_the_end(sandbox):
    with Terminal(sandbox, access_token=token(sandbox), cols=91, rows=31) as terminal:
        pid = terminal.pid()
        assert pid in [process.pid for process in sandbox.commands.list()]
        terminal.type("stty size; echo $TERM-$(id -un)-$(pwd)\n")
        terminal.until(b"31 91")
        terminal.until(b"xterm-256color-user-/home/user")
        terminal.socket.send(json.dumps({"type": "resize", "cols": 120, "rows": 40}))
        terminal.type("stty size\n")
        terminal.until(b"40 120")
        # Ready before it says so: an interrupt that comes before the program does is nobody's.
        terminal.type("sh -c 'trap \"echo cau\"\"ght; exit\" INT; printf \"b\\303\\244r\\n\"; while :; do sleep 1; done'\n")
        terminal.until("bär".encode())
        terminal.type("\x03")
        terminal.until(b"caught")
        terminal.type("exit 7\n")
        assert terminal.notice("exit") == {"type": "exit", "exitCode": 7, "exited": True, "status": "exit status 7"}
        assert terminal.closed() == (4007, "exit status 7")


def test_close_codes(sandbox):
    with Terminal(sandbox, access_token=token(sandbox)) as terminal:
        terminal.type("exit\n")
        assert terminal.closed() == (1000, "exit status 0")
    with Terminal(sandbox, access_token=token(sandbox)) as terminal:
        assert sandbox.pty.kill(terminal.pid())
        assert terminal.closed() == (4256, "signal: killed")
        ended = terminal.pid()
    # Its end is remembered for whoever comes back a little late.
    with Terminal(sandbox, access_token=token(sandbox), pid=ended) as terminal:
        assert terminal.closed() == (4256, "signal: killed")


def test_the_token_may_come_as_query_subprotocol_or_header(sandbox):
    with Terminal(sandbox, subprotocols=[PROTOCOL, f"soulbox.token.{token(sandbox)}"]) as terminal:
        assert terminal.socket.subprotocol == PROTOCOL
        terminal.type("exit 3\n")
        assert terminal.closed()[0] == 4003
    with Terminal(sandbox, headers={"X-Access-Token": token(sandbox)}, user="root") as terminal:
        terminal.type("id -un; exit\n")
        terminal.until(b"root")
        assert terminal.closed()[0] == 1000


def test_a_closed_page_leaves_the_program_and_another_finds_it(sandbox):
    with Terminal(sandbox, access_token=token(sandbox)) as terminal:
        pid = terminal.pid()
        terminal.type("export KEPT=here\n")
        terminal.until(b"KEPT")
    with Terminal(sandbox, access_token=token(sandbox), pid=pid, cols=77, rows=22) as terminal:
        assert terminal.pid() == pid
        terminal.type("echo $KEPT-still; stty size\n")
        terminal.until(b"here-still")
        terminal.until(b"22 77")
    # The SDKs see the same program.
    shown = []
    handle = sandbox.pty.connect(pid)
    sandbox.pty.send_stdin(pid, b"exit 5\n")
    with pytest.raises(Exception, match="5"):
        handle.wait(on_pty=shown.append)


def test_messages_that_are_none_change_nothing(sandbox):
    with Terminal(sandbox, access_token=token(sandbox), cols=80, rows=24) as terminal:
        terminal.pid()
        for message, cause in [
            ("no json", "invalid message"),
            ('{"type":"shrink"}', "unknown variant"),
            ('{"type":"resize","cols":0,"rows":1}', "1 to 65535"),
            ('{"type":"resize","cols":70000,"rows":1}', "70000"),
        ]:
            terminal.notices.clear()
            terminal.socket.send(message)
            assert cause in terminal.notice("error")["message"]
        terminal.type("stty size\n")
        terminal.until(b"24 80")
    # What is too long ends the conversation: it is not kept to be looked at.
    with Terminal(sandbox, access_token=token(sandbox)) as terminal:
        terminal.pid()
        with pytest.raises(ConnectionClosed):
            terminal.socket.send(b"x" * (2 << 20))
            while True:
                terminal.read()
    assert sandbox.commands.run("echo fine").stdout == "fine\n"


def test_refusals_name_their_cause(sandbox):
    sleeper = sandbox.commands.run("sleep 60", background=True)
    good = {"access_token": token(sandbox)}
    for status, cause, query in [
        (401, "an access token is needed", {}),
        (401, "does not match", {"access_token": "0" * 64}),
        (401, "nobody-here", good | {"user": "nobody-here"}),
        (400, "cols", good | {"cols": "wide"}),
        (400, "1 to 65535", good | {"rows": "0"}),
        (404, "process with pid 99999999 not found", good | {"pid": "99999999"}),
        (400, "no terminal", good | {"pid": str(sleeper.pid)}),
    ]:
        with pytest.raises(InvalidStatus) as raised:
            Terminal(sandbox, **query)
        answer = raised.value.response
        assert answer.status_code == status, query
        body = json.loads(answer.body)
        assert body["code"] == status and cause in body["message"], body
    with pytest.raises(InvalidStatus) as raised:
        Terminal(sandbox, subprotocols=["chat"], **good)
    assert PROTOCOL in json.loads(raised.value.response.body)["message"]
    sleeper.kill()


def test_a_plain_request_learns_why_and_starts_nothing(sandbox):
    wire = Wire.to(sandbox)
    before = len(sandbox.commands.list())
    answer = wire.request("GET", "/ws/pty?cols=80&rows=24")
    assert answer.status_code == 426 and "WebSocket" in answer.json()["message"]
    switch = {"Connection": "upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    for headers in (
        switch | {"Sec-WebSocket-Version": "8", "Sec-WebSocket-Key": base64.b64encode(b"0" * 16).decode()},
        switch | {"Sec-WebSocket-Key": "short"},
    ):
        answer = wire.request("GET", "/ws/pty", headers)
        assert answer.status_code == 400 and "Sec-WebSocket" in answer.json()["message"]
    assert len(sandbox.commands.list()) == before


def test_a_stalled_page_holds_the_program_back_and_loses_nothing(sandbox):
    with Terminal(sandbox, access_token=token(sandbox)) as terminal:
        terminal.type("stty -echo; seq 1 300000; echo all-of''-it\n")
        terminal.pid()
        time.sleep(2)
        terminal.until(b"all-of-it\r\n")
        lines = terminal.shown.split(b"\r\n")
        at = lines.index(b"299999")
        assert lines[at + 1] == b"300000" and lines[at - 299997 : at - 299995] == [b"2", b"3"]
