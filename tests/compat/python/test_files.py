"""Files: every operation of the package, text and bytes, small and big, and the errors."""

import hashlib
import io
import os

import pytest
from conftest import request
from e2b import AuthenticationException, FileNotFoundException, FileType, InvalidArgumentException, SandboxException


@pytest.fixture
def folder(sandbox, request):
    path = f"/home/user/{request.node.name}"
    sandbox.files.make_dir(path)
    return path


def test_text_is_read_back_and_overwritten(sandbox, folder):
    path = f"{folder}/ünï code.txt"
    info = sandbox.files.write(path, "long first text ✓")
    assert (info.name, info.path) == ("ünï code.txt", path)
    assert sandbox.files.read(path) == "long first text ✓"
    sandbox.files.write(path, "short")
    assert sandbox.files.read(path) == "short"


def test_missing_folders_are_made_for_the_user(sandbox, folder):
    sandbox.files.write(f"{folder}/a/b/c.txt", "x")
    assert sandbox.commands.run(f"stat -c %U {folder}/a {folder}/a/b/c.txt").stdout == "user\nuser\n"


def test_bytes_of_every_value(sandbox, folder):
    data = bytes(range(256)) * 257
    sandbox.files.write(f"{folder}/bytes", data)
    assert bytes(sandbox.files.read(f"{folder}/bytes", format="bytes")) == data
    sandbox.files.write(f"{folder}/stream", io.BytesIO(data))
    assert b"".join(sandbox.files.read(f"{folder}/stream", format="stream")) == data


def test_compressed_transfers(sandbox, folder):
    text = "compressible " * 100_000
    sandbox.files.write(f"{folder}/zipped", text, gzip=True)
    assert sandbox.files.read(f"{folder}/zipped", gzip=True) == text
    assert sandbox.files.read(f"{folder}/zipped") == text


def test_a_big_file_survives(sandbox, folder):
    data = os.urandom(1 << 20) * 64
    sandbox.files.write(f"{folder}/big", data)
    assert sandbox.commands.run(f"sha256sum < {folder}/big").stdout.split()[0] == hashlib.sha256(data).hexdigest()
    digest, size = hashlib.sha256(), 0
    for chunk in sandbox.files.read(f"{folder}/big", format="stream"):
        digest.update(chunk)
        size += len(chunk)
    assert (size, digest.digest()) == (len(data), hashlib.sha256(data).digest())


def test_envd_125_an_empty_file(sandbox, folder):
    sandbox.files.write(f"{folder}/empty", "")
    assert sandbox.files.read(f"{folder}/empty") == ""
    assert bytes(sandbox.files.read(f"{folder}/empty", format="bytes")) == b""
    assert b"".join(sandbox.files.read(f"{folder}/empty", format="stream")) == b""


def test_envd_126_a_file_of_unknown_size(sandbox):
    assert "processor" in sandbox.files.read("/proc/cpuinfo")


def test_envd_120_several_files_in_one_call(sandbox, folder):
    names = [f"{folder}/one", f"{folder}/sub/two", f"{folder}/three"]
    infos = sandbox.files.write_files([{"path": name, "data": name} for name in names])
    assert [info.path for info in infos] == names
    assert [sandbox.files.read(name) for name in names] == names


def test_envd_094_list_by_depth(sandbox, folder):
    sandbox.commands.run(f"cd {folder} && mkdir -p b/inner/deep && touch a b/x b/inner/y")
    names = lambda depth: [entry.path[len(folder) + 1 :] for entry in sandbox.files.list(folder, depth=depth)]
    assert names(1) == ["a", "b"]
    assert names(2) == ["a", "b", "b/inner", "b/x"]
    assert names(3) == ["a", "b", "b/inner", "b/inner/deep", "b/inner/y", "b/x"]
    kinds = {entry.name: entry.type for entry in sandbox.files.list(folder)}
    assert kinds == {"a": FileType.FILE, "b": FileType.DIR}


def test_envd_096_list_of_no_folder(sandbox, folder):
    with pytest.raises(FileNotFoundException):
        sandbox.files.list(f"{folder}/missing")
    sandbox.files.write(f"{folder}/file", "")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.list(f"{folder}/file")


def test_envd_099_a_file_is_described(sandbox, folder):
    sandbox.files.write(f"{folder}/file", "12345")
    info = sandbox.files.get_info(f"{folder}/file")
    assert (info.type, info.size, info.mode, info.permissions) == (FileType.FILE, 5, 0o644, "-rw-r--r--")
    assert (info.owner, info.group) == ("user", "user")
    assert info.modified_time.timestamp() > 1_600_000_000


