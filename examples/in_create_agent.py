"""A relay inside `create_agent`: two turns of one conversation, and what each side saw of it.

Both writers are test doubles here, so that the first turn surely has a call and we can look at
what they were sent. Expect the answer, its report, and then the second turn as the local model
saw it: with the command of the first turn back in its place, although neither the user nor the
hosted model ever sees a command. Tools come with a later release.
"""

from __future__ import annotations

from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver

from langchain_relay import RelayChatModel, relay_report
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

local = ScriptedLocal("The capital of Mongolia is ", "<call>4</call>", ".")
hosted = ScriptedDelegate("Ulaanbaatar", usage=(30, 5), model="expert")
model = RelayChatModel(model=local, delegate=hosted, prices={"expert": ("0.25", "2")})

agent = create_agent(model, tools=[], system_prompt="Be brief.", checkpointer=InMemorySaver())
thread = {"configurable": {"thread_id": "1"}}


def ask(question: str):
    state = agent.invoke({"messages": [("user", question)]}, thread)
    return state["messages"][-1]


print(relay_report(ask("What is the capital of Mongolia?")))
ask("Say it again, please.")

print("\nthe second turn, as the local model saw it:")
for turn in local.prompts[1][-3:]:
    print(f"  {turn.role}: {turn.content}")
print("\nthe second turn, as the hosted model saw it:")
for message in hosted.attempts[1].messages[-3:]:
    print(f"  {message.type}: {message.text}")
