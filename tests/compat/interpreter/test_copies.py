"""Random numbers of a sandbox that goes on from a moment from which others go on too."""

import json
import time
import uuid

from conftest import Port


def from_snapshot(own):
    """A sandbox of the template's snapshot, which a server makes when it first sees the template."""
    deadline = time.monotonic() + 120
    while not (sandbox := own()).files.exists("/run/soulbox/generation"):
        sandbox.kill()
        assert time.monotonic() < deadline, "the template has no snapshot: does the server have CRIU?"
        time.sleep(1)
    return sandbox


# What no two sandboxes may have in common, by the generators that programs have of their own.
PYTHON = "import random, ssl\n[random.random(), ssl.RAND_bytes(8).hex()]"
NODE = """
const c = require('crypto')
const key = c.generateKeyPairSync('ed25519').publicKey.export({ type: 'spki', format: 'der' }).toString('hex')
JSON.stringify([Math.random(), c.randomUUID(), key])
"""


def test_a_create_goes_on_with_living_kernels(own):
    from_snapshot(own)
    drawn = []
    for _ in range(2):
        sandbox = own()
        port = Port(sandbox)
        begun = time.monotonic()
        assert port.ask("GET", "/health")[0] == 200
        healthy = time.monotonic() - begun
        assert {it["language"] for it in json.loads(port.ask("GET", "/contexts")[2])} == {"python", "javascript"}
        begun = time.monotonic()
        assert port.lines("1+1")[1]["text"] == "2"
        first = time.monotonic() - begun
        print(f"healthy after {healthy * 1000:.0f} ms, first execution {first * 1000:.0f} ms")
        assert healthy < 0.1 * 5 and first < 0.06 * 5
        drawn.append([sandbox.run_code(PYTHON).results[0].json, json.loads(sandbox.run_code(NODE, language="js").text.strip("'"))])
    one, other = drawn
    assert len(one[0]) == 2 and len(one[1]) == 3
    for mine, others in zip(one[0] + one[1], other[0] + other[1]):
        assert mine != others


def test_variables_of_a_create_reach_living_kernels(own):
    from_snapshot(own)
    sandbox = own(envs={"GIVEN": "by the create"})
    assert sandbox.run_code("import os; os.environ['GIVEN']").text == "by the create"
    assert "by the create" in sandbox.run_code("process.env.GIVEN", language="js").text


def numbers(sandbox) -> list[str]:
    """What each kernel draws next, after all were seeded alike."""
    shown = [
        sandbox.run_code("f'{random.random()} {numpy.random.rand()}'").text,
        "".join(sandbox.run_code("echo $RANDOM $RANDOM $RANDOM", language="bash").logs.stdout),
    ]
    assert all(shown)
    return shown


def seed(sandbox) -> None:
    sandbox.run_code("import random, numpy\nrandom.seed(1)\nnumpy.random.seed(1)")
    sandbox.run_code("RANDOM=1", language="bash")


def tell(sandbox) -> None:
    """As the daemon does in a copy: in a file that takes the place of the one before."""
    folder = "/run/soulbox"
    sandbox.commands.run(
        f"mkdir -p {folder} && echo {uuid.uuid4()} > {folder}/g && mv -f {folder}/g {folder}/generation", user="root"
    )


def test_a_copy_has_numbers_of_its_own(own):
    sandbox = own()
    seed(sandbox)
    expected = numbers(sandbox)
    seed(sandbox)
    assert numbers(sandbox) == expected, "seeds hold as long as there is no copy"
    seed(sandbox)
    tell(sandbox)
    changed = numbers(sandbox)
    assert all(one != other for one, other in zip(expected, changed))


def test_node_draws_from_the_kernel_afterwards(own):
    sandbox = own()
    code = """
const c = require('crypto')
const all = () => [Math.random(), c.randomBytes(8).toString('hex'), c.randomUUID(), globalThis.crypto.randomUUID(),
    c.randomInt(2 ** 40), c.randomInt(5, 2 ** 40), [...c.getRandomValues(new Uint8Array(8))].join(), c.randomFillSync(new Uint16Array(4), 1).join()]
JSON.stringify(all())
"""
    assert sandbox.run_code(code, language="js").error is None
    own_numbers = sandbox.run_code("Math.random.toString()", language="js").text
    assert "native code" in own_numbers, "before a copy they are V8's"
    for _ in range(2):
        tell(sandbox)
        drawn = sandbox.run_code("all().map(String)", language="js")
        assert drawn.error is None and "native code" not in sandbox.run_code("Math.random.toString()", language="js").text
    ranges = "Array.from({ length: 2000 }, () => Math.random()).every((n) => n >= 0 && n < 1)"
    assert sandbox.run_code(ranges, language="js").text == "true"
    spread = "new Set(Array.from({ length: 500 }, () => c.randomInt(3, 6))).size"
    assert sandbox.run_code(spread, language="js").text == "3"
    shape = "/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(c.randomUUID())"
    assert sandbox.run_code(shape, language="js").text == "true"
    later = "await new Promise((done) => c.randomBytes(5, (error, bytes) => done(bytes.length)))"
    assert sandbox.run_code(later, language="js").text == "5"
    assert sandbox.run_code("import { randomUUID } from 'crypto'\nrandomUUID === c.randomUUID", language="js").text == "true"


def test_forks_differ(own):
    sandbox = own()
    seed(sandbox)
    sandbox.run_code("const c = require('crypto'); Math.random() + c.randomUUID()", language="js")
    forks = sandbox.fork(count=2)
    try:
        drawn = [numbers(each) + [each.run_code("Math.random() + c.randomUUID()", language="js").text] for each in forks]
        assert all(one != other for one, other in zip(*drawn))
    finally:
        for each in forks:
            each.kill()
