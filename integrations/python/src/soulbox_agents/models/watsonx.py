"""IBM watsonx.ai, by `ibm_watsonx_ai.foundation_models.ModelInference`.

That client retries 429 and 503 by itself, ten times, unless it was made with `max_retries=0`; then the conversation does. What it retries
below that, a 500 for instance, cannot be turned off.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..messages import Assistant, Message, Results, Usage, User
from ..model import Reply, StreamCut
from ..shapes import openai_tools
from ..tools import Tool
from .chat import ChatAssembler, written

if TYPE_CHECKING:
    from ibm_watsonx_ai.foundation_models import ModelInference


class _Watsonx:
    def __init__(self, inference: "ModelInference", *, sees_pictures: bool = False, **params: Any) -> None:
        self.inference = inference
        self.name = str(inference.model_id or inference.deployment_id)
        self.sees_pictures = sees_pictures
        self.params = params or None

    @property
    def secrets(self) -> Sequence[str]:
        credentials = getattr(getattr(self.inference, "_client", None), "credentials", None)
        found = (getattr(credentials, name, None) for name in ("api_key", "token", "password"))
        return [secret for secret in found if isinstance(secret, str) and secret]


class WatsonxModel(_Watsonx):
    """A model with chat and tools. `params` as `ModelInference` has them."""

    def open(self, system: str, messages: Sequence[Message], tools: Sequence[Tool]) -> Any:
        return self.inference.achat_stream(
            written(system, messages, self.sees_pictures), params=self.params, tools=openai_tools(tools) or None
        )

    def assembler(self) -> ChatAssembler:
        return ChatAssembler()


class WatsonxTextModel(_Watsonx):
    """A model of text generation alone: wrap this in `Fenced`. The prompt is Granite's, in the form that its generation was trained on."""

    def open(self, system: str, messages: Sequence[Message], tools: Sequence[Tool]) -> Any:
        if tools:
            raise TypeError("text generation has no tools: use Fenced(WatsonxTextModel(...))")
        turns = [("system", system), *map(_turn, messages)] if system else [*map(_turn, messages)]
        prompt = _question(turns) if "code-instruct" in self.name else _roles(turns)
        limit = {"max_new_tokens": 4096}
        return self.inference.agenerate_stream(prompt, params=limit | (self.params or {}))

    def assembler(self) -> "_TextAssembler":
        return _TextAssembler()


def _turn(message: Message) -> tuple[str, str]:
    match message:
        case User(text):
            return "user", text
        case Assistant(text):
            return "assistant", text
        case Results():
            raise TypeError("text generation has no tools: use Fenced(WatsonxTextModel(...))")


def _roles(turns: Sequence[tuple[str, str]]) -> str:
    """Granite 3 and newer."""
    said = [f"<|start_of_role|>{role}<|end_of_role|>{text}<|end_of_text|>\n" for role, text in turns]
    return "".join(said) + "<|start_of_role|>assistant<|end_of_role|>"


def _question(turns: Sequence[tuple[str, str]]) -> str:
    """The Granite code models before that."""
    names = {"system": "System", "user": "Question", "assistant": "Answer"}
    return "".join(f"{names[role]}:\n{text}\n\n" for role, text in turns) + "Answer:\n"


class _TextAssembler:
    def __init__(self) -> None:
        self._text: list[str] = []
        self._stop: str | None = None
        self._usage: Usage | None = None

    def feed(self, chunk: Any) -> str:
        said = ""
        results: Sequence[Mapping[str, Any]] = chunk.get("results") or ()
        for result in results:
            said += result.get("generated_text") or ""
            stop = result.get("stop_reason")
            if stop and str(stop).lower() != "not_finished":
                self._stop = str(stop).lower()
            if "generated_token_count" in result:
                # Counts so far; the prompt's comes once.
                known = self._usage or Usage()
                self._usage = Usage(result.get("input_token_count") or known.input, result["generated_token_count"] or known.output)
        self._text.append(said)
        return said

    def finish(self) -> Reply:
        if self._stop is None:
            raise StreamCut("the stream ended before its end")
        return Reply("".join(self._text), usage=self._usage, cut_short=self._stop == "max_tokens")
