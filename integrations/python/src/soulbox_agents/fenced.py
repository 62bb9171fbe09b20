"""Fenced code blocks, for models that have no tools: they write a block, it is run, and they are told what it did."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .messages import Assistant, Message, Results, ToolCall, ToolResult, User
from .model import Assembler, Model, Reply
from .tools import Tool

LANGUAGES = ("python", "javascript", "typescript", "bash")
NAMES = {
    "python": "python", "py": "python", "python3": "python",
    "javascript": "javascript", "js": "javascript",
    "typescript": "typescript", "ts": "typescript",
    "bash": "bash", "sh": "bash", "shell": "bash",
}  # fmt: skip
# A fence may be longer than three marks, and only one at least as long ends it.
_OPENING = re.compile(r"^ {0,3}(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n`]*$")


def calls(answer: str, languages: Sequence[str] = LANGUAGES) -> tuple[ToolCall, ...]:
    """The blocks of an answer, as calls of run_code. A block that nobody closed is a call with a problem."""
    found: list[ToolCall] = []
    lines = iter(answer.split("\n"))
    for line in lines:
        if not (opening := _OPENING.match(line)):
            continue
        mark, language = opening[1], NAMES.get(opening[2].lower())
        code: list[str] = []
        closed = False
        for inner in lines:
            if inner.strip().startswith(mark) and not inner.strip().strip(mark[0]):
                closed = True
                break
            code.append(inner)
        if language in languages:
            arguments = {"code": "\n".join(code), "language": language}
            problem = None if closed else "the code block has no end, so it was not run"
            found.append(ToolCall(f"block-{len(found) + 1}", "run_code", arguments, problem))
    return tuple(found)


def told(results: Sequence[ToolResult]) -> str:
    """What a model hears of its blocks."""
    said = [f"Result of code block {number}{' (failed)' if one.failed else ''}:\n{one.text}" for number, one in enumerate(results, 1)]
    return "\n\n".join(said)


class Fenced:
    """A model without tools as one that has run_code."""

    def __init__(self, model: Model, languages: Sequence[str] = LANGUAGES) -> None:
        self.model = model
        self.languages = languages
        self.name = model.name
        self.sees_pictures = model.sees_pictures

    @property
    def secrets(self) -> Sequence[str]:
        return self.model.secrets

    def open(self, system: str, messages: Sequence[Message], tools: Sequence[Tool]) -> Any:
        rules = (
            f"To run code, write it in a fenced Markdown block that names its language: {', '.join(self.languages)}. Every such block "
            "of your answer is run in a sandbox, in one notebook that keeps variables, and you are told what it printed and returned. "
            "When you have what was asked for, answer without a block."
        )
        return self.model.open(f"{system}\n\n{rules}".strip(), [self._plain(message) for message in messages], ())

    def assembler(self) -> "Assembler":
        return _FencedAssembler(self.model.assembler(), self.languages)

    def _plain(self, message: Message) -> Message:
        match message:
            case Results(results):
                return User(told(results), tuple(picture for one in results for picture in one.pictures))
            case Assistant(text):
                return Assistant(text)
            case User():
                return message


class _FencedAssembler:
    def __init__(self, inner: Assembler, languages: Sequence[str]) -> None:
        self.inner = inner
        self.languages = languages

    def feed(self, chunk: Any) -> str:
        return self.inner.feed(chunk)

    def finish(self) -> Reply:
        reply = self.inner.finish()
        return replace(reply, calls=calls(reply.text, self.languages))
