"""The Python kernel: an IPython shell that answers soulbox-interpreter.

Started once as a fork server: it imports IPython, builds a shell, and then forks a kernel for each context that the
interpreter asks for. docs/kernels.md has the protocol; what a kernel of any language owes is written there.

There are no threads before a fork and no event loop either, since neither survives one.
"""

import asyncio
import base64
import builtins
import contextlib
import ctypes
import fcntl
import getpass
import gc
import importlib.abc
import importlib.util
import io
import json
import os
import random
import select
import signal
import socket
import struct
import sys
import termios
import threading
import time
import warnings

os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
# Fonts of the template; a file of the code's own folder is preferred to it.
os.environ.setdefault("MATPLOTLIBRC", "/etc/soulbox/matplotlibrc")
# Else plotly asks for a browser, or leaves out the figure's own format.
os.environ.setdefault("PLOTLY_RENDERER", "plotly_mimetype+notebook")

from IPython.core import async_helpers
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.error import StdinNotImplementedError
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell
from traitlets import Type
from traitlets.config import Config

PR_SET_PDEATHSIG = 1
SIOCOUTQ = termios.TIOCOUTQ
# A result is one line in the memory of two processes.
LARGEST_RESULT = 100 << 20
# Another after each copy of the sandbox that goes on from the same memory; docs/pause.md.
GENERATION = "/run/soulbox/generation"
# Those of the sandbox, where the process that kernels are forked from was started before they were told.
VARIABLES = "/run/soulbox/variables.json"


class Control:
    """The connection to the interpreter: one JSON value a line, both ways."""

    def __init__(self, connection):
        self.connection = connection
        self.received = bytearray()
        # Threads of the code display as well.
        self.writing = threading.Lock()

    def send(self, message):
        self.send_bytes(json.dumps(message).encode())

    def send_bytes(self, line):
        # An interrupt in the middle of a line would leave half of it, after which nothing can be understood.
        with Interrupts.later(), self.writing:
            self.connection.sendall(line + b"\n")

    def receive(self):
        """The next message; None when the interpreter is gone."""
        searched = 0
        while (end := self.received.find(b"\n", searched)) < 0:
            searched = len(self.received)
            piece = self.connection.recv(1 << 16)
            if not piece:
                return None
            self.received += piece
        line = bytes(self.received[:end])
        del self.received[: end + 1]
        return json.loads(line)

    def settle(self):
        """Waits until the interpreter has read what was sent, so that later output cannot overtake it."""
        wait_until_read(self.connection.fileno(), SIOCOUTQ)


class Interrupts:
    """Turns SIGINT into KeyboardInterrupt in the code, now or where it does no harm."""

    held = 0
    noted = False

    @classmethod
    def listen(cls):
        cls.held, cls.noted = 0, False
        signal.signal(signal.SIGINT, cls.handle)

    @staticmethod
    def ignore():
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @classmethod
    def end_children(cls):
        """What the code forks ends at an interrupt, as other programs that it starts; unless the code listens itself."""
        if signal.getsignal(signal.SIGINT) == cls.handle:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    @classmethod
    def handle(cls, *_):
        if cls.held:
            cls.noted = True
        else:
            raise KeyboardInterrupt

    @classmethod
    @contextlib.contextmanager
    def later(cls):
        # Python runs handlers in the main thread only, so others have nothing to hold.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        cls.held += 1
        try:
            yield
        finally:
            cls.held -= 1
            if cls.noted and not cls.held:
                cls.noted = False
                raise KeyboardInterrupt


def wait_until_read(descriptor, request):
    pause = 0.0
    unread = bytearray(4)
    while True:
        try:
            fcntl.ioctl(descriptor, request, unread)
        except OSError:
            return  # closed by the program itself: there is nothing to wait for
        if struct.unpack("i", unread)[0] <= 0:
            return
        if pause > 0.0002:
            # Nobody will ever read a pipe whose reader is gone.
            for _, event in poll_once(descriptor):
                if event & (select.POLLERR | select.POLLNVAL):
                    return
        time.sleep(pause)
        pause = min(pause + 0.00002, 0.002)


