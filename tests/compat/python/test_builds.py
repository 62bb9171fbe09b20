"""Builds of templates by the official builder: steps, files, contexts, the cache, what fails and how it says so.

Every template is of one test alone and deleted after it. The base is `base`, by its image's name or as a template.
"""

import io
import json
import os
import tarfile
import uuid

import pytest
from conftest import api, request
from e2b import BuildException, Sandbox, Template

RUN = uuid.uuid4().hex
pytestmark = pytest.mark.usefixtures("alone")


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """A context folder of this test alone: the builder reads files relative to it."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def build(tmp_path):
    """Builds a template: `build(lambda t: t.run_cmd("..."))` gives its name and the lines of its log."""
    names = []

    def make(steps, name: str | None = None, base: str | None = None, **more) -> tuple[str, list[str]]:
        name = name or f"b-{uuid.uuid4().hex[:12]}"
        names.append(name)
        builder = Template(file_context_path=str(tmp_path))
        begun = builder.from_template(base) if base else builder.from_image("e2bdev/base")
        # Nothing of an earlier run is in the cache for this one.
        begun = begun.set_envs({"RUN_OF_TESTS": RUN})
        lines = []
        Template.build(steps(begun), name, on_build_logs=lambda entry: lines.append(entry.message), **more)
        return name, lines

    yield make
    for name in dict.fromkeys(names):
        api("DELETE", f"/templates/{name}")


def fails(build, steps, **more) -> str:
    with pytest.raises(Exception) as raised:
        build(steps, **more)
    return str(raised.value)


def inside(name: str, command: str, **more) -> str:
    with Sandbox.create(name, timeout=120) as sandbox:
        return sandbox.commands.run(command, **more).stdout.strip()


def test_who_runs_a_step_and_where(build):
    name, lines = build(lambda t: t.run_cmd("id -un; pwd; id -u; sudo id -u; ls -a ~ > ~/listing"))
    said = [line.rsplit("[stdout]: ", 1)[1] for line in lines if "[stdout]: " in line]
    assert said[0] == "user" and said[1] == "/home/user" and int(said[2]) >= 1000 and said[3] == "0", said
    assert ".bashrc" in inside(name, "cat ~/listing")


def test_a_user_for_one_step(build):
    name, _ = build(lambda t: t.run_cmd("id -un > /root.txt", user="root").run_cmd("id -un > ~/user.txt"))
    assert inside(name, "cat /root.txt ~/user.txt") == "root\nuser"
    message = fails(build, lambda t: t.run_cmd("whoami", user="root123"))
    assert "failed to run command 'whoami': command failed: unauthenticated: invalid username: 'root123'" in message


def test_cp_124_contexts_last(build):
    name, lines = build(
        lambda t: t.set_envs({"KEPT": "value"})
        .set_workdir("/srv/app")
        .run_cmd('echo "$KEPT in $(pwd)"')
        .set_user("worker")
        .run_cmd("id -un > /tmp/who")
    )
    assert any(line.endswith("[stdout]: value in /srv/app") for line in lines), lines
    assert inside(name, "cat /tmp/who; id -un; pwd; echo [$KEPT]") == "worker\nworker\n/srv/app\n[]"


def test_cp_124_variables_are_expanded_and_commands_are_not(build):
    _, lines = build(
        lambda t: t.set_envs({"A": "one"})
        .set_envs({"PLACES": "$PATH:/x", "LITERAL": "$(id)`id`", "B": "$A-two"})
        .run_cmd('echo "$PLACES"; echo "$LITERAL"; echo "$B"; ls / > /dev/null')
    )
    said = [line.rsplit("[stdout]: ", 1)[1] for line in lines if "[stdout]: " in line]
    assert "/usr/bin" in said[0] and "/x" in said[0].split(":"), said
    assert said[1:3] == ["$(id)`id`", "one-two"], said


def test_cp_122_the_cache_ends_where_something_changed(build):
    mark = uuid.uuid4().hex

    def steps(last):
        return lambda t: t.run_cmd(f"echo {mark} > ~/one").run_cmd(f"echo {mark} > ~/two").run_cmd(last)

    name, first = build(steps("echo a > ~/three"))
    _, again = build(steps("echo a > ~/three"), name)
    _, changed = build(steps("echo b > ~/three"), name)

    def cached(lines):
        return [line.startswith("CACHED ") for line in lines if "[builder " in line and " RUN " in line]

    assert cached(first) == [False] * 3, first
    assert cached(again) == [True] * 3, again
    assert cached(changed) == [True, True, False], changed
    assert inside(name, "cat ~/two ~/three") == f"{mark}\nb"


def test_cp_122_a_forced_step_is_made_anew_and_kept(build):
    step = f"date +%N > ~/when; true {uuid.uuid4().hex}"
    name, _ = build(lambda t: t.run_cmd("true 1").run_cmd(step))
    before = inside(name, "cat ~/when")
    _, lines = build(lambda t: t.run_cmd("true 1").skip_cache().run_cmd(step), name)
    assert [line.startswith("CACHED ") for line in lines if " RUN " in line] == [True, False], lines
    after = inside(name, "cat ~/when")
    assert after != before
    # What was made anew is what is found from now on, and so is what was made on top of it.
    _, lines = build(lambda t: t.run_cmd("true 1").run_cmd(step).run_cmd("cat ~/when > ~/copy"), name)
    assert [line.startswith("CACHED ") for line in lines if " RUN " in line] == [True, True, False], lines
    assert inside(name, "cat ~/when ~/copy") == f"{after}\n{after}"


def test_cp_124_copies(build, tmp_path):
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/.dot").write_text("dot")
    (tmp_path / "tree/a.txt").write_text("a")
    (tmp_path / "tree/absolute").symlink_to("/etc/hostname")
    (tmp_path / "tree/relative").symlink_to("a.txt")
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "tool").write_text("#!/bin/sh\necho ran\n")
    name, _ = build(
        lambda t: t.run_cmd("mkdir -p ~/merged && echo kept > ~/merged/kept && echo old > ~/merged/a.txt")
        .copy("tree", "merged")
        .copy("one.txt", "folder/")
        .copy("one.txt", "/tmp/renamed")
        .copy("one.txt", "merged")
        .copy("tool", "/usr/local/bin/tool", user="root", mode=0o755)
    )
    seen = inside(
        name,
        "cd ~/merged && cat kept a.txt one.txt sub/.dot ../folder/one.txt /tmp/renamed; echo; tool; "
        "readlink absolute relative; stat -c '%U %a' /usr/local/bin/tool a.txt",
    )
    assert seen == "kept\naonedotoneone\nran\n/etc/hostname\na.txt\nroot 755\nuser 644", seen


def test_cp_124_relative_destinations(build, tmp_path):
    (tmp_path / "f").write_text("x")
    name, _ = build(lambda t: t.copy("f", "before").set_workdir("/srv").copy("f", "after"))
    assert inside(name, "ls /home/user/before /srv/after") == "/home/user/before\n/srv/after"


def test_a_byte_of_a_copied_file(build, tmp_path):
    (tmp_path / "f").write_text(uuid.uuid4().hex)

    def steps(t):
        return t.run_cmd("true before").copy("f", "f").run_cmd("cat f > g")

    name, _ = build(steps)
    (tmp_path / "f").write_text("other")
    _, lines = build(steps, name)
    cached = [line.startswith("CACHED ") for line in lines if " RUN " in line or " COPY " in line]
    assert cached == [True, False, False], lines
    assert inside(name, "cat g") == "other"


def test_cp_123_a_template_from_a_template(build):
    first, _ = build(
        lambda t: t.set_envs({"HANDED": "down"}).set_workdir("/srv").run_cmd("sudo touch /srv/file")
    )
    second, lines = build(lambda t: t.run_cmd('echo "$HANDED"; pwd'), base=first)
    said = [line.rsplit("[stdout]: ", 1)[1] for line in lines if "[stdout]: " in line]
    assert said == ["down", "/srv"], lines
    assert inside(second, "ls /srv") == "file"


def test_cp_123_a_template_that_is_not_there(build):
    with pytest.raises(Exception, match="template 'none-such' not found"):
        build(lambda t: t.run_cmd("true"), base="none-such")


def test_a_path_is_what_its_author_says(build):
    """Neither the login shell of a step nor that of a program that a step starts sets it anew."""
    name, lines = build(
        lambda t: t.run_cmd("mkdir -p /opt/mine && printf '#!/bin/sh\\necho mine\\n' > /opt/mine/ls && chmod 755 /opt/mine/ls", user="root")
        .set_envs({"PATH": "/opt/mine:$PATH"})
        .run_cmd("ls; bash -lc ls; echo $PATH")
        .run_cmd("ls", user="root")
    )
    said = [line.rsplit("[stdout]: ", 1)[1] for line in lines if "[stdout]: " in line]
    assert said[:2] + said[3:] == ["mine"] * 3 and said[2].startswith("/opt/mine:/usr/local/sbin:"), said
    # A sandbox has the usual one, and a command the one that it is given.
    assert inside(name, "command -v ls") == "/usr/bin/ls"
    assert inside(name, "command -v ls", envs={"PATH": "/opt/mine:/usr/bin"}) == "/opt/mine/ls"


def test_a_path_without_programs_is_expanded_too(build):
    _, lines = build(
        lambda t: t.set_envs({"PATH": "/nowhere"})
        .set_envs({"PATH": "$PATH:/usr/bin", "PLACES": "${PATH}:/x"})
        .run_cmd('id -u > /dev/null; echo "$PATH"; echo "$PLACES"')
    )
    said = [line.rsplit("[stdout]: ", 1)[1] for line in lines if "[stdout]: " in line]
    # A step finds the usual programs too. The values of one call see what was before it.
    assert said[0].startswith("/nowhere:/usr/bin:/usr/local/sbin:"), said
    assert said[1] == "/nowhere:/x", said


def test_a_user_may_have_the_name_of_a_group(build):
    name, _ = build(lambda t: t.set_user("users").run_cmd("id -gn > ~/group; echo kept > ~/kept"))
    assert inside(name, "id -un; cat ~/group ~/kept") == "users\nusers\nkept"


def test_a_user_is_given_by_name(build):
    """Commands of a template cannot be run by a number, so the step says so and not whoever uses the template."""
    message = fails(build, lambda t: t.set_user("1000").run_cmd("true"))
    assert "failed to make the user '1000': exit status 1" in message, message
    assert "'1000' is the number of the user 'user': give the name" in message, message


def test_no_two_files_of_layers_have_one_number(build):
    """By device and number programs know whether two names are one file: `cp` refuses and `mv` deletes then."""
    made = "mkdir ~/step{0} && cd ~/step{0} && seq 300 | xargs touch && cp /etc/passwd /etc/bash.bashrc ."
    name, _ = build(lambda t: t.run_cmd(made.format(1)).run_cmd(made.format(2)).run_cmd(made.format(3)))
    other, _ = build(lambda t: t.run_cmd(made.format(4)), base=name)
    count = "find / -xdev -type f -links 1 -printf '%i\\n' | sort | uniq -d | wc -l"
    with Sandbox.create(other, timeout=120) as sandbox:
        sandbox.commands.run(made.format(5))
        assert sandbox.commands.run("ls -d ~/step* | wc -l").stdout.strip() == "5"
        assert sandbox.commands.run(count, user="root", timeout=120).stdout.strip() == "0"


# The others are of distributions for which nothing here can stand.
@pytest.mark.parametrize("image", ["nobody/nothing:1", "alpine:3.20", "fedora:40", "archlinux"])
def test_cp_126_an_image_that_is_not_there(build, image):
    name = f"b-{uuid.uuid4().hex[:12]}"
    with pytest.raises(BuildException) as raised:
        Template.build(Template().from_image(image), name)
    api("DELETE", f"/templates/{name}")
    assert f"image '{image}' not found" in str(raised.value)


def test_an_image_that_is_only_near_is_named(build):
    lines = []
    name = f"b-{uuid.uuid4().hex[:12]}"
    Template.build(
        Template().from_image("ubuntu:22.04").run_cmd("true"),
        name,
        on_build_logs=lambda entry: lines.append((entry.level, entry.message)),
    )
    api("DELETE", f"/templates/{name}")
    assert any(level == "warn" and "'ubuntu:22.04' is not in the local store" in text for level, text in lines), lines


def test_cp_121_a_command_that_fails(build):
    assert "failed to run command 'false': exit status 1" in fails(build, lambda t: t.run_cmd("false"))
    message = fails(build, lambda t: t.run_cmd("echo the last words >&2; exit 7"))
    assert "exit status 7" in message and "the last words" in message


def test_a_failed_step_is_no_layer(build):
    """What failed runs again, and what came before it does not."""
    mark = uuid.uuid4().hex
    step = f"true {mark}"
    fails(build, lambda t: t.run_cmd(step).run_cmd(f"test -e /nothing-{mark}"))
    with pytest.raises(Exception):
        build(lambda t: t.run_cmd(step).run_cmd(f"test -e /nothing-{mark}"))
    name, lines = build(lambda t: t.run_cmd(step))
    assert any(line.startswith("CACHED ") and mark in line for line in lines), lines


def test_a_disk_that_is_full_fails_the_step(build):
    message = fails(build, lambda t: t.run_cmd("fallocate -l 8G ~/most; head -c 30G /dev/zero > ~/big"))
    assert "No space left" in message or "quota exceeded" in message, message


def test_steps_are_in_no_list_and_leave_nothing(build):
    before = {one.sandbox_id for one in Sandbox.list().next_items()}
    build(lambda t: t.run_cmd("sleep 1; touch ~/x").run_cmd("true"))
    assert {one.sandbox_id for one in Sandbox.list().next_items()} <= before


def test_links_and_attributes_survive_layers(build):
    """Hard links, holes, deletions and file capabilities, over more than one layer."""
    name, _ = build(
        lambda t: t.run_cmd("cd && echo x > a && ln a b && truncate -s 1G sparse && mkdir gone && touch gone/f")
        .run_cmd("cd /home/user && rm -r gone && rm /etc/motd", user="root")
        .run_cmd("cp /bin/true /usr/local/bin/bound && setcap cap_net_bind_service+ep /usr/local/bin/bound", user="root")
        .run_cmd("mkdir ~/gone && touch ~/gone/new && printf '\\n' > ~/$'new\\nline'")
    )
    seen = inside(
        name,
        "cd; stat -c %h a b; du -k sparse | cut -f1; ls gone; test -e /etc/motd || echo removed; "
        "/usr/sbin/getcap /usr/local/bin/bound; ls -b | grep -c 'new.nline'",
    )
    assert seen == "2\n2\n0\nnew\nremoved\n/usr/local/bin/bound cap_net_bind_service=ep\n1", seen


def test_cp_125_a_ready_command_that_gates(build):
    from e2b import wait_for_port

    start = "cd /tmp && sleep 2 && python3 -m http.server 8123"
    name, lines = build(lambda t: t.set_start_cmd(start, wait_for_port(8123)))
    assert "Template is ready" in lines, lines
    # A sandbox is there when the program answers.
    assert inside(name, "curl -s -o /dev/null -w '%{http_code}' localhost:8123/") == "200"


def test_a_start_command_that_dies(build):
    message = fails(build, lambda t: t.set_start_cmd("echo cannot >&2; exit 4", "false"))
    assert "ended before the template was ready: exit status 4" in message and "cannot" in message


def test_cp_125_a_started_program_is_in_every_sandbox(build):
    """Where processes can be saved, each sandbox goes on from a snapshot of the build's; else its create starts the program."""
    count = "from pathlib import Path; p = Path('/tmp/starts'); p.write_text(p.read_text() + 'x' if p.exists() else 'x')"
    serve = "import http.server; http.server.test(http.server.SimpleHTTPRequestHandler, port=8124)"
    name, lines = build(
        lambda t: t.set_envs({"OF_STEPS": "seen"}).set_start_cmd(
            f'cd /tmp && echo "$OF_STEPS" > of-start && python3 -c "{count}" && exec python3 -c "{serve}"',
            "curl -s localhost:8124/ > /dev/null",
        )
    )
    for _ in range(2):
        with Sandbox.create(name, timeout=120, envs={"OF_CREATE": "one"}, metadata={"a": "b"}) as sandbox:
            said = sandbox.commands.run(
                "curl -s localhost:8124/of-start; cat /tmp/starts; echo; pgrep -fc 'port=[8]124'; echo [$OF_STEPS] $OF_CREATE"
            ).stdout.split()
            assert said == ["seen", "x", "1", "[]", "one"], (said, lines)
            assert sandbox.get_info().metadata == {"a": "b"}
            # It is a sandbox like any other: it connects out of itself to itself, and has a disk of its own.
            sandbox.files.write("/tmp/own", "1")
    with Sandbox.create(name, timeout=120) as sandbox:
        assert not sandbox.files.exists("/tmp/own")


