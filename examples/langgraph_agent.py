"""A graph of LangGraph whose tools have a sandbox: pip install soulbox-agents langgraph langchain-openai, then eval "$(soulbox env)"."""

import asyncio
import os
import sys
from pathlib import Path

from e2b_code_interpreter import AsyncSandbox
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from soulbox_agents import Output
from soulbox_agents.langchain import langchain_tools


def show(event):
    if isinstance(event, Output):
        print(event.text, end="", flush=True)


async def main() -> list:
    question = " ".join(sys.argv[1:]) or "Plot a sine wave and say where it crosses zero."
    async with await AsyncSandbox.create(os.environ.get("SOULBOX_TEMPLATE")) as sandbox:
        tools = langchain_tools(sandbox, on_event=show)
        model = ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "gpt-5.2")).bind_tools(tools)

        async def think(state: MessagesState):
            return {"messages": [await model.ainvoke(state["messages"])]}

        graph = StateGraph(MessagesState)
        graph.add_node("think", think)
        graph.add_node("tools", ToolNode(tools))
        graph.add_edge(START, "think")
        graph.add_conditional_edges("think", tools_condition)
        graph.add_edge("tools", "think")
        agent = graph.compile(checkpointer=InMemorySaver())
        # The thread's history is the checkpointer's, its variables are the sandbox's.
        thread = {"configurable": {"thread_id": "1"}}
        state = await agent.ainvoke({"messages": [("user", question)]}, thread)
    return state["messages"]


messages = asyncio.run(main())
pictures = [picture for message in messages if message.type == "tool" and message.artifact for picture in message.artifact.pictures]
for number, picture in enumerate(pictures, 1):
    Path(f"chart-{number}.png").write_bytes(picture.data)
print(messages[-1].text)
