"""What every chat model of a run costs: two hosted models, a local server's, and a relay.

No network and no key: the chat models are stand-ins that report usage as the real ones do, while
prices, handlers and totals are the real ones. Expect a first line with the sum and the model that
nobody has a price of, one line per model, and then the same run with a price for it.
"""

from __future__ import annotations

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from langchain_relay import RelayChatModel, get_cost_callback
from langchain_relay.testing import ScriptedDelegate, ScriptedLocal


class StandIn(BaseChatModel):
    """Says what it is and what it used, as ChatOpenAI, ChatAnthropic and ChatOllama do."""

    model: str
    provider: str
    cached: int = 0

    @property
    def _llm_type(self):
        return "stand-in"

    def _get_ls_params(self, stop=None, **kwargs):
        return {"ls_provider": self.provider, "ls_model_name": self.model}

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        usage = {"input_tokens": 1_000, "output_tokens": 50, "total_tokens": 1_050}
        usage["input_token_details"] = {"cache_read": self.cached}
        told = {"model_name": self.model}
        answer = AIMessage("Because it is.", usage_metadata=usage, response_metadata=told)
        return ChatResult(generations=[ChatGeneration(message=answer)])


models = [
    StandIn(model="gpt-5-mini", provider="openai", cached=800),
    StandIn(model="claude-haiku-4-5", provider="anthropic"),
    StandIn(model="llama3.2", provider="ollama"),
    RelayChatModel(
        model=ScriptedLocal("It is ", "<call>8</call>", "so."),
        delegate=ScriptedDelegate("blue ", usage=(40, 6), model="gpt-5-mini"),
    ),
]

with get_cost_callback() as costs:
    for model in models:
        model.batch(["Why is the sky blue?"] * 3)
print(costs)

with get_cost_callback(prices={"llama3.2": ("0.01", "0.02")}) as costs:
    models[2].invoke("Why is the sky blue?")
print(f"\nwith a price of one's own: {costs}")