def test_envd_152_env_is_for_steps_and_for_what_is_started(build):
    name, _ = build(
        lambda t: t.set_envs({"SECRET_OF_BUILD": "value"}).set_start_cmd(
            'echo "[$SECRET_OF_BUILD]" > /tmp/start; sleep 600', 'test -s /tmp/start && test "$SECRET_OF_BUILD" = value'
        )
    )
    assert inside(name, 'cat /tmp/start; echo "[$SECRET_OF_BUILD]"') == "[value]\n[]"


def test_envd_158_a_build_from_its_upload_to_its_log(build, tmp_path):
    (tmp_path / "f").write_text(uuid.uuid4().hex + "\n")
    name, lines = build(lambda t: t.copy("f", "f").run_cmd("cat f; for i in $(seq 120); do echo line $i; done"))
    assert [line.rsplit(": ", 1)[1] for line in lines if "stdout]: line " in line] == [f"line {n}" for n in range(1, 121)]
    assert lines[-1].startswith("Build finished"), lines[-1]
    # The same file again is not sent again: its archive is there.
    _, again = build(lambda t: t.copy("f", "f").run_cmd("true"), name)
    assert any(line.startswith("CACHED ") and " COPY " in line for line in again), again
    message = fails(build, lambda t: t.run_cmd("true").run_cmd("echo why >&2; exit 9"))
    assert "exit status 9" in message and "why" in message


