"""An agent under a budget asks before it goes on.

Both writers are test doubles here. The thread may spend one hosted call. Expect the first answer
with help; then the graph stops with a question, and the human allows as much again; the third
answer stops too, and the human says that the local model is to go on alone.
"""

from __future__ import annotations

from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_relay import Budget, RelayChatModel
from langchain_relay.middleware import RelayBudgetMiddleware
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

model = RelayChatModel(
    model=ScriptedLocal("It is ", "<call>8</call>", ", so take a coat."),
    delegate=ScriptedDelegate("3 degrees in Oslo", usage=(40, 6), model="expert"),
    prices={"expert": ("1", "10")},  # US dollars per million tokens, in and out
)
agent = create_agent(
    model,
    tools=[],
    middleware=[RelayBudgetMiddleware(thread=Budget(calls=1), exit_behavior="ask")],
    checkpointer=InMemorySaver(),  # what was spent is part of the checkpoint
)
thread = {"configurable": {"thread_id": "weather"}}
humans_choices = iter(["continue", "local"])

for _ in range(3):
    state = agent.invoke({"messages": [("user", "How cold is it?")]}, thread)
    while questions := state.get("__interrupt__"):
        print(f"agent: {questions[0].value['question']}")
        choice = next(humans_choices)
        print(f"human: {choice}")
        state = agent.invoke(Command(resume=choice), thread)
    print(f"answer: {state['messages'][-1].text}")
