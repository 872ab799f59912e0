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
# # Money
#
# What may be spent on hosted models, for whom, and where it is written down. You will learn
#
# 1. a budget of one answer,
# 2. one for each user and hour,
# 3. a ledger that outlives the process and is shared by two,
# 4. a warning before the end,
# 5. an agent that asks before it goes on,
# 6. what every model of a chain costs,
# 7. costs in the responses of a FastAPI service,
# 8. `langchain-relay spend`, and its plot.
#
# Both writers are test doubles and nothing is sent anywhere; budgets, ledgers and prices are the
# real ones. It takes seconds. All of it is explained in [docs/budgets.md](../docs/budgets.md),
# [docs/ledgers.md](../docs/ledgers.md) and [docs/costs.md](../docs/costs.md).

# %%
# # %pip install "langchain-relay[cli,plot]" langchain fastapi httpx

# %% [markdown]
# ## 1. One answer
#
# The local model asks for help twice. One hand-over uses 40 tokens of input and 6 of output; at 1
# and 10 US dollars per million tokens that is 0.0001 USD.

# %%
from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

SCRIPT = ("It is ", "<call>8</call>", " by day and ", "<call>8</call>", " at night.")


def relay(*script, **fields):
    return RelayChatModel(
        model=ScriptedLocal(*(script or SCRIPT)),
        delegate=ScriptedDelegate("3 degrees", usage=(40, 6), model="expert"),
        prices={"expert": ("1", "10")},  # US dollars per million tokens, in and out
        **fields,
    )


free = relay_report(relay().invoke("How cold is it?"))
free

# %% [markdown]
# Before each request its worst case is set aside: an upper bound of the input, and all the tokens
# that may be written. So a limit refuses before anything is sent. Here the second hand-over might
# pass it; the local model goes on without.

# %%
answer = relay(budget=Budget(usd="0.0002")).invoke("How cold is it?")
within = relay_report(answer)
print(within)

# %% [markdown]
# The event says what refused, what was needed and what was left, in nano-dollars.

# %%
events = answer.response_metadata["relay"]["events"]
denied = next(event for event in events if event["type"] == "relay.call.denied")
{name: denied[name] for name in ("reason", "unit", "needed", "left", "limit", "scope", "window")}

# %% [markdown]
# `on_budget="raise"` raises instead, and a budget may be given for one call.

# %%
from langchain_relay import BudgetExceeded

try:
    relay(on_budget="raise").invoke("How cold is it?", budget=Budget(calls=0))
except BudgetExceeded as error:
    refused = error
print(refused)

# %% [markdown]
# ## 2. Each user, each hour
#
# `scope` says whose spending is counted together, `window` when the count begins anew. The user
# comes from the config. Of several budgets the tightest refuses.

# %%
hourly = relay(
    budget=[
        Budget(calls=3, scope="user", window="hour"),
        Budget(usd=5, scope="global", window="day", timezone="Europe/Berlin"),
    ]
)
helped = {}
for user in ("ada", "ada", "bob"):
    message = hourly.invoke("How cold is it?", {"configurable": {"user_id": user}})
    helped.setdefault(user, []).append(relay_report(message).calls)
    print(user, repr(message.text))

# %% [markdown]
# Ada's third call was her last of this hour; Bob has an account of his own. A call without a
# user is a mistake, and says so:

# %%
from langchain_relay.errors import UsageMistake

try:
    hourly.invoke("How cold is it?")
except UsageMistake as error:
    nobody = error
print(nobody)

# %% [markdown]
# ## 3. A ledger that lasts
#
# Without `ledger=` spending is kept in this process. A path is a database of SQLite: it outlives
# the process, and all processes of the machine may use it. Between machines take `redis://` or
# `postgresql://`. Two processes start here at once and answer 20 questions each; together they may
# spend 0.0012 USD.

