"""Real software under the filter of `strict`: what people run must run, or the filter is too strong to be left on.

Node, gdb, strace, pip, git, threads and shared memory are in test_isolation.py.
"""

import pytest
from e2b import Sandbox
from sized import create

PACKAGES = "openjdk-17-jdk-headless golang-go postgresql-15"


@pytest.fixture(scope="module")
def workshop(server):
    """One sandbox with all of it: apt, dpkg, their scripts and users are a test of their own."""
    made = create(memoryMB=2048)
    try:
        made.set_timeout(900)
        install = f"apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends {PACKAGES}"
        made.commands.run(f"{{ {install}; }} > /tmp/apt.log 2>&1 || {{ tail -5 /tmp/apt.log; exit 1; }}", user="root", timeout=300)
        yield made
    finally:
        made.kill()


JAVA = """
import java.nio.file.*;
import java.util.concurrent.*;
import java.util.stream.*;
public class Main {
    public static void main(String[] arguments) throws Exception {
        var pool = Executors.newFixedThreadPool(16);
        var sum = pool.invokeAll(IntStream.range(0, 100).mapToObj(i -> (Callable<Integer>) () -> i * i).toList()).stream().mapToInt(f -> { try { return f.get(); } catch (Exception e) { throw new RuntimeException(e); } }).sum();
        pool.shutdown();
        System.gc();
        var process = new ProcessBuilder("echo", "child").start();
        System.out.println(sum + " " + new String(process.getInputStream().readAllBytes()).trim() + " " + Files.size(Path.of("/etc/hostname")));
    }
}
"""


@pytest.mark.timeout(420)
def test_java(workshop: Sandbox):
    """Compiler and virtual machine: compiled code, collectors, threads, child processes."""
    workshop.files.write("/tmp/java/Main.java", JAVA)
    for collector in ("-XX:+UseG1GC", "-XX:+UseParallelGC", "-XX:+UseZGC"):
        assert workshop.commands.run(f"cd /tmp/java && java -Xmx512m {collector} Main.java", timeout=90).stdout == "328350 child 10\n", collector


GO = """
package main

import (
	"fmt"
	"net"
	"os/exec"
	"sync"
)

func main() {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			connection.Write([]byte("x"))
			connection.Close()
		}
	}()
	var wait sync.WaitGroup
	var mutex sync.Mutex
	sum := 0
	for i := 0; i < 200; i++ {
		wait.Add(1)
		go func() {
			defer wait.Done()
			connection, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				panic(err)
			}
			buffer := make([]byte, 1)
			n, _ := connection.Read(buffer)
			mutex.Lock()
			sum += n
			mutex.Unlock()
		}()
	}
	wait.Wait()
	out, err := exec.Command("echo", "child").Output()
	if err != nil {
		panic(err)
	}
	fmt.Print(sum, " ", string(out))
}
"""


@pytest.mark.timeout(420)
def test_go(workshop: Sandbox):
    """Compiler, goroutines, network poller, child processes."""
    workshop.files.write("/tmp/go/main.go", GO)
    assert workshop.commands.run("cd /tmp/go && GOFLAGS=-mod=mod GO111MODULE=off go build -o main main.go && ./main", timeout=150).stdout == "200 child\n"


@pytest.mark.timeout(420)
def test_postgresql(workshop: Sandbox):
    """Shared memory, many processes, fsync, unix sockets, a user of its own."""
    start = "su postgres -c '/usr/lib/postgresql/15/bin/pg_ctl -w -D /tmp/pg -o \"-c listen_addresses=127.0.0.1\" -l /tmp/pg.log start'"
    workshop.commands.run(f"su postgres -c '/usr/lib/postgresql/15/bin/initdb -D /tmp/pg' && {start}", user="root", timeout=120)
    asked = (
        "create table t as select i, md5(i::text) as m from generate_series(1, 100000) i",
        "create index on t (m)",
        "vacuum analyze t",
        "checkpoint",
        "select count(*) from t where m like 'a%'",
    )
    each = " ".join(f'-c \\"{one}\\"' for one in asked)
    shown = workshop.commands.run(f'su postgres -c "psql -At -v ON_ERROR_STOP=1 {each}"', user="root", timeout=90).stdout
    assert 5000 < int(shown.splitlines()[-1]) < 8000
    parallel = "set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0; select sum(i) from t;"
    assert "5000050000" in workshop.commands.run(f'su postgres -c "psql -At -c \\"{parallel}\\""', user="root", timeout=60).stdout
    workshop.commands.run("su postgres -c '/usr/lib/postgresql/15/bin/pg_ctl -D /tmp/pg -m fast stop'", user="root", timeout=60)