def poll_once(descriptor):
    watched = select.poll()
    watched.register(descriptor, 0)
    return watched.poll(0)


class Stream(io.TextIOWrapper):
    """sys.stdout or sys.stderr: text goes to the descriptor, as that of programs started by the code does.

    Whoever writes after the other stream waits until that one's text was read: so the order of both is kept.
    """

    last = None

    def __init__(self, descriptor, name):
        raw = io.FileIO(descriptor, "wb", closefd=False)
        super().__init__(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True, newline="\n"
        )
        self.number = descriptor
        self.label = name

    @property
    def name(self):
        return self.label

    def write(self, text):
        last = Stream.last
        if last is not self:
            if last is not None and not last.closed:
                last.finish()
            Stream.last = self
        return super().write(text)

    def finish(self):
        """Flushes, and waits until the interpreter has read it."""
        self.flush()
        wait_until_read(self.number, termios.FIONREAD)

    def isatty(self):
        return False


class Hook(DisplayHook):
    """The value of a cell's last expression."""

    def write_output_prompt(self):
        pass

    def write_format_data(self, format_dict, md_dict=None):
        self.shell.show(format_dict, main=True)


class Publisher(DisplayPublisher):
    """What code displays by itself. Updates of earlier displays and clearing have no place in a stream of results."""

    def publish(self, data, metadata=None, *, transient=None, update=False, **_):
        if not update:
            self.shell.show(data, main=False)

    def clear_output(self, wait=False):
        pass


class Formatter(DisplayFormatter):
    """Adds the formats that notebooks do not know: data of tables, data of charts, JSON of plain values."""

    def format(self, obj, include=None, exclude=None):
        data, metadata = super().format(obj, include=include, exclude=exclude)
        for mime, make in (
            ("e2b/data", table_of),
            ("e2b/chart", chart_of),
            ("application/json", plain_json_of),
        ):
            if mime not in data:
                try:
                    made = make(obj)
                except Exception:  # an object's own methods run here: it is shown without the format then
                    made = {} if mime == "e2b/chart" else None
                if made is not None:
                    data[mime] = made
        return data, metadata


class Raw(bytes):
    """JSON that is already text."""


def loaded(module, name):
    """A class, when its library was imported: nothing is imported to find out that it is not used."""
    found = sys.modules.get(module)
    return getattr(found, name, None) if found else None


def table_of(value):
    if hasattr(type(value), "_repr_e2b_data_"):
        return value._repr_e2b_data_()
    frame = loaded("pandas", "DataFrame")
    if frame is None or not isinstance(value, frame):
        return None
    return encode({str(name): value.iloc[:, at].tolist() for at, name in enumerate(value.columns)})


def chart_of(value):
    if hasattr(type(value), "_repr_e2b_chart_"):
        return value._repr_e2b_chart_()
    figure = loaded("matplotlib.figure", "Figure")
    if figure is None or not isinstance(value, figure):
        return None
    from e2b_charts import chart_figure_to_dict

    # It complains of numbers that are numpy's, which are no business of the code's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return encode(chart_figure_to_dict(value) or {})


def plain_json_of(value):
    if type(value) not in (dict, list):
        return None
    import orjson

    return Raw(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS))


def encode(value):
    import orjson

    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_SUBCLASS
    return Raw(orjson.dumps(value, default=simpler, option=options))


def simpler(value):
    """Of a value that JSON does not have, one that it has."""
    pandas = sys.modules.get("pandas")
    if pandas is not None and (value is pandas.NaT or value is pandas.NA):
        return None
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if hasattr(value, "item"):
        return value.item()
    return str(value)


