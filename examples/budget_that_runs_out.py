"""A budget refuses before the money is spent, and the local model goes on without the hosted one.

Both writers are test doubles here, so that every run calls twice: a script says what each writes,
while budget, prices and events are the real ones. Expect one finished call, one denied call with
the numbers behind it, an answer that goes on all the same, and then, with `on_budget="raise"`, the
refusal as an exception.
"""

from __future__ import annotations

from langchain_relay import Budget, BudgetExceeded, RelayCallbackHandler, RelayChatModel
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal

NANO = 10**9


class Printer(RelayCallbackHandler):
    def on_relay_call_finished(self, event, **_):
        print(f"relay.call.finished: {event['cost_nanousd'] / NANO:.6f} USD for n={event['n']}")

    def on_relay_call_denied(self, event, **_):
        needed, left = event["needed"] / NANO, event["left"] / NANO
        print(f"relay.call.denied: {needed:.6f} USD may be needed, {left:.6f} USD is left")


local = ScriptedLocal("It is ", "<call>8</call>", ", so ", "<call>400</call>", "take a coat.")
hosted = ScriptedDelegate("3 degrees in Oslo", usage=(40, 6), model="expert")
settings = {
    "model": local,
    "delegate": hosted,
    "prices": {"expert": ("1", "10")},  # US dollars per million tokens, in and out
    "budget": Budget(usd="0.002"),
}

answer = RelayChatModel(**settings).invoke("How cold is it?", {"callbacks": [Printer()]})
print(f"answer: {answer.text}")

try:
    RelayChatModel(**settings, on_budget="raise").invoke("How cold is it?")
except BudgetExceeded as refusal:
    print(f"BudgetExceeded: {refusal}")
