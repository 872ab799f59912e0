"""The hosted model of the examples: yours if its key is set, else a local stand-in.

`expert()` returns the arguments `delegate` and `prices` of a `RelayChatModel`:

- with `OPENAI_API_KEY` in the environment, gpt-5-mini through `ChatOpenAI`;
- with `ANTHROPIC_API_KEY`, Claude Haiku 4.5 through `ChatAnthropic` (needs `langchain-anthropic`);
- with neither, a second SmolLM2 on this machine. It knows no more than the first one: it shows how
  an answer is shared, not how good it gets. It is billed at a demo price, so that money shows.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from langchain_relay.delegates import LocalDelegate
from langchain_relay.local import LlamaCppModel

KEYS = {
    "OPENAI_API_KEY": "openai:gpt-5-mini",
    "ANTHROPIC_API_KEY": "anthropic:claude-haiku-4-5",
}
DEMO_PRICE = ("0.25", "2")
"""US dollars per million input and output tokens; not the price of anything."""


def expert() -> dict[str, Any]:
    """The arguments `delegate` and `prices`; says on stderr who it is, if it is the stand-in."""
    for key, model in KEYS.items():
        if os.environ.get(key):
            return {"delegate": model}
    print("(no key is set: a second local SmolLM2 stands in for a hosted model)", file=sys.stderr)
    local = LlamaCppModel("smollm2-135m", n_ctx=1024, n_threads=1)
    return {"delegate": LocalDelegate(local), "prices": {local.name: DEMO_PRICE}}
