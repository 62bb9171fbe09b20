"""Two agents of AutoGen, one writes code and one runs it.

pip install soulbox-agents autogen-agentchat "autogen-ext[openai]", then eval "$(soulbox env)".
"""

import asyncio
import os
import sys

from autogen_agentchat.agents import AssistantAgent, CodeExecutorAgent
from autogen_agentchat.conditions import MaxMessageTermination
from autogen_agentchat.teams import RoundRobinGroupChat
from autogen_core.models import ModelFamily
from autogen_ext.models.openai import OpenAIChatCompletionClient
from soulbox_agents.autogen import SoulBoxCodeExecutor


async def main() -> None:
    question = " ".join(sys.argv[1:]) or "How many primes are there below 10,000? Write Python in a fenced block and print the answer."
    about = {"vision": False, "function_calling": False, "json_output": False, "family": ModelFamily.UNKNOWN, "structured_output": False}
    model = OpenAIChatCompletionClient(model=os.environ.get("OPENAI_MODEL", "gpt-5.2"), model_info=about)
    async with SoulBoxCodeExecutor() as executor:
        writer = AssistantAgent("writer", model)
        runner = CodeExecutorAgent("runner", executor)
        # The question, the code, what it did, the answer.
        team = RoundRobinGroupChat([writer, runner], termination_condition=MaxMessageTermination(4))
        async for message in team.run_stream(task=question):
            if hasattr(message, "content"):
                print(f"{message.source}: {message.content}", flush=True)
    await model.close()


asyncio.run(main())
