"""Tools, resources, state, faults, and what is left, over both transports."""

import asyncio
import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import asynccontextmanager

import pytest
from conftest import TOKEN, sandboxes
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import create_mcp_http_client, streamable_http_client
from served import BINARY, TEMPLATE, environment, kill


@asynccontextmanager
async def stdio(*flags: str):
    server = StdioServerParameters(command=BINARY, args=["mcp", *(() if "--template" in flags else ("--template", TEMPLATE)), *flags], env=environment())
    async with Client(server, read_timeout_seconds=60) as client:
        yield client


@asynccontextmanager
async def over_http(url: str, token: str = TOKEN):
    async with create_mcp_http_client(headers={"Authorization": f"Bearer {token}"}) as http_client:
        async with Client(streamable_http_client(url, http_client=http_client), read_timeout_seconds=60) as client:
            yield client


def texts(result) -> str:
    return "\n".join(block.text for block in result.content if block.type == "text")


async def use(client) -> None:
    """The same for both transports."""
    assert client.server_info.name == "soulbox"
    tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert list(tools) == ["run_code", "run_command", "read_file", "write_file", "list_files"]
    assert tools["run_code"].input_schema["required"] == ["code"]
    assert sandboxes() == []
    ran = await client.call_tool("run_code", {"code": "x = 20 + 1\nprint('printed')\nx * 2"})
    assert not ran.is_error
    assert texts(ran) == "printed\n42\n"
    assert len(sandboxes()) == 1
    # The same sandbox, with its state.
    assert texts(await client.call_tool("run_code", {"code": "x"})) == "21\n"
    raised = await client.call_tool("run_code", {"code": "1 / 0"})
    assert raised.is_error and "error: ZeroDivisionError: division by zero" in texts(raised)
    failed = await client.call_tool("run_command", {"command": "echo out; echo err >&2; exit 4"})
    assert failed.is_error
    assert sorted(texts(failed).split("\n\n")[0].split()) == ["err", "out"]
    assert texts(failed).endswith("[exit status 4]")
    await client.call_tool("write_file", {"path": "sub/a.txt", "content": "grüße\n"})
    assert texts(await client.call_tool("read_file", {"path": "/home/user/sub/a.txt"})) == "grüße\n"
    assert "/home/user/sub/a.txt (8 bytes)" in texts(await client.call_tool("list_files", {"path": "sub"}))
    listed = {str(resource.uri) for resource in (await client.list_resources()).resources}
    assert "file:///home/user/sub/a.txt" in listed
    read = await client.read_resource("file:///home/user/sub/a.txt")
    assert read.contents[0].text == "grüße\n"
    wrong = await client.call_tool("run_code", {"kode": 1})
    assert wrong.is_error and "missing field `code`" in texts(wrong)
    assert sandboxes() != []


def test_over_standard_input_and_output():
    async def run():
        async with stdio() as client:
            await use(client)

    asyncio.run(run())
    assert sandboxes() == []


def test_over_http(http):
    async def run():
        async with over_http(http.url) as client:
            await use(client)
        # Another session has the same sandbox.
        async with over_http(http.url) as client:
            assert texts(await client.call_tool("run_code", {"code": "x"})) == "21\n"

    asyncio.run(run())
    assert http.stop() == 0
    assert sandboxes() == []


def test_charts_and_bytes():
    async def run():
        async with stdio() as client:
            code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nopen('/home/user/b', 'wb').write(bytes([0, 255]))"
            ran = await client.call_tool("run_code", {"code": code})
            images = [block for block in ran.content if block.type == "image"]
            assert [image.mime_type for image in images] == ["image/png"]
            assert base64.b64decode(images[0].data).startswith(b"\x89PNG")
            read = await client.read_resource("file:///home/user/b")
            assert base64.b64decode(read.contents[0].blob) == bytes([0, 255])

    asyncio.run(run())


