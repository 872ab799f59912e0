"""Six questions at once with `abatch`: four are decoded together, the others wait in a queue.

One llama.cpp context writes all answers; an answer that waits for the hosted model keeps its
place and costs no decoding. The models are a real SmolLM2 and the one of `expert.py`. Expect six
answers in the order of the questions, hosted words in brackets, and the totals of the batch.
"""

from __future__ import annotations

import asyncio

from expert import expert

from langchain_relay import Budget, RelayChatModel, get_relay_callback, relay_report

model = RelayChatModel(
    model="smollm2-135m",
    **expert(),
    budget=Budget(usd="0.01"),  # for each answer
    temperature=0,
    seed=1,
    max_tokens=24,
    n_ctx=768,
    n_threads=1,
    max_concurrency=4,
)
QUESTIONS = [
    "How many minutes are in 3 hours?",
    "Who painted Guernica?",
    "Say hello to my friend Bob.",
    "What is 12 * 12?",
    "What is the capital of Mongolia?",
    "Name a color.",
]


async def main() -> None:
    with get_relay_callback() as totals:
        answers = await model.abatch(QUESTIONS)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        marked = str(relay_report(answer)).splitlines()[0]
        print(f"{question:34} {marked}")
    print(f"\n{totals}")


asyncio.run(main())
