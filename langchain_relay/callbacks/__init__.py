"""Handlers for the relay's events and for the costs of every chat model.

The handler for OpenTelemetry needs the extra `otel` and lies in `callbacks.otel`.
"""

from langchain_relay.callbacks.costs import CostCallbackHandler, ModelCosts, get_cost_callback
from langchain_relay.callbacks.log import RelayLogHandler
from langchain_relay.callbacks.model_calls import ModelCall, ModelCallHandler
from langchain_relay.callbacks.relay import AsyncRelayCallbackHandler, RelayCallbackHandler
from langchain_relay.callbacks.totals import RelayTotals, get_relay_callback

__all__ = [
    "AsyncRelayCallbackHandler",
    "CostCallbackHandler",
    "ModelCall",
    "ModelCallHandler",
    "ModelCosts",
    "RelayCallbackHandler",
    "RelayLogHandler",
    "RelayTotals",
    "get_cost_callback",
    "get_relay_callback",
]
