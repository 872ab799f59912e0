"""OpenTelemetry metrics of every chat model: tokens, duration and cost.

Names, attributes and buckets are those of the semantic conventions for generative AI (`gen_ai.*`,
development status, read in November 2026); the cost has no convention yet and is ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from langchain_relay.callbacks.model_calls import ModelCall, ModelCallHandler
from langchain_relay.engine.errors import NANOUSD_PER_USD
from langchain_relay.errors import MissingExtra
from langchain_relay.prices import UserPrices

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider

TOKEN_BUCKETS = tuple(4**n for n in range(14))
DURATION_BUCKETS_S = tuple(0.01 * 2**n for n in range(14))

_PROVIDERS = {
    "amazon_bedrock": "aws.bedrock",
    "azure": "azure.ai.openai",
    "google_genai": "gcp.gemini",
    "google_vertexai": "gcp.vertex_ai",
    "mistralai": "mistral_ai",
    "xai": "x_ai",
}
"""LangChain's names that differ from the well-known values of `gen_ai.provider.name`."""


class OpenTelemetryHandler(ModelCallHandler):
    """Records metrics of every chat model of the runs it is attached to.

    - `gen_ai.client.token.usage` ({token}, histogram) by `gen_ai.token.type`, where reported;
    - `gen_ai.client.operation.duration` (s, histogram), with `error.type` where it failed;
    - `langchain_relay.cost` ({USD}, counter), where a price is known, with
      `langchain_relay.cost.estimated`;
    - `langchain_relay.unpriced_calls` ({call}, counter): what is missing in the cost.

    All have `gen_ai.operation.name`, `gen_ai.provider.name`, `gen_ai.request.model`,
    `gen_ai.response.model` and, where the model tells its address, `server.address` and
    `server.port`. A relay's local side is the provider `langchain_relay`; its hosted attempts are
    calls of their own. Answers from LangChain's cache send nothing and are not recorded.

    ```python
    handler = OpenTelemetryHandler()
    agent.invoke({"messages": [...]}, {"callbacks": [handler]})
    ```

    Args:
        meter_provider: `None`: the global one.
        prices: Your own prices, see `CostCallbackHandler`.
        clock: Seconds, for durations.

    Raises:
        MissingExtra: OpenTelemetry is not installed.
    """

    def __init__(
        self,
        meter_provider: MeterProvider | None = None,
        *,
        prices: UserPrices | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(prices, clock=clock)
        try:
            from opentelemetry.metrics import get_meter_provider
        except ImportError as error:
            raise MissingExtra(
                'metrics need OpenTelemetry: pip install "langchain-relay[otel]"'
            ) from error
        meter = (meter_provider or get_meter_provider()).get_meter("langchain_relay")
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Number of input and output tokens used.",
            explicit_bucket_boundaries_advisory=TOKEN_BUCKETS,
        )
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration",
            "s",
            "GenAI operation duration.",
            explicit_bucket_boundaries_advisory=DURATION_BUCKETS_S,
        )
        self._cost = meter.create_counter(
            "langchain_relay.cost", "{USD}", "What calls of chat models cost."
        )
        self._unpriced = meter.create_counter(
            "langchain_relay.unpriced_calls", "{call}", "Calls whose cost nobody knows."
        )

    def on_model_call(self, call: ModelCall) -> None:
        """Record it."""
        if call.from_cache:
            return
        attributes = _attributes(call)
        if call.duration_s is not None:
            failed = {"error.type": type(call.error).__qualname__} if call.error else {}
            self._duration.record(call.duration_s, {**attributes, **failed})
        if call.usage is not None:
            read = {**attributes, "gen_ai.token.type": "input"}
            wrote = {**attributes, "gen_ai.token.type": "output"}
            self._tokens.record(call.usage.input_tokens, read)
            self._tokens.record(call.usage.output_tokens, wrote)
        self._record_cost(call, attributes)

    def _record_cost(self, call: ModelCall, attributes: dict[str, Any]) -> None:
        if call.cost_nanousd is not None:
            told = {**attributes, "langchain_relay.cost.estimated": call.estimated}
            self._cost.add(call.cost_nanousd / NANOUSD_PER_USD, told)
        elif call.error is None:
            self._unpriced.add(1, attributes)


def _attributes(call: ModelCall) -> dict[str, Any]:
    provider = call.provider or "unknown"
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": _PROVIDERS.get(provider, provider),
        "gen_ai.request.model": call.requested_model,
        "gen_ai.response.model": call.model,
        **_server(call.base_url),
    }


def _server(base_url: str | None) -> dict[str, Any]:
    try:
        url = urlsplit(base_url or "")
        port = url.port or {"https": 443, "http": 80}.get(url.scheme)
    except ValueError:  # an address that is none
        return {}
    if url.hostname is None:
        return {}
    return {"server.address": url.hostname, **({"server.port": port} if port else {})}
