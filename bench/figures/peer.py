"""The peer: plain `runc` on the same root file system, in the same run."""

import json
import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager

from table import timed

QUIET = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
NAME = f"soulbox-bench-{os.getpid()}"


class Bundle:
    """A container that is made by `runc spec`: own namespaces and root's usual limits, without a seccomp filter."""

    def __init__(self, directory: str, root: str) -> None:
        self.directory = directory
        subprocess.run(["runc", "spec"], cwd=directory, **QUIET)
        with open(os.path.join(directory, "config.json")) as file:
            self.config = json.load(file)
        self.config["root"] = {"path": root, "readonly": True}
        self.config["process"]["terminal"] = False

    def use(self, *arguments: str, network_namespace: str | None = None) -> list[str]:
        """The command line that runs this program in it."""
        self.config["process"]["args"] = list(arguments)
        for namespace in self.config["linux"]["namespaces"]:
            if namespace["type"] == "network" and network_namespace:
                namespace["path"] = network_namespace
        with open(os.path.join(self.directory, "config.json"), "w") as file:
            json.dump(self.config, file)
        return ["runc", "run", "-b", self.directory, NAME]

    def output(self, *arguments: str, network_namespace: str | None = None) -> str:
        """What a program says in it, on stdout and stderr."""
        command = self.use(*arguments, network_namespace=network_namespace)
        ended = subprocess.run(command, check=True, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        return ended.stdout


@contextmanager
def bundle(root: str):
    directory = tempfile.mkdtemp(prefix="soulbox-bench-")
    try:
        yield Bundle(directory, root)
    finally:
        shutil.rmtree(directory)


def run_true(root: str, count: int) -> list[float]:
    """Milliseconds of `runc run` of true."""
    with bundle(root) as made:
        command = made.use("/bin/true")
        return [timed(lambda: subprocess.run(command, **QUIET))[0] for _ in range(count)]


def exec_true(root: str, count: int) -> list[float]:
    """Milliseconds of `runc exec` of true in a running container."""
    with bundle(root) as made:
        command = made.use("/bin/sleep", "600")
        subprocess.run([*command[:2], "-d", *command[2:]], **QUIET)
        try:
            return [timed(lambda: subprocess.run(["runc", "exec", NAME, "/bin/true"], **QUIET))[0] for _ in range(count)]
        finally:
            subprocess.run(["runc", "delete", "--force", NAME], **QUIET)
