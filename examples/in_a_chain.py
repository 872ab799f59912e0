"""A relay in a chain, and the switch between local, relayed and hosted for each call.

`model.bind(delegation=...)` fixes who may write for one use of the model: `never` keeps the
answer local, `always` has the hosted model write all of it, `auto` leaves it to the policy. The
models are a real SmolLM2 and the one of `expert.py`. Expect three answers to one question, each
with its calls and what it cost, counted by `get_relay_callback` from outside the chain.
"""

from __future__ import annotations

from expert import expert
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_relay import RelayChatModel, get_relay_callback

model = RelayChatModel(
    model="smollm2-135m",
    **expert(),
    temperature=0,
    seed=1,
    max_tokens=40,
    n_ctx=1024,
    n_threads=1,
)
prompt = ChatPromptTemplate.from_messages(
    [("system", "Be brief."), ("human", "How many {small} are in {large}?")]
)

for delegation in ("never", "auto", "always"):
    chain = prompt | model.bind(delegation=delegation) | StrOutputParser()
    with get_relay_callback() as totals:
        text = chain.invoke({"small": "minutes", "large": "3 hours"})
    print(f"{delegation}: {text}")
    print(f"    {totals}")
