"""What of the host can be seen from inside: no folder, no device, no name of the pool."""

from conftest import DATA
from e2b import Sandbox


def test_mounts_name_nothing_of_the_host(server):
    with Sandbox.create("base") as sandbox:
        mounts = sandbox.commands.run("cat /proc/1/mountinfo /proc/self/mountinfo; df -a", user="root").stdout
        assert "/usr/lib/soulbox" in mounts and "/dev/shm" in mounts
        for word in [str(DATA), "uppers", "layers", "pool", "/dev/loop", "/dev/vd", "/dev/sd", "/dev/nvme", "btrfs", "ext4"]:
            assert word not in mounts, [line for line in mounts.splitlines() if word in line]


def test_shared_memory(server):
    with Sandbox.create("base") as sandbox:
        shm = sandbox.commands.run("stat -c %a /dev/shm; findmnt -no OPTIONS /dev/shm").stdout
        assert shm.startswith("1777\n") and "nosuid" in shm
        program = """
from multiprocessing import Lock, Process, shared_memory
def add(name, lock):
    block = shared_memory.SharedMemory(name)
    for _ in range(200):
        with lock:
            block.buf[0] = (block.buf[0] + 1) % 251
block, lock = shared_memory.SharedMemory(create=True, size=1 << 20), Lock()
block.buf[0] = 0
workers = [Process(target=add, args=(block.name, lock)) for _ in range(4)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(block.buf[0])
block.close(); block.unlink()
"""
        sandbox.files.write("/tmp/shared.py", program)
        assert sandbox.commands.run("python3 /tmp/shared.py").stdout == f"{800 % 251}\n"
        assert sandbox.commands.run("ls -A /dev/shm").stdout == ""
        # A filled /dev/shm is the sandbox's own disk.
        sandbox.commands.run("head -c 30M /dev/zero > /dev/shm/full && rm /dev/shm/full")
