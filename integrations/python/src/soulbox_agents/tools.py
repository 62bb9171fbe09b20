"""The tools that a model gets, and what each does in a sandbox.

A tool is a generator: it yields what the sandbox's methods return and is sent their results. So one function serves `Sandbox`, whose
methods return values, and `AsyncSandbox`, whose methods return awaitables; see `drive` and `drive_async` in `toolbox`.
"""

import base64
import binascii
import re
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass
from typing import Any

from e2b_code_interpreter import CommandExitException, Execution, FileType, Result

from .budget import Part, Prose, Rows
from .messages import Picture

_MARK = "SOULBOX_CALL"
LANGUAGES = ("python", "javascript", "typescript", "bash")


@dataclass(frozen=True)
class Settings:
    """Bounds of one call. Times in seconds, sizes in bytes."""

    timeout: float = 60
    tokens: int = 4000
    pictures: int = 4
    picture_bytes: int = 3_500_000
    """Providers refuse larger ones."""
    output_bytes: int = 64_000_000
    """Code that prints more is stopped."""
    file_bytes: int = 16_000_000
    """Larger files are not read."""


@dataclass(frozen=True)
class Content:
    parts: tuple[Part, ...]
    failed: bool = False
    pictures: tuple[Picture, ...] = ()
    exit_code: int | None = None


class Refused(Exception):
    """What the model asked for is not done; it is told why."""


Told = Callable[[str], Awaitable[None] | None]


@dataclass(frozen=True)
class Listener:
    """Hears of output and pictures as they come. Returns awaitables exactly when the sandbox is an async one."""

    on_stdout: Told
    on_stderr: Told
    on_picture: Callable[[Picture], Awaitable[None] | None]


Steps = Generator[Any, Any, Content]
Perform = Callable[[Any, Mapping[str, Any], Settings, Listener], Steps]


@dataclass(frozen=True)
class Tool:
    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON Schema of an object whose properties are strings."""
    perform: Perform

    def problem(self, arguments: Mapping[str, Any]) -> str | None:
        """Why these arguments cannot be used, if so."""
        properties: Mapping[str, Mapping[str, Any]] = self.parameters["properties"]
        for name in self.parameters["required"]:
            if name not in arguments:
                return f"the argument `{name}` is missing"
        for name, value in arguments.items():
            if name not in properties:
                return f"there is no argument `{name}`, only {', '.join(properties)}"
            if not isinstance(value, str):
                return f"the argument `{name}` has to be a string"
            if (known := properties[name].get("enum")) and value not in known:
                return f"`{name}` has to be one of {', '.join(known)}"
        return None


class _Output:
    """Bounds what code prints, and keeps what tools without a collector of their own need."""

    def __init__(self, settings: Settings, listener: Listener) -> None:
        self._left = settings.output_bytes
        self._most = settings.output_bytes
        self._listener = listener
        self.stdout: list[str] = []
        self.stderr: list[str] = []

    def hear(self, stream: str, said: Any) -> Awaitable[None] | None:
        # The interpreter's messages have a line, those of commands are strings.
        text = str(getattr(said, "line", said))
        self._left -= len(text)
        if self._left < 0:
            raise Refused(f"stopped, because it printed more than {self._most} bytes")
        if stream == "stdout":
            self.stdout.append(text)
            return self._listener.on_stdout(text)
        self.stderr.append(text)
        return self._listener.on_stderr(text)

    def parts(self) -> list[Part]:
        titles = (("", self.stdout), ("stderr:", self.stderr))
        return [Prose("".join(said).rstrip("\n"), title) for title, said in titles if "".join(said).strip()]


def _run_code(sandbox: Any, arguments: Mapping[str, Any], settings: Settings, listener: Listener) -> Steps:
    output = _Output(settings, listener)
    shown: list[Picture] = []

    def result(one: Result) -> Awaitable[None] | None:
        if picture := _picture(one):
            shown.append(picture)
            return listener.on_picture(picture)
        return None

    execution: Execution = yield sandbox.run_code(
        arguments["code"],
        language=arguments.get("language", "python"),
        on_stdout=lambda said: output.hear("stdout", said),  # pyright: ignore[reportUnknownLambdaType]
        on_stderr=lambda said: output.hear("stderr", said),  # pyright: ignore[reportUnknownLambdaType]
        on_result=result,
        timeout=settings.timeout,
    )
    parts = output.parts()
    parts += [part for one in execution.results if (part := _part(one))]
    seen, said = _seen(shown, settings)
    parts += said
    if execution.error:
        parts.append(Prose(_cause(execution)))
    return Content(tuple(parts) or (Prose("(no output)"),), bool(execution.error), seen)


def _cause(execution: Execution) -> str:
    """One line, with the place in the model's own code where the interpreter marks it."""
    assert execution.error is not None
    name, value = execution.error.name, execution.error.value.strip().splitlines()
    line = ": ".join(part for part in (name, value[0] if value else "") if part) or "the code failed"
    if name == "" and line.isdigit():
        line = f"exit code {line}"
    place = re.search(r"^-+> ?(\d+) (.*)$", execution.error.traceback, re.MULTILINE)
    return f"{line} (line {place[1]}: {place[2].strip()[:200]})" if place else line


def _picture(result: Result) -> Picture | None:
    encoded, media_type = (result.png, "image/png") if result.png else (result.jpeg, "image/jpeg")
    if not encoded:
        return None
    try:
        data = base64.b64decode(encoded)
    except binascii.Error:
        return None
    return Picture(media_type, data, result.chart.to_dict() if result.chart else None)