def test_npm(sandbox: Sandbox):
    script = "mkdir -p /tmp/n && cd /tmp/n && npm init -y > /dev/null && npm install --silent --no-audit --no-fund is-number && node -p 'require(\"is-number\")(5)'"
    assert sandbox.commands.run(script, timeout=100).stdout == "true\n"


def test_wheels_with_compiled_code(sandbox: Sandbox):
    code = "import numpy as n; a = n.random.default_rng(1).random((300, 300)); print(n.linalg.inv(a).shape, (a @ a).shape)"
    installed = f"pip install --quiet --no-input numpy && python3 -c '{code}'"
    assert sandbox.commands.run(installed, timeout=110).stdout == "(300, 300) (300, 300)\n"


def test_keys_of_ssh(sandbox: Sandbox):
    script = "rm -f /tmp/k /tmp/k.pub; ssh-keygen -q -t ed25519 -N '' -f /tmp/k && ssh-keygen -l -f /tmp/k.pub && openssl rand -hex 8 && gpg --version > /dev/null"
    assert "ED25519" in sandbox.commands.run(script, timeout=30).stdout


CPP = """
#include <atomic>
#include <future>
#include <iostream>
#include <numeric>
#include <vector>
int main() {
    std::vector<std::future<int>> parts;
    for (int i = 0; i < 64; i++) parts.push_back(std::async(std::launch::async, [i] { return i; }));
    int sum = 0;
    for (auto& part : parts) sum += part.get();
    try { throw std::runtime_error("unwound"); } catch (std::exception& e) { std::cout << sum << ' ' << e.what() << std::endl; }
}
"""


def test_compilers(sandbox: Sandbox):
    """C++ with threads and exceptions, sanitizers that reserve terabytes of addresses, make with jobs."""
    sandbox.files.write("/tmp/c/main.cpp", CPP)
    sandbox.files.write("/tmp/c/Makefile", "all: plain asan\nplain: main.cpp\n\tg++ -O1 -pthread -o $@ $<\nasan: main.cpp\n\tg++ -O1 -g -fsanitize=address,undefined -pthread -o $@ $<\n")
    shown = sandbox.commands.run("cd /tmp/c && make -s -j2 && ./plain && ASAN_OPTIONS=detect_leaks=0 ./asan", timeout=110).stdout
    assert shown == "2016 unwound\n" * 2


def test_shells_and_tools(sandbox: Sandbox):
    """Terminals, job control, timers, capabilities of files, archives with owners."""
    script = """
        set -e; cd "$(mktemp -d)"
        script -qc 'stty size; tty' /dev/null | tail -1 | grep -q /dev/pts
        timeout 1 sleep 5 || test $? = 124
        mkdir a; echo x > a/f; sudo chown 33:33 a/f; sudo tar cf t.tar --xattrs a; sudo tar xf t.tar --xattrs -C /tmp; stat -c %u /tmp/a/f
        sudo setpriv --reuid 33 --regid 33 --clear-groups id -u
        flock l echo locked; nice -n 5 nice; ionice -c 3 echo idle; taskset 1 echo pinned
        find . -newermt '2000-01-01' -type f | wc -l; xargs --version > /dev/null; seq 100 | xargs -P 8 -n 1 true; echo done
    """
    assert sandbox.commands.run(script, timeout=60).stdout.split("\n")[-3:] == ["3", "done", ""]
