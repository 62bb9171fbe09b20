"""A model writes code, a sandbox runs it.

`Conversation` is the loop over a `models` adapter of an official client; `Toolbox` is the tools alone, for a loop of your own;
`soulbox_agents.langchain` and `soulbox_agents.autogen` are for those frameworks.
"""

from .conversation import AsyncConversation, Conversation
from .events import CallFinished, CallStarted, Event, Output, Retrying, Shown, Text
from .fenced import Fenced
from .messages import Assistant, Message, Picture, Results, ToolCall, ToolResult, Usage, User
from .model import Assembler, Model, Reply, StreamCut
from .models import AnthropicModel, ChatModel, MistralModel, WatsonxModel, WatsonxTextModel
from .outcome import Ending, Limits, Outcome, Prices
from .retry import Retry
from .toolbox import AsyncToolbox, Toolbox
from .tools import TOOLS, Settings, Tool

__all__ = [
    "TOOLS",
    "AnthropicModel",
    "Assembler",
    "Assistant",
    "AsyncConversation",
    "AsyncToolbox",
    "CallFinished",
    "CallStarted",
    "ChatModel",
    "Conversation",
    "Ending",
    "Event",
    "Fenced",
    "Limits",
    "Message",
    "MistralModel",
    "Model",
    "Outcome",
    "Output",
    "Picture",
    "Prices",
    "Reply",
    "Results",
    "Retry",
    "Retrying",
    "Settings",
    "Shown",
    "StreamCut",
    "Text",
    "Tool",
    "ToolCall",
    "ToolResult",
    "Toolbox",
    "Usage",
    "User",
    "WatsonxModel",
    "WatsonxTextModel",
]