def test_what_is_not_there():
    async def run():
        async with stdio() as client:
            for call in (
                client.call_tool("no_such_tool", {}),
                client.read_resource("file:///home/user/nothing"),
                client.read_resource("https://example.test/x"),
            ):
                with pytest.raises(Exception, match="no_such_tool|nothing|is no file of the sandbox"):
                    await call

    asyncio.run(run())


def test_calls_end_in_time():
    async def run():
        async with stdio("--call-seconds", "2") as client:
            began = time.monotonic()
            ran = await client.call_tool("run_code", {"code": "while True: pass"})
            assert ran.is_error and "interrupted after 2 s" in texts(ran)
            slept = await client.call_tool("run_command", {"command": "sleep 60"})
            assert slept.is_error and "ended after 2 s" in texts(slept)
            assert time.monotonic() - began < 20
            assert texts(await client.call_tool("run_code", {"code": "'goes on'"})) == "goes on\n"

    asyncio.run(run())


def test_code_whose_call_is_cancelled_makes_room():
    server = subprocess.Popen([BINARY, "mcp", "--template", TEMPLATE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())

    def send(method: str, params: dict, number: int | None = None) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
        server.stdin.write(json.dumps(message) + "\n")
        server.stdin.flush()

    def run_code(number: int, code: str) -> None:
        send("tools/call", {"name": "run_code", "arguments": {"code": code}}, number)

    try:
        client = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "tests", "version": "1"}}
        send("initialize", client, 1)
        assert json.loads(server.stdout.readline())["id"] == 1
        send("notifications/initialized", {})
        run_code(2, "x = 'kept'")
        assert json.loads(server.stdout.readline())["id"] == 2
        began = time.monotonic()
        run_code(3, "import time\nwhile True: time.sleep(0.1)")
        run_code(4, "x")
        time.sleep(0.5)
        send("notifications/cancelled", {"requestId": 3, "reason": "enough"})
        answer = json.loads(server.stdout.readline())
        # Without the cancellation, the first of the two would have had its 60 s.
        assert time.monotonic() - began < 30
        assert (answer["id"], answer["result"]["content"][0]["text"]) == (4, "kept\n"), answer
    finally:
        server.stdin.close()
        assert server.wait(30) == 0


def test_a_sandbox_that_is_killed_is_replaced():
    async def run():
        async with stdio() as client:
            await client.call_tool("run_code", {"code": "x = 1"})
            kill(sandboxes()[0])
            lost = await client.call_tool("run_code", {"code": "x"})
            assert lost.is_error and "begins with a new sandbox" in texts(lost)
            ran = await client.call_tool("run_code", {"code": "'here'"})
            assert not ran.is_error
            assert texts(ran).startswith("[the sandbox before this one is gone") and texts(ran).endswith("here\n")

    asyncio.run(run())


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer "])
def test_without_the_token_nobody_is_let_in(http, authorization):
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    request = urllib.request.Request(http.url, json.dumps(body).encode(), {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"})
    if authorization is not None:
        request.add_header("Authorization", authorization)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=10)
    assert refused.value.code == 401
    assert refused.value.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--http", "0.0.0.0:0"], "can be reached by others"),
        (["--http", "127.0.0.1:0", "--token-file", "/nowhere/token"], "failed to read `/nowhere/token`"),
        (["--token-file", "/nowhere/token"], "--http"),
    ],
)
def test_what_is_asked_wrong(flags, told):
    done = subprocess.run([BINARY, "mcp", *flags], capture_output=True, text=True, timeout=30, env=environment(), stdin=subprocess.DEVNULL)
    assert done.returncode in (1, 2), done
    assert told in done.stderr, done


def test_a_template_that_is_not_there():
    async def run():
        async with stdio("--template", "no-such-template") as client:
            ran = await client.call_tool("run_code", {"code": "1"})
            assert ran.is_error and "no sandbox could be made" in texts(ran)

    asyncio.run(run())
