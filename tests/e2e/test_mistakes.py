"""Mistakes of the operator: one clear line with the cause, one with what helps, and an exit status."""

import json
import os
import socket
import subprocess

import pytest
from conftest import BINARY, DATA, Server, run
from e2b import Sandbox, SandboxException


def mistake(finished: subprocess.CompletedProcess, status: int, *named: str) -> None:
    lines = finished.stderr.strip().splitlines()
    assert finished.returncode == status, finished
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: "), finished.stderr
    for name in named:
        assert name in lines[0], (name, lines)


def serve(data, *flags: str, **more) -> subprocess.CompletedProcess:
    return run("serve", "--data-dir", str(data), *flags, **more)


def test_a_port_in_use(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        mistake(serve(tmp_path, "--listen", address), 1, address, "in use")


def test_without_root(tmp_path):
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--"]
    finished = subprocess.run(
        [*as_nobody, BINARY, "serve", "--data-dir", str(tmp_path)], capture_output=True, text=True, timeout=30
    )
    if finished.returncode == 127 or "Permission denied" in finished.stderr and "soulbox" not in finished.stderr:
        pytest.fail(f"the binary's folder is closed to others, so this cannot be tested: {finished.stderr}")
    mistake(finished, 1, "root")


def test_a_data_dir_that_cannot_be_written():
    mistake(serve("/proc/soulbox"), 1, "/proc/soulbox")


def test_half_written_credentials(tmp_path):
    for name, text in [("secrets.json", json.dumps({"token_seed": "00" * 32})), ("credentials.json", '{"api_key": "e2b_')]:
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    mistake(serve(tmp_path), 1, "credentials.json")
    assert (tmp_path / "credentials.json").read_text() == '{"api_key": "e2b_', "never replaced without a word"


def test_an_unknown_key_in_the_config_file(tmp_path):
    file = tmp_path / "soulbox.toml"
    file.write_text('domain = "a.test"\nlistne = "127.0.0.1:1"\n')
    mistake(serve(tmp_path, "--config", str(file)), 2, "soulbox.toml", "listne")


def test_a_bad_value_names_its_source(tmp_path):
    mistake(serve(tmp_path, "--listen", "nowhere"), 2, "--listen")
    mistake(serve(tmp_path, env={"SOULBOX_WARM": "many"}), 2, "SOULBOX_WARM")


def test_an_open_listener_without_tls(tmp_path):
    mistake(serve(tmp_path, "--listen", "0.0.0.0:0"), 2, "0.0.0.0")


def test_a_certificate_that_cannot_be_read(tmp_path):
    absent = str(tmp_path / "absent.pem")
    mistake(serve(tmp_path, "--tls-cert", absent, "--tls-key", absent), 2, "absent.pem")


def test_no_template(tmp_path):
    """The server starts, says what is missing, and answers as for any unknown template; one built later is found."""
    server = Server(tmp_path).start("--pool-size", "512MiB")
    try:
        with pytest.raises(SandboxException, match="404: template 'base' not found"):
            Sandbox.create("base")
        warning = next(line for line in server.log.read_text().splitlines() if "WARN" in line)
        assert "no template `base`" in warning and "soulbox template build templates/base" in warning
        assert server.stop() == 0
    finally:
        server.end()


def test_env_of_no_installation(tmp_path):
    mistake(run("env", "--data-dir", str(tmp_path)), 1, "credentials", str(tmp_path))


def test_a_second_server_on_the_same_data(server):
    mistake(serve(DATA, "--listen", "127.0.0.1:0"), 1, str(DATA))


def test_env_points_at_the_server(server):
    address = f"127.0.0.1:{server.port}"
    finished = run("env", "--data-dir", str(DATA), "--listen", address)
    assert finished.returncode == 0, finished.stderr
    shell = subprocess.run(
        ["bash", "-c", f'eval "$(cat)"; echo "$E2B_API_KEY $E2B_API_URL $E2B_SANDBOX_URL"'],
        input=finished.stdout,
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
    )
    key = json.loads((DATA / "credentials.json").read_text())["api_key"]
    assert shell.stdout == f"{key} http://{address} http://{address}\n"


def test_doctor_finds_this_host_fit():
    finished = run("doctor", "--json")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert json.loads(finished.stdout)


def test_unknown_words_are_a_usage_error():
    finished = run("serv")
    assert finished.returncode == 2 and "serve" in finished.stderr
