"""An agent of LangChain with a sandbox: pip install soulbox-agents langchain langchain-openai, then eval "$(soulbox env)"."""

import os
import sys
from pathlib import Path

from e2b_code_interpreter import Sandbox
from langchain.agents import create_agent
from langchain_openai import ChatOpenAI
from soulbox_agents.langchain import langchain_tools

question = " ".join(sys.argv[1:]) or "Plot a sine wave and say where it crosses zero."
model = ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-5.2"))
with Sandbox.create(os.environ.get("SOULBOX_TEMPLATE")) as sandbox:
    agent = create_agent(model, langchain_tools(sandbox))
    messages = agent.invoke({"messages": [("user", question)]})["messages"]
pictures = [picture for message in messages if message.type == "tool" and message.artifact for picture in message.artifact.pictures]
for number, picture in enumerate(pictures, 1):
    Path(f"chart-{number}.png").write_bytes(picture.data)
print(messages[-1].text)
