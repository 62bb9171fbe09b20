"""The git helper of the package, against a bare repository inside the sandbox."""

import warnings

import pytest
from conftest import TEMPLATE
from e2b import GitAuthException, GitUpstreamException, Sandbox

SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401)
        self.send_header("www-authenticate", 'Basic realm="git"')
        self.send_header("content-length", "0")
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def repository():
    with warnings.catch_warnings(), Sandbox.create(TEMPLATE, timeout=300) as sandbox:
        warnings.simplefilter("ignore")
        git = sandbox.git
        git.init("/home/user/remote.git", bare=True, initial_branch="main")
        git.init("/home/user/work", initial_branch="main")
        git.configure_user("Test", "test@example.com")
        yield sandbox


def test_envd_156_commit_push_clone_pull(repository):
    git, work = repository.git, "/home/user/work"
    repository.files.write(f"{work}/file.txt", "one\n")
    status = git.status(work)
    assert [each.name for each in status.file_status] == ["file.txt"]
    git.add(work)
    git.commit(work, "first: it's \"quoted\"")
    assert git.status(work).is_clean
    git.remote_add(work, "origin", "/home/user/remote.git")
    git.push(work, remote="origin", branch="main", set_upstream=True)
    git.clone("/home/user/remote.git", path="/home/user/clone")
    assert repository.files.read("/home/user/clone/file.txt") == "one\n"
    git.create_branch(work, "topic")
    assert git.branches(work).current_branch == "topic"
    git.checkout_branch(work, "main")
    repository.files.write(f"{work}/file.txt", "two\n")
    git.add(work)
    git.commit(work, "second")
    git.push(work, remote="origin", branch="main")
    git.pull("/home/user/clone")
    assert repository.files.read("/home/user/clone/file.txt") == "two\n"
    assert (git.status("/home/user/clone").ahead, git.status("/home/user/clone").behind) == (0, 0)


def test_envd_156_errors_are_told_apart(repository):
    repository.files.write("/tmp/refuses.py", SERVER)
    server = repository.commands.run("python3 /tmp/refuses.py", background=True, timeout=0)
    repository.commands.run("for i in $(seq 100); do ss -Hltn | grep -q :8080 && break; sleep 0.1; done")
    with pytest.raises(GitAuthException):
        repository.git.clone("http://127.0.0.1:8080/private.git", path="/tmp/private")
    server.kill()
    repository.git.init("/home/user/alone", initial_branch="main")
    repository.files.write("/home/user/alone/file", "x")
    repository.git.add("/home/user/alone")
    repository.git.commit("/home/user/alone", "only")
    repository.git.remote_add("/home/user/alone", "origin", "/home/user/remote.git")
    with pytest.raises(GitUpstreamException):
        repository.git.pull("/home/user/alone")