class Shell(InteractiveShell):
    display_pub_class = Type(Publisher)
    displayhook_class = Type(Hook)

    control = None
    failed = False
    # That of the kernel: what the code forks has another.
    process = None

    def init_display_formatter(self):
        self.display_formatter = Formatter(parent=self)
        self.configurables.append(self.display_formatter)

    def enable_gui(self, gui=None):
        pass  # there is no screen

    def ask_exit(self):
        finish_output()
        os._exit(0)

    def show(self, data, main):
        if os.getpid() != self.process:
            # The connection is the kernel's; two that write would tear each other's lines.
            print(data.get("text/plain", ""))
            return
        parts = []
        for mime, value in data.items():
            if isinstance(value, bytes) and not isinstance(value, Raw):
                value = base64.b64encode(value).decode("ascii")
            try:
                encoded = value if isinstance(value, Raw) else json.dumps(value, default=simpler).encode()
            except (TypeError, ValueError):
                encoded = json.dumps(str(value)).encode()
            parts.append(json.dumps(mime).encode() + b":" + encoded)
        line = b'{"type":"display","main":%s,"data":{%s}}' % (b"true" if main else b"false", b",".join(parts))
        if len(line) > LARGEST_RESULT:
            sys.stderr.write(f"A result of {len(line)} bytes is not shown: {LARGEST_RESULT} are the most.\n")
            return
        finish_output()
        self.control.send_bytes(line)
        self.control.settle()

    def _showtraceback(self, etype, evalue, stb):
        if self.failed:
            return
        self.failed = True
        try:
            value = str(evalue)
        except Exception:
            value = f"<exception str() of {etype.__name__} failed>"
        if os.getpid() != self.process:
            print("".join(stb), file=sys.stderr)
            return
        finish_output()
        self.control.send({"type": "error", "name": etype.__name__, "value": value, "traceback": "".join(stb)})
        self.control.settle()


def finish_output():
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Stream) and not stream.closed:
            try:
                stream.finish()
            except OSError:
                pass  # its descriptor was closed by the code
        else:
            try:
                stream.flush()
            except Exception:  # the code's own object
                pass
    for descriptor in (1, 2):
        wait_until_read(descriptor, termios.FIONREAD)


class AfterImport(importlib.abc.MetaPathFinder):
    """Runs a function on a module when that was imported, for libraries that many programs never import."""

    def __init__(self, hooks):
        self.hooks = hooks

    def find_spec(self, name, path, target=None):
        hook = self.hooks.pop(name, None)
        if hook is None:
            return None
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            hook(module)

        spec.loader.exec_module = exec_module
        return spec


def show_images(module):
    """`image.show()` and `image.save("name")` display: there is no other screen."""
    from IPython.display import display

    save = module.Image.save

    def save_and_show(self, fp, format=None, **options):
        save(self, fp, format, **options)
        if isinstance(fp, str):
            display(self)

    module.Image.save = save_and_show
    module.Image.show = lambda self, *_, **__: display(self)


def no_input(*_, **__):
    raise StdinNotImplementedError("raw_input was called, but this frontend does not support input requests.")


def make_shell():
    config = Config()
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.autocall = 0
    config.PlainTextFormatter.max_seq_length = 0
    # A database of what was typed would be a thread and a file.
    config.HistoryManager.enabled = False
    shell = Shell.instance(config=config)
    builtins.input = no_input
    getpass.getpass = no_input
    sys.meta_path.insert(0, AfterImport({"PIL.Image": show_images}))
    return shell


def generation():
    try:
        with open(GENERATION) as file:
            return file.read()
    except OSError:
        return ""


def reseed():
    """Gives generators that are the process's own other numbers than those that a copy of this process has ahead."""
    random.seed()
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed()
    if ssl := sys.modules.get("ssl"):
        ssl.RAND_add(os.urandom(64), 64.0)
    if torch := sys.modules.get("torch"):
        torch.seed()


