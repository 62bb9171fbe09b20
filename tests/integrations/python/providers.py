"""The six providers by their official clients, pointed at the one on loopback."""

from collections.abc import Callable
from dataclasses import dataclass

import anthropic
import fireworks
import groq
import together
from conftest import Fake
from ibm_watsonx_ai import Credentials
from ibm_watsonx_ai.foundation_models import ModelInference
from mistralai.client import Mistral
from soulbox_agents import AnthropicModel, ChatModel, Fenced, MistralModel, Model, WatsonxModel, WatsonxTextModel

KEY = "good-key"


def inference(fake: Fake, model: str, key: str = KEY) -> ModelInference:
    # This client speaks HTTPS only, and finds another installation than IBM's cloud by these words.
    where = Credentials(url=f"{fake.https}/watsonx", username="somebody", api_key=key, instance_id="openshift", version="5.2")
    return ModelInference(
        model_id=model, credentials=where, project_id="0d0e1b5c-77a1-4d5b-9d5d-2f6a0f6c2f11", verify=str(fake.ca), validate=False,
        max_retries=0,
    )  # fmt: skip


def chat(client) -> Callable[[Fake, str, str], Model]:
    return lambda fake, model, key: ChatModel(client(fake, key), model)


@dataclass(frozen=True)
class Provider:
    """`make(fake, model, key)` gives a model; `real` is a name that the provider has, `path` where it is asked."""

    name: str
    make: Callable[[Fake, str, str], Model]
    real: str
    path: str
    auth: str = "bearer"
    fenced: bool = False

    def model(self, fake: Fake, name: str | None = None, key: str = KEY) -> Model:
        made = self.make(fake, name or self.real, key)
        return Fenced(made) if self.fenced else made


ANTHROPIC = Provider(
    "anthropic",
    lambda fake, model, key: AnthropicModel(anthropic.Anthropic(api_key=key, base_url=f"{fake.http}/anthropic"), model),
    "claude-sonnet-5",
    "/anthropic/v1/messages",
)
ASYNC_ANTHROPIC = Provider(
    "anthropic",
    lambda fake, model, key: AnthropicModel(anthropic.AsyncAnthropic(api_key=key, base_url=f"{fake.http}/anthropic"), model),
    "claude-sonnet-5",
    "/anthropic/v1/messages",
)


def mistral(fake: Fake, model: str, key: str) -> Model:
    return MistralModel(Mistral(api_key=key, server_url=f"{fake.http}/mistral"), model)


MISTRAL = Provider("mistral", mistral, "mistral-large-2512", "/mistral/v1/chat/completions")
CODESTRAL = Provider("mistral", mistral, "codestral-2508", "/mistral/v1/chat/completions", fenced=True)
GROQ = Provider(
    "groq",
    chat(lambda fake, key: groq.Groq(api_key=key, base_url=f"{fake.http}/groq")),
    "openai/gpt-oss-120b",
    "/groq/openai/v1/chat/completions",
)
ASYNC_GROQ = Provider(
    "groq",
    chat(lambda fake, key: groq.AsyncGroq(api_key=key, base_url=f"{fake.http}/groq")),
    "openai/gpt-oss-120b",
    "/groq/openai/v1/chat/completions",
)
FIREWORKS = Provider(
    "fireworks",
    chat(lambda fake, key: fireworks.Fireworks(api_key=key, base_url=f"{fake.http}/fireworks/inference")),
    "accounts/fireworks/models/qwen2p5-coder-32b-instruct",
    "/fireworks/inference/v1/chat/completions",
)
TOGETHER = Provider(
    "together",
    chat(lambda fake, key: together.Together(api_key=key, base_url=f"{fake.http}/together")),
    "meta-llama/Llama-3.3-70B-Instruct-Turbo",
    "/together/v1/chat/completions",
)
WATSONX = Provider(
    "watsonx",
    lambda fake, model, key: WatsonxModel(inference(fake, model, key)),
    "ibm/granite-4-h-small",
    "/watsonx/ml/v1/text/chat_stream",
)
GRANITE = Provider(
    "watsonx",
    lambda fake, model, key: WatsonxTextModel(inference(fake, model, key)),
    "ibm/granite-3-3-8b-instruct",
    "/watsonx/ml/v1/text/generation_stream",
    fenced=True,
)
WITH_TOOLS = (ANTHROPIC, ASYNC_ANTHROPIC, MISTRAL, GROQ, ASYNC_GROQ, FIREWORKS, TOGETHER, WATSONX)
ALL = (*WITH_TOOLS, CODESTRAL, GRANITE)
