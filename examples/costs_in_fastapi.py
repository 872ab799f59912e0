"""A FastAPI service: a budget per user and hour, and what each answer cost in its response.

Both writers are test doubles here, and the requests are made by a test client in this process.
Expect two helped answers for Ada with their cost, a third one without help because her hour is
used up, a helped one for Bob, and then everybody's spending as the service reports it.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, Header
from fastapi.testclient import TestClient

from langchain_relay import Budget, RelayChatModel, relay_report
from langchain_relay.ledgers import MemoryLedger, totals
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

ledger = MemoryLedger()  # several workers: ledger="redis://..." or "postgresql://..."
model = RelayChatModel(
    model=ScriptedLocal("It is ", "<call>8</call>", ", so take a coat."),
    delegate=ScriptedDelegate("3 degrees in Oslo", usage=(40, 6), model="expert"),
    prices={"expert": ("1", "10")},  # US dollars per million tokens, in and out
    budget=[
        Budget(calls=2, scope="user", window="hour"),
        Budget(usd=5, scope="global", window="day"),
    ],
    ledger=ledger,
)
app = FastAPI()


@app.get("/ask")
async def ask(question: str, x_user: Annotated[str, Header()]) -> dict[str, Any]:
    """Answer, and say what it cost."""
    message = await model.ainvoke(question, {"configurable": {"user_id": x_user}})
    report = relay_report(message)
    return {"answer": message.text, "calls": report.calls, "cost_nanousd": report.cost_nanousd}


@app.get("/spending")
async def spending() -> dict[str, int]:
    """Nano-dollars by user."""
    found = totals([entry async for entry in ledger.aentries()], ["key"])
    return {
        key.removeprefix("user:"): total.amount.cost_nanousd
        for (key,), total in found.items()
        if key.startswith("user:")
    }


with TestClient(app) as client:
    for user in ("ada", "ada", "ada", "bob"):
        asked = {"params": {"question": "How cold is it?"}, "headers": {"X-User": user}}
        print(user, client.get("/ask", **asked).json())
    print("spending:", client.get("/spending").json())
