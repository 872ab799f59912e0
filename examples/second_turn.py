"""A conversation of three turns: each evaluates only what is new, though LangChain resends it all.

The answers go back without the hidden commands; the engine puts them in again and finds the tokens
of the conversation in its KV cache. Another conversation with the same system prompt gets a copy of
that part. The models are a real SmolLM2 and the one of `expert.py`. Expect one line per prompt: how
many tokens it has, and how many of them were read from the cache.
"""

from __future__ import annotations

from expert import expert
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

from langchain_relay import RelayChatModel

SYSTEM = SystemMessage("You are a guide to Paris. Answer in one short sentence.")

model = RelayChatModel(
    model="smollm2-135m",
    **expert(),
    temperature=0,
    seed=1,
    max_tokens=24,
    n_ctx=1024,
    n_threads=1,
)


def say(name: str, answer: AIMessage) -> None:
    usage = answer.usage_metadata
    assert usage is not None
    read = usage["input_token_details"]["cache_read"]
    print(f"{name:22} {usage['input_tokens']:4} prompt tokens, {read:4} from the cache")


messages = [SYSTEM, HumanMessage("When was the Eiffel Tower built?")]
for turn in (1, 2, 3):
    answer = model.invoke(messages)
    say(f"turn {turn}", answer)
    messages += [answer, HumanMessage("And how tall is it?")]

say("another conversation", model.invoke([SYSTEM, HumanMessage("Where is the Louvre?")]))
