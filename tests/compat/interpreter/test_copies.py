"""Random numbers of a sandbox that goes on from a moment from which others go on too."""

import uuid


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