def test_envd_101_exists_and_info_of_nothing(sandbox, folder):
    assert sandbox.files.exists(folder)
    assert not sandbox.files.exists(f"{folder}/missing")
    with pytest.raises(FileNotFoundException):
        sandbox.files.get_info(f"{folder}/missing")


def test_envd_102_make_dir(sandbox, folder):
    assert sandbox.files.make_dir(f"{folder}/x/y/z")
    assert not sandbox.files.make_dir(f"{folder}/x/y/z")
    assert sandbox.commands.run(f"stat -c %U {folder}/x/y").stdout == "user\n"
    sandbox.files.write(f"{folder}/file", "")
    with pytest.raises(InvalidArgumentException):
        sandbox.files.make_dir(f"{folder}/file")


def test_envd_103_rename(sandbox, folder):
    sandbox.files.write(f"{folder}/old", "text")
    info = sandbox.files.rename(f"{folder}/old", f"{folder}/new/place")
    assert info.path == f"{folder}/new/place"
    assert sandbox.files.read(f"{folder}/new/place") == "text"
    assert not sandbox.files.exists(f"{folder}/old")
    with pytest.raises(FileNotFoundException):
        sandbox.files.rename(f"{folder}/old", f"{folder}/other")


def test_envd_104_remove(sandbox, folder):
    sandbox.files.write(f"{folder}/tree/file", "")
    sandbox.files.remove(f"{folder}/tree")
    assert not sandbox.files.exists(f"{folder}/tree")
    sandbox.files.remove(f"{folder}/tree")


def test_envd_105_relative_paths_start_at_home(sandbox, folder):
    sandbox.files.write("relative.txt", "at home")
    assert sandbox.files.read("/home/user/relative.txt") == "at home"
    assert sandbox.files.read("~/relative.txt") == "at home"
    sandbox.files.write("of-root.txt", "x", user="root")
    assert sandbox.files.get_info("/root/of-root.txt", user="root").owner == "root"


def test_envd_107_the_daemon_reads_everything(sandbox):
    assert "root:" in sandbox.files.read("/etc/shadow")


def test_envd_119_writing_where_no_file_can_be(sandbox, folder):
    with pytest.raises(InvalidArgumentException):
        sandbox.files.write(folder, "a folder")
    sandbox.files.write(f"{folder}/file", "")
    with pytest.raises(SandboxException):
        sandbox.files.write(f"{folder}/file/below", "x")


def test_envd_124_reading_what_is_not_there(sandbox, folder):
    for format in ("text", "bytes", "stream"):
        with pytest.raises(FileNotFoundException):
            b"".join(sandbox.files.read(f"{folder}/missing", format=format))
    with pytest.raises(InvalidArgumentException):
        sandbox.files.read(folder)


def test_envd_133_unknown_user(sandbox, folder):
    with pytest.raises(AuthenticationException):
        sandbox.files.write(f"{folder}/x", "x", user="nobody-of-that-name")


def test_signed_urls_need_no_token(sandbox, folder):
    sandbox.files.write(f"{folder}/signed", "for everybody")
    url = sandbox.download_url(f"{folder}/signed")
    headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}
    assert request("GET", url, headers).text == "for everybody"
    bad = request("GET", url.replace("signature=", "signature=x"), headers)
    assert bad.status == 401 and "signature" in bad.text
    late = sandbox.download_url(f"{folder}/signed", use_signature_expiration=-10)
    assert request("GET", late, headers).status == 401


def test_an_upload_url_takes_a_form(sandbox, folder):
    url = sandbox.upload_url(f"{folder}/uploaded")
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="any"\r\n\r\ncontent\r\n--x--\r\n'
    headers = {
        "E2b-Sandbox-Id": sandbox.sandbox_id,
        "E2b-Sandbox-Port": "49983",
        "Content-Type": "multipart/form-data; boundary=x",
    }
    assert request("POST", url, headers, form).status == 200
    assert sandbox.files.read(f"{folder}/uploaded") == "content"
    other = sandbox.download_url(f"{folder}/uploaded")
    assert request("POST", other, headers, form).status == 401, "a signature for reading is none for writing"


def test_envd_134_metadata_of_a_file(sandbox, folder):
    path = f"{folder}/marked"
    info = sandbox.files.write(path, "x", metadata={"Author": "me", "n": "1"})
    assert info.metadata == {"author": "me", "n": "1"}
    assert sandbox.files.get_info(path).metadata == {"author": "me", "n": "1"}
    sandbox.files.write(path, "y")
    assert not sandbox.files.get_info(path).metadata
