"""Adapters for the official clients, which are passed in and never imported."""

from .anthropic import AnthropicModel
from .chat import ChatModel
from .mistral import MistralModel
from .watsonx import WatsonxModel, WatsonxTextModel

__all__ = ["AnthropicModel", "ChatModel", "MistralModel", "WatsonxModel", "WatsonxTextModel"]
