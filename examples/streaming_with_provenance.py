"""Who writes is known while the text arrives: hosted words are in brackets as they stream.

The policy is `SwitchCues` (RelayGen) with cues of our own: the hosted model writes first, and
where it writes a cue the local model finishes the sentence. Both are a real SmolLM2 unless a key
is set (see `expert.py`). Expect an answer of two or three sentences that changes hands at the
cues, then its spans with their offsets: they tile the text.
"""

from __future__ import annotations

from expert import expert

from langchain_relay import RelayChatModel, relay_report
from langchain_relay.policies import SwitchCues

model = RelayChatModel(
    model="smollm2-135m",
    **expert(),
    policy=SwitchCues(cues=("because", "when", "which", "is")),
    temperature=0,
    seed=1,
    max_tokens=60,
    n_ctx=1024,
    n_threads=1,
)
MARKS = {"relay.call.started": "[", "relay.call.finished": "]", "relay.call.failed": "]"}

answer = None
for chunk in model.stream("Why is the sky blue?"):
    for event in chunk.response_metadata.get("relay", {}).get("events", []):
        print(MARKS.get(event["type"], ""), end="")
    print(chunk.text, end="", flush=True)
    answer = chunk if answer is None else answer + chunk
print("\n")

assert answer is not None
for span in relay_report(answer).spans:
    print(f"{span.start:4}-{span.end:<4} {span.author:8} {span.model:13} {span.text!r}")