# %%
import subprocess
import sys
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
spending = folder / "spending.db"
PROCESS = f"""
from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

model = RelayChatModel(
    model=ScriptedLocal("It is ", "<call>8</call>", "."),
    delegate=ScriptedDelegate("3 degrees", usage=(40, 6), model="expert"),
    prices={{"expert": ("1", "10")}},
    budget=Budget(usd="0.0012", scope="global"),
    ledger={str(spending)!r},
)
print(sum(relay_report(model.invoke("How cold is it?")).calls for _ in range(20)))
"""
processes = [
    subprocess.Popen([sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, text=True)
    for _ in range(2)
]
calls = [int(process.communicate()[0]) for process in processes]
print("answers with help, of 20 each:", calls)

# %% [markdown]
# Both have ended. What they spent is in the file, so a third one has no more than what is left.

# %%
from langchain_relay.ledgers import SQLiteLedger, totals

ledger = SQLiteLedger(spending)
(shared,) = totals(ledger.entries(), ["model"]).values()
print(f"{shared.amount.calls} calls, {shared.amount.cost_nanousd} of 1200000 nano-dollars")

third = relay(budget=Budget(usd="0.0012", scope="global"), ledger=ledger)
late = relay_report(third.invoke("How cold is it?"))
print(f"a third process: {late.calls} calls, {late.denied} refused")

# %% [markdown]
# ## 4. A warning
#
# At `warn_at` of a limit (0.8 if you say nothing) an event is sent, once for each limit and window.
# A handler sees it while it happens.

# %%
from langchain_relay import RelayCallbackHandler

warnings = []


class Warn(RelayCallbackHandler):
    def on_relay_budget_warning(self, event, *, run_id):
        warnings.append(event)
        print(f"{event['spent']} of {event['limit']} {event['unit']} of this {event['scope']}")


watched = relay(budget=Budget(calls=4, scope="thread", warn_at=0.5), ledger=ledger)
for _ in range(3):
    config = {"configurable": {"thread_id": "weather"}, "callbacks": [Warn()]}
    watched.invoke("How cold is it?", config)

# %% [markdown]
# ## 5. An agent that asks
#
# `RelayBudgetMiddleware` has budgets for a run of an agent and for its thread. When nothing is left
# it goes on locally, ends, raises, or, as here, asks. What was spent is part of the checkpoint.

# %%
from langchain.agents import create_agent
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command

from langchain_relay.middleware import RelayBudgetMiddleware

agent = create_agent(
    relay("It is ", "<call>8</call>", "."),
    tools=[],
    middleware=[RelayBudgetMiddleware(thread=Budget(calls=1), exit_behavior="ask")],
    checkpointer=InMemorySaver(),
)
thread = {"configurable": {"thread_id": "weather"}}
first = agent.invoke({"messages": [("user", "How cold is it?")]}, thread)
print(first["messages"][-1].text)

second = agent.invoke({"messages": [("user", "And now?")]}, thread)
(question,) = second["__interrupt__"]
question.value

# %% [markdown]
# The graph has stopped before the model. `continue` allows as much again, `local` goes on without
# the hosted model, `end` ends the run.

# %%
resumed = agent.invoke(Command(resume="continue"), thread)
print(resumed["messages"][-1].text)

# %% [markdown]
# ## 6. What every model costs
#
# `get_cost_callback` counts every chat model of LangChain, not only the relay. Here a chain of two
# models: one writes the question, the relay answers it. The first is a stand-in that reports its
# usage as `ChatAnthropic` does; its price comes from genai-prices.

# %%
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser

from langchain_relay import get_cost_callback


class StandIn(GenericFakeChatModel):
    def _get_ls_params(self, stop=None, **kwargs):
        return {"ls_provider": "anthropic", "ls_model_name": "claude-haiku-4-5"}


said = AIMessage(
    "How cold is it in Oslo?",
    usage_metadata={"input_tokens": 900, "output_tokens": 8, "total_tokens": 908},
    response_metadata={"model_name": "claude-haiku-4-5"},
)
asker = StandIn(messages=iter([said]))
chain = asker | StrOutputParser() | relay(ledger=ledger)

with get_cost_callback() as costs:
    chain.invoke("Ask about the weather in Oslo.")
costs

# %% [markdown]
# The relay's hosted attempts have the price of `prices=`; a model that nobody has a price of would
# stand in `unpriced`, because unknown is not zero.
#
# ## 7. A service
#
# Each response says what it cost, and `/spending` what everybody spent. The requests are made by a
# test client in this process.

# %%
from typing import Annotated

from fastapi import FastAPI, Header
from fastapi.testclient import TestClient

model = relay(budget=Budget(calls=3, scope="user", window="hour"), ledger=ledger)
app = FastAPI()


@app.get("/ask")
async def ask(question: str, x_user: Annotated[str, Header()]):
    message = await model.ainvoke(question, {"configurable": {"user_id": x_user}})
    report = relay_report(message)
    return {"answer": message.text, "calls": report.calls, "cost_nanousd": report.cost_nanousd}


@app.get("/spending")
async def spent():
    found = totals([entry async for entry in ledger.aentries()], ["key"])
    users = {key: total for (key,), total in found.items() if key.startswith("user:")}
    return {key: total.amount.cost_nanousd for key, total in users.items()}


with TestClient(app) as client:
    for user in ("ada", "ada", "bob"):
        asked = {"params": {"question": "How cold is it?"}, "headers": {"X-User": user}}
        print(user, client.get("/ask", **asked).json())
    by_user = client.get("/spending").json()
by_user

# %% [markdown]
# ## 8. On the command line
#
# `langchain-relay spend` reads the same ledger, also while services write to it. For a plot worth
# looking at, this books a made-up week first: ledgers have no clock, so whoever books says when.

# %%
import time

from langchain_relay.engine.ledger import Account, Amount, Limit

GLOBAL = Limit(Account("global", "all"))
for days in range(1, 7):
    then = time.time() - 86_400 * days
    for name, cost_nanousd in (("expert", 400_000 * days), ("second", 900_000 - 90_000 * days)):
        amount = Amount(cost_nanousd, tokens=6, calls=1)
        key = {"key": f"{name}, {days} days ago", "now": then, "expires_at": then + 60}
        booked = ledger.reserve((GLOBAL,), amount, model=name, **key)
        ledger.settle(booked, amount, now=then)


def command_line(*arguments):
    command = [sys.executable, "-c", "from langchain_relay.cli import main; main()", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    print(ran.stdout, ran.stderr)
    return ran.returncode


picture = folder / "spending.png"
code = command_line("spend", str(spending), "--plot", str(picture))

# %%
from IPython.display import Image

Image(picture.read_bytes(), width=640)

# %% [markdown]
# By user, as CSV:

# %%
code += command_line("spend", str(spending), "--by", "key", "--scope", "user", "--format", "csv")

# %% [markdown]
# ## What must hold
#
# No limit was passed, by one process or by two; the report, the ledger, the service and the
# callback agree on what was spent.

# %%
entries = list(ledger.entries())
ledger.disconnect()

assert (free.calls, free.cost_nanousd) == (2, 200_000)
assert (within.calls, within.denied, within.cost_nanousd) == (1, 1, 100_000)
assert refused.limit == 0
assert helped == {"ada": [2, 1], "bob": [2]}
assert shared.amount.calls == sum(calls) <= 12
assert shared.amount.cost_nanousd == 100_000 * sum(calls)
assert (late.calls, late.denied) == (0, 1)
assert [(event["spent"], event["limit"]) for event in warnings] == [(2, 4)]
assert question.value["choices"] == ["continue", "local", "end"]
assert "3 degrees" in resumed["messages"][-1].text
assert costs.models["expert"].cost_nanousd == 200_000
assert costs.models["claude-haiku-4-5"].cost_nanousd > 0
assert costs.unpriced == 0
assert by_user == {"user:ada": 300_000, "user:bob": 200_000}
assert code == 0
assert picture.read_bytes().startswith(b"\x89PNG")
assert len(entries) == len({entry.key for entry in entries})
