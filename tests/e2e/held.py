"""What a sandbox holds, by the programs of witnesses.py: started, asked before a pause, asked after it."""

import json
from collections.abc import Iterable
from pathlib import Path

from conftest import Server, until
from e2b import Sandbox
from witnesses import NAMES

PROGRAM = Path(__file__).parent / "witnesses.py"


class Held:
    """Witnesses in a sandbox; whoever resumes it tells [`Held.right`] the sandbox again."""

    def __init__(self, sandbox: Sandbox, names: Iterable[str] = NAMES, heap_mib: int = 20) -> None:
        self.sandbox = sandbox
        self.names = list(names)
        sandbox.files.write("/tmp/witnesses.py", PROGRAM.read_text())
        sandbox.commands.run(
            f"export HEAP_MIB={heap_mib}; for name in {' '.join(self.names)}; do "
            "setsid python3 /tmp/witnesses.py $name > /tmp/$name.log 2>&1 < /dev/null & done"
        )
        there = f"ls {' '.join(f'/tmp/witness/{name}.listens' for name in self.names)} 2> /dev/null | wc -l"
        until("all witnesses are there", lambda: int(sandbox.commands.run(there).stdout) == len(self.names), 30)
        self.right(sandbox)

    def right(self, sandbox: Sandbox) -> None:
        """Asks all of them, twice: what a check leaves is as good as what it found."""
        for _ in range(2):
            answers = json.loads(sandbox.commands.run(f"python3 /tmp/witnesses.py ask {' '.join(self.names)}", timeout=60).stdout)
            wrong = {name: answer for name, answer in answers.items() if answer != "ok"}
            assert not wrong, wrong


def interrupted(server: Server, sandbox: Sandbox) -> Sandbox:
    """The sandbox after a pause, a kill of everything of ours, a new start and a resume."""
    assert sandbox.pause() is True
    server.kill()
    server.start()
    return Sandbox.connect(sandbox.sandbox_id, timeout=600)