def execute(shell, message, inherited):
    variables = message.get("env") or {}
    os.environ.update(variables)
    shell.failed = False
    Stream.last = None
    shell.control.send({"type": "count", "execution_count": shell.execution_count})
    try:
        Interrupts.listen()
        try:
            shell.run_cell(message["code"], store_history=True)
        finally:
            Interrupts.ignore()
    except KeyboardInterrupt:
        # It came between the cell's own end and the line that stops listening to it.
        Interrupts.ignore()
        if not shell.failed:
            shell._showtraceback(KeyboardInterrupt, KeyboardInterrupt(), ["KeyboardInterrupt"])
    if os.getpid() != shell.process:
        # A child that the code forked came to the end of the cell: there is one kernel, and this is not it.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(0)
    for name in variables:
        if name in inherited:
            os.environ[name] = inherited[name]
        else:
            os.environ.pop(name, None)
    finish_output()
    shell.control.send({"type": "done"})


def wait_for_message(control):
    """Blocks until something can be received; tasks that the code left on its event loop go on meanwhile."""
    if control.received:
        return
    loop = async_helpers.get_asyncio_loop()
    if loop.is_closed() or loop.is_running() or not asyncio.all_tasks(loop):
        select.select([control.connection], [], [])
        return

    async def readable():
        ready = loop.create_future()
        loop.add_reader(control.connection.fileno(), ready.set_result, None)
        try:
            await ready
        finally:
            loop.remove_reader(control.connection.fileno())

    loop.run_until_complete(readable())


def open_again(kept):
    """Descriptors 1 and 2 and the streams on them, where the last cell closed them."""
    for descriptor, copy in kept.items():
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(copy, descriptor)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name, None)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, Stream(descriptor, f"<{name}>"))


def kernel(shell, connection, directory):
    """The life of a forked kernel. Never returns."""
    random.seed()
    gc.unfreeze()
    Interrupts.ignore()
    shell.process = os.getpid()
    os.register_at_fork(after_in_child=Interrupts.end_children)
    kept = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    sys.stdout = sys.__stdout__ = Stream(1, "<stdout>")
    sys.stderr = sys.__stderr__ = Stream(2, "<stderr>")
    shell.control = control = Control(connection)
    try:
        os.chdir(directory)
    except OSError as error:
        control.send({"type": "failed", "reason": f"{directory}: {error.strerror}"})
        os._exit(1)
    with contextlib.suppress(OSError, ValueError), open(VARIABLES) as file:
        os.environ.update(json.load(file))
    inherited = dict(os.environ)
    seeded = generation()
    control.send({"type": "ready"})
    while True:
        wait_for_message(control)
        message = control.receive()
        if message is None:
            os._exit(0)
        open_again(kept)
        if (now := generation()) != seeded:
            seeded = now
            reseed()
        execute(shell, message, inherited)


def become_kernel(descriptors):
    connection, stdout, stderr = descriptors
    os.setpgid(0, 0)
    # The fork server dies with the interpreter, and its kernels with it.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # When memory is short, the code that took it shall end, and neither the interpreter nor the fork server.
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("500")
    except OSError:
        pass
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)
    return socket.socket(fileno=connection)


def main():
    # Stdin is the connection; programs that the code starts shall find nothing there.
    connection = socket.socket(fileno=os.dup(0))
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    sys.path[0] = ""
    sys.argv = [""]
    shell = make_shell()
    Interrupts.ignore()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # Pages of what was imported stay shared with the kernels.
    gc.collect()
    gc.freeze()
    server = Control(connection)
    server.send({"type": "ready"})
    while True:
        line, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 3)
        if not line:
            return
        directory = json.loads(line)["cwd"]
        try:
            process = os.fork()
            answer = {"type": "forked", "pid": process}
        except OSError as error:
            process = None
            answer = {"type": "failed", "reason": error.strerror}
        if process == 0:
            connection.close()
            kernel(shell, become_kernel(descriptors), directory)
        for descriptor in descriptors:
            os.close(descriptor)
        server.send(answer)


if __name__ == "__main__":
    main()