def _part(result: Result) -> Part | None:
    """The one form of a result that tells a model most; pictures are told of apart."""
    if result.data:
        return Rows(result.data)
    if result.png or result.jpeg:
        return None
    text = result.text or result.markdown or result.latex or (str(result.json) if result.json else "")
    text = text or result.html or result.svg or ""
    return Prose(text) if text else None


def _seen(shown: list[Picture], settings: Settings) -> tuple[tuple[Picture, ...], list[Part]]:
    """Those that fit, and what to say of all."""
    small = [picture for picture in shown if len(picture.data) <= settings.picture_bytes]
    seen = tuple(small[: settings.pictures])
    if not shown:
        return (), []
    said = [f"shown: {picture.describe()}" for picture in shown[: settings.pictures]]
    if len(shown) > settings.pictures:
        said.append(f"[{len(shown) - settings.pictures} more of {len(shown)} images are left out here]")
    return seen, [Prose("\n".join(said))]


def _run_command(sandbox: Any, arguments: Mapping[str, Any], settings: Settings, listener: Listener) -> Steps:
    output = _Output(settings, listener)
    mark = uuid.uuid4().hex
    try:
        yield sandbox.commands.run(
            arguments["command"],
            envs={_MARK: mark},
            on_stdout=lambda said: output.hear("stdout", said),  # pyright: ignore[reportUnknownLambdaType]
            on_stderr=lambda said: output.hear("stderr", said),  # pyright: ignore[reportUnknownLambdaType]
            timeout=settings.timeout,
            retain_output=False,
        )
    except CommandExitException as ended:
        return Content((*output.parts(), Prose(f"exit code {ended.exit_code}")), failed=True, exit_code=ended.exit_code)
    except BaseException:
        # A command outlives its client's interest in it, and nobody but us knows that it is there.
        for process in (yield sandbox.commands.list(request_timeout=5)):
            if process.envs.get(_MARK) == mark:
                yield sandbox.commands.kill(process.pid, request_timeout=5)
        raise
    return Content(tuple(output.parts()) or (Prose("(no output)"),), exit_code=0)


def _read_file(sandbox: Any, arguments: Mapping[str, Any], settings: Settings, listener: Listener) -> Steps:
    path = arguments["path"]
    entry = yield sandbox.files.get_info(path)
    if entry.type == FileType.DIR:
        raise Refused(f"{path} is a directory")
    if entry.size > settings.file_bytes:
        raise Refused(f"{path} has {entry.size} bytes, more than {settings.file_bytes}; read a part of it with a command")
    data = bytes((yield sandbox.files.read(path, format="bytes")))
    for beginning, media_type in ((b"\x89PNG\r\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg")):
        if data.startswith(beginning):
            picture = Picture(media_type, data)
            yield listener.on_picture(picture)
            seen, said = _seen([picture], settings)
            return Content(tuple(said), pictures=seen)
    try:
        return Content((Prose(data.decode() or "(empty file)"),))
    except UnicodeDecodeError:
        raise Refused(f"{path} is not text ({len(data)} bytes)") from None


def _write_file(sandbox: Any, arguments: Mapping[str, Any], settings: Settings, listener: Listener) -> Steps:
    yield sandbox.files.write(arguments["path"], arguments["content"])
    return Content((Prose(f"wrote {len(arguments['content'].encode())} bytes to {arguments['path']}"),))


def _list_files(sandbox: Any, arguments: Mapping[str, Any], settings: Settings, listener: Listener) -> Steps:
    entries = yield sandbox.files.list(arguments.get("path", "."))
    columns = {
        "name": [f"{entry.name}/" if entry.type == FileType.DIR else entry.name for entry in entries],
        "bytes": [entry.size for entry in entries],
    }
    return Content((Rows(columns),) if entries else (Prose("(empty directory)"),))


def _strings(required: Mapping[str, str], optional: Mapping[str, Any] | None = None) -> dict[str, Any]:
    described = {name: {"type": "string", "description": what} for name, what in required.items()}
    return {
        "type": "object",
        "properties": described | dict(optional or {}),
        "required": list(required),
        "additionalProperties": False,
    }


_LANGUAGE = {"type": "string", "enum": list(LANGUAGES), "description": "Language of the code, python by default."}
_FOLDER = {"type": "string", "description": "Path of the directory, the home directory by default."}

TOOLS: tuple[Tool, ...] = (
    Tool(
        "run_code",
        "Runs code in a notebook inside the sandbox. Variables stay for later calls. Returns what was printed, the value of the last "
        "expression, tables and charts.",
        _strings({"code": "The code to run."}, {"language": _LANGUAGE}),
        _run_code,
    ),
    Tool(
        "run_command",
        "Runs a shell command inside the sandbox and returns its output and exit code.",
        _strings({"command": "The command line, for bash."}),
        _run_command,
    ),
    Tool("read_file", "Returns a text file or an image of the sandbox.", _strings({"path": "Path of the file."}), _read_file),
    Tool(
        "write_file",
        "Writes a text file in the sandbox; directories on the way are made.",
        _strings({"path": "Path of the file.", "content": "Its whole new content."}),
        _write_file,
    ),
    Tool("list_files", "Lists a directory of the sandbox.", _strings({}, {"path": _FOLDER}), _list_files),
)
