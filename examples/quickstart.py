"""One relayed answer, and who wrote what in it at which price.

A real SmolLM2-135M writes, taught by prompt to write `<call>n</call>` where it is unsure; the
hosted model then writes at most n tokens. Without a key a second SmolLM2 stands in for it (see
`expert.py`). Expect the answer, with the hosted words in brackets, and the report below it.
"""

from __future__ import annotations

from expert import expert

from langchain_relay import Budget, RelayChatModel, relay_report

model = RelayChatModel(
    model="smollm2-135m",
    **expert(),
    budget=Budget(usd="0.01", calls=4),
    temperature=0,
    seed=1,
    max_tokens=60,
    n_ctx=1024,
    n_threads=1,
)
answer = model.invoke("How many minutes are in 3 hours?")
print(relay_report(answer))