def test_ci_069_memory_and_processors(build):
    for bad in ({"memory_mb": 127}, {"memory_mb": 129}, {"cpu_count": 3}):
        assert "400" in fails(build, lambda t: t.run_cmd("true"), **bad)
    name, _ = build(lambda t: t.run_cmd("true"), memory_mb=128, cpu_count=1)
    with Sandbox.create(name, timeout=120) as sandbox:
        info = sandbox.get_info()
        assert (info.memory_mb, info.cpu_count) == (128, 1)
        # It is really that little.
        hungry = "python3 -c 'x = bytearray(300 << 20); print(len(x))'"
        with pytest.raises(Exception):
            sandbox.commands.run(hungry)


READY = {
    "port": ("python3 -m http.server 8125", lambda e2b: e2b.wait_for_port(8125)),
    "url": ("python3 -m http.server 8126", lambda e2b: e2b.wait_for_url("http://localhost:8126/")),
    "process": ("sleep 4321", lambda e2b: e2b.wait_for_process("sleep")),
    "file": ("sleep 1; touch /tmp/is-there; sleep 600", lambda e2b: e2b.wait_for_file("/tmp/is-there")),
    "timeout": ("sleep 600", lambda e2b: e2b.wait_for_timeout(1500)),
}


@pytest.mark.parametrize("helper", READY)
def test_ci_070_each_helper_waits(build, helper):
    import e2b

    start, ready = READY[helper]
    _, lines = build(lambda t: t.set_start_cmd(start, ready(e2b)))
    assert "Template is ready" in lines, lines


@pytest.mark.skipif("SOULBOX_LONG_TESTS" not in os.environ, reason="waits for ten minutes; SOULBOX_LONG_TESTS=1 asks for it")
@pytest.mark.timeout(900)
def test_ci_070_never_ready(build):
    message = fails(build, lambda t: t.set_start_cmd("sleep 9999", "false"))
    assert "ready command timed out after 600s: 'false'" in message, message


def test_sdk_14_an_upload_bears_headers_of_others(build, tmp_path):
    """The links are complete as they are; what a client adds, such as headers of other stores, is passed over."""
    name, _ = build(lambda t: t.run_cmd("true"))
    template = json.loads(api("GET", f"/templates/aliases/{name}").body)["templateID"]
    given = json.loads(api("GET", f"/templates/{template}/files/{uuid.uuid4().hex * 2}").body)
    assert set(given) == {"present", "url"}, given
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("f"))
    headers = {"x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream"}
    assert request("PUT", given["url"], headers, packed.getvalue()).status == 201
