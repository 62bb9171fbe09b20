"""gRPC: a stock client, generated from `proto/`, against the daemon through the one port that serves everything."""

import os
import struct
import sys
import urllib.parse
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_tools import protoc
from wire import Wire

PROTO = Path(__file__).parents[3] / "proto"


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """The modules of a client, made as docs/grpc.md says."""
    folder = tmp_path_factory.mktemp("generated")
    files = ["process/process.proto", "filesystem/filesystem.proto"]
    well_known = Path(protoc.__file__).parent / "_proto"
    made = protoc.main(
        ["protoc", f"-I{PROTO}", f"-I{well_known}", f"--python_out={folder}", f"--grpc_python_out={folder}", *files]
    )
    assert made == 0
    sys.path.insert(0, str(folder))
    from filesystem import filesystem_pb2, filesystem_pb2_grpc
    from process import process_pb2, process_pb2_grpc

    yield process_pb2, process_pb2_grpc, filesystem_pb2, filesystem_pb2_grpc
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def channel():
    where = urllib.parse.urlsplit(os.environ["E2B_SANDBOX_URL"])
    with grpc.insecure_channel(f"{where.hostname}:{where.port}") as made:
        yield made


@pytest.fixture(scope="module")
def metadata(sandbox):
    return [(name.lower(), value) for name, value in Wire.to(sandbox).headers.items()]


def test_a_program_with_input(generated, channel, metadata):
    process_pb2, process_pb2_grpc, *_ = generated
    stub = process_pb2_grpc.ProcessStub(channel)
    request = process_pb2.StartRequest(
        process=process_pb2.ProcessConfig(cmd="/bin/sh", args=["-c", "cat; echo no >&2; exit 3"], envs={"A": "b"}), stdin=True
    )
    events = stub.Start(request, metadata=metadata, timeout=20)
    pid = next(events).event.start.pid
    selector = process_pb2.ProcessSelector(pid=pid)
    assert [each.pid for each in stub.List(process_pb2.ListRequest(), metadata=metadata).processes] == [pid]
    inputs = [
        process_pb2.StreamInputRequest(start=process_pb2.StreamInputRequest.StartEvent(process=selector)),
        process_pb2.StreamInputRequest(
            data=process_pb2.StreamInputRequest.DataEvent(input=process_pb2.ProcessInput(stdin=b"streamed"))
        ),
    ]
    stub.StreamInput(iter(inputs), metadata=metadata, timeout=10)
    stub.CloseStdin(process_pb2.CloseStdinRequest(process=selector), metadata=metadata)
    stdout = stderr = b""
    for message in events:
        stdout += message.event.data.stdout
        stderr += message.event.data.stderr
        last = message.event
    assert (stdout, stderr, last.end.exit_code, last.end.status) == (b"streamed", b"no\n", 3, "exit status 3")


def test_errors_have_their_codes(generated, channel, metadata):
    process_pb2, process_pb2_grpc, filesystem_pb2, filesystem_pb2_grpc = generated
    files = filesystem_pb2_grpc.FilesystemStub(channel)
    entry = files.Stat(filesystem_pb2.StatRequest(path="/etc/passwd"), metadata=metadata, timeout=10).entry
    assert entry.owner == "root" and entry.size > 0
    with pytest.raises(grpc.RpcError) as caught:
        files.Stat(filesystem_pb2.StatRequest(path="/no/such/file"), metadata=metadata, timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND and "/no/such/file" in caught.value.details()
    processes = process_pb2_grpc.ProcessStub(channel)
    request = process_pb2.StartRequest(process=process_pb2.ProcessConfig(cmd="sleep", args=["60"]))
    with pytest.raises(grpc.RpcError) as caught:
        list(processes.Start(request, metadata=metadata, timeout=1))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    without_token = [(name, value) for name, value in metadata if name != "x-access-token"]
    with pytest.raises(grpc.RpcError) as caught:
        processes.List(process_pb2.ListRequest(), metadata=without_token, timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_large_output_passes(generated, channel, metadata):
    process_pb2, process_pb2_grpc, *_ = generated
    stub = process_pb2_grpc.ProcessStub(channel)
    request = process_pb2.StartRequest(process=process_pb2.ProcessConfig(cmd="head", args=["-c", "30000000", "/dev/zero"]))
    total = sum(len(message.event.data.stdout) for message in stub.Start(request, metadata=metadata, timeout=60))
    assert total == 30_000_000


def test_health(channel, metadata):
    stub = health_pb2_grpc.HealthStub(channel)
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "process.Process", "filesystem.Filesystem"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), metadata=metadata, timeout=10)
        assert answer.status == serving, service
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="unknown"), metadata=metadata, timeout=10)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


class WithMetadata(grpc.StreamStreamClientInterceptor):
    """The reflection client of the package has no way to send metadata."""

    def __init__(self, metadata):
        self.metadata = metadata

    def intercept_stream_stream(self, continuation, details, requests):
        return continuation(details._replace(metadata=[*(details.metadata or []), *self.metadata]), requests)


def test_reflection(channel, metadata):
    database = ProtoReflectionDescriptorDatabase(grpc.intercept_channel(channel, WithMetadata(metadata)))
    assert {"process.Process", "filesystem.Filesystem"} <= set(database.get_services())
    described = database.FindFileContainingSymbol("process.Process")
    methods = [method.name for method in described.service[0].method]
    assert {"Start", "Connect", "StreamInput", "List"} <= set(methods)


def test_grpc_web(sandbox, generated):
    """A browser's dialect: the status comes in a last frame of the body, so any HTTP version carries it."""
    _, _, filesystem_pb2, _ = generated
    wire = Wire.to(sandbox)

    def ask(path: str) -> tuple[bytes, bytes]:
        message = filesystem_pb2.StatRequest(path=path).SerializeToString()
        answer = wire.request(
            "POST",
            "/filesystem.Filesystem/Stat",
            {"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1"},
            content=struct.pack(">BI", 0, len(message)) + message,
        )
        assert answer.status_code == 200 and answer.headers["content-type"].startswith("application/grpc-web")
        data, trailers, rest = b"", b"", answer.content
        while rest:
            flags, length = struct.unpack(">BI", rest[:5])
            frame, rest = rest[5 : 5 + length], rest[5 + length :]
            if flags & 0x80:
                trailers += frame
            else:
                data += frame
        return data, trailers or str(dict(answer.headers)).encode()

    data, trailers = ask("/etc/passwd")
    assert filesystem_pb2.StatResponse.FromString(data).entry.path == "/etc/passwd"
    assert b"grpc-status: 0" in trailers or b"grpc-status:0" in trailers
    data, trailers = ask("/no/such/file")
    assert not data and b"5" in trailers.split(b"grpc-status")[1][:6]
