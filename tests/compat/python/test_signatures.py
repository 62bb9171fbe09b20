"""Signed file URLs: what a signature opens, for how long, and what it does not."""

import base64
import hashlib
import json
import time
import urllib.parse

import pytest
from conftest import request

HOST_HEADERS = lambda sandbox: {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "49983"}  # noqa: E731


def signature(path: str, operation: str, user: str, token: str, expiration: int | None = None) -> str:
    text = ":".join([path, operation, user, token] + ([str(expiration)] if expiration is not None else []))
    return "v1_" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")


def changed(url: str, **query: str | None) -> str:
    parts = urllib.parse.urlsplit(url)
    pairs = dict(urllib.parse.parse_qsl(parts.query)) | query
    kept = {name: value for name, value in pairs.items() if value is not None}
    return parts._replace(query=urllib.parse.urlencode(kept)).geturl()


def refused(sandbox, method: str, url: str, **headers: str) -> str:
    answer = request(method, url, HOST_HEADERS(sandbox) | headers, b"x" if method == "POST" else None)
    assert answer.status == 401, answer
    return json.loads(answer.body)["message"]


@pytest.fixture(scope="module")
def path(sandbox):
    sandbox.files.write("/home/user/signed file.txt", "for everybody")
    return "/home/user/signed file.txt"


def test_envd_136_a_download_url(sandbox, path):
    url = sandbox.download_url(path)
    assert request("GET", url, HOST_HEADERS(sandbox)).text == "for everybody"
    assert refused(sandbox, "GET", changed(url, path="/etc/passwd")) == "invalid signature"
    assert refused(sandbox, "GET", changed(url, username="root")) == "invalid signature"
    assert refused(sandbox, "GET", changed(url, signature="v1_" + "A" * 43)) == "invalid signature"
    assert refused(sandbox, "GET", changed(url, signature=None)) == "missing signature query parameter"
    assert refused(sandbox, "GET", sandbox.download_url(path, use_signature_expiration=-10)) == "signature is already expired"
    lasting = sandbox.download_url(path, use_signature_expiration=100)
    assert request("GET", lasting, HOST_HEADERS(sandbox)).text == "for everybody"
    longer = changed(lasting, signature_expiration=str(int(time.time()) + 1000))
    assert refused(sandbox, "GET", longer) == "invalid signature"
    assert refused(sandbox, "GET", changed(lasting, signature_expiration=None)) == "invalid signature"


def test_envd_137_an_upload_url(sandbox):
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="any"\r\n\r\nsent\r\n--x--\r\n'
    headers = HOST_HEADERS(sandbox) | {"Content-Type": "multipart/form-data; boundary=x"}
    target = "/home/user/uploaded.txt"
    assert request("POST", sandbox.upload_url(target), headers, body).status == 200
    assert sandbox.files.read(target) == "sent"
    assert refused(sandbox, "POST", sandbox.download_url(target)) == "invalid signature"
    assert refused(sandbox, "GET", sandbox.upload_url(target)) == "invalid signature"


def test_envd_138_of_the_default_user(sandbox, path):
    token = sandbox._envd_access_token
    url = changed(sandbox.download_url(path), username=None, signature=signature(path, "read", "", token))
    assert request("GET", url, HOST_HEADERS(sandbox)).text == "for everybody"
    assert refused(sandbox, "GET", changed(url, username="user")) == "invalid signature"


def test_envd_139_a_wrong_token_is_not_mended_by_a_signature(sandbox, path):
    message = refused(sandbox, "GET", sandbox.download_url(path), **{"X-Access-Token": "0" * 64})
    assert message == "access token present in header but does not match"


def test_envd_140_the_string_that_is_signed(sandbox, path):
    known = signature("hello.txt", "read", "user", "0tQG31xiMp0IOQfaz9dcwi72L1CPo8e0")
    assert known == "v1_gUtH/s9YCJWgCizjfUxuWfhFE4QSydOWEIIvfLwDr6E"
    # The same computation is what the package does, and what the daemon checks.
    query = dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(sandbox.download_url(path, user="root")).query))
    assert query["signature"] == signature(path, "read", "root", sandbox._envd_access_token)
