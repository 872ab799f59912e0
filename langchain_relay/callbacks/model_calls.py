"""What each run of a LangChain chat model used and cost, as callbacks tell it.

Order of truth: LangChain's cache (free), the charge of a hosted attempt of our own, the local side
of a relay, what the provider reports, the user's prices, genai-prices, unknown.
"""

from __future__ import annotations

import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, LLMResult

from langchain_relay.delegates.chunks import cost_usd, usage_from_metadata
from langchain_relay.delegates.local import LOCAL_PROVIDER
from langchain_relay.delegates.tracing import CHARGE_KEY, UNKNOWN_PROVIDER
from langchain_relay.engine.values import Usage
from langchain_relay.messages import METADATA_KEY
from langchain_relay.prices import (
    PriceBook,
    UserPrices,
    litellms_cost,
    price_context,
    reported_cost,
    reported_nanousd,
    reported_usage,
)
from langchain_relay.prices.table import provider_id

_ADDRESS_KEYS = (
    *("base_url", "openai_api_base", "anthropic_api_url", "groq_api_base", "api_base"),
    *("azure_endpoint", "endpoint", "endpoint_url", "mistral_api_url", "server_url"),
)
"""Where chat models keep the address of their host."""


@dataclass(frozen=True, slots=True)
class ModelCall:
    """One run of a chat model.

    Attributes:
        model: The name the provider reported, else the configured one.
        requested_model: The configured name.
        provider: As LangChain calls it, `langchain_relay` for the local side of a relay.
        base_url: Where the request went, if the model says.
        usage: Tokens, where they were reported.
        cost_nanousd: Nano-dollars; `None` is unknown, which is not zero.
        price_source: Where the price comes from; `None`: there is none.
        from_cache: LangChain's cache answered; nothing was sent and nothing is owed.
        estimated: The cost is a worst case, because no usage was reported.
        error: Why the run failed.
        duration_s: From its start to its end; `None` if nobody saw the start.
    """

    model: str
    requested_model: str
    provider: str | None = None
    base_url: str | None = None
    usage: Usage | None = None
    cost_nanousd: int | None = None
    price_source: str | None = None
    from_cache: bool = False
    estimated: bool = False
    error: BaseException | None = None
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Started:
    """What the start of a run tells about its model."""

    model: str
    provider: str | None
    base_url: str | None
    tier: str | None
    at_s: float


class ModelCallHandler(BaseCallbackHandler):
    """Turns the runs of chat models into `ModelCall`s; what becomes of them is the subclass's.

    Works on the sync and on the async paths: it waits for nothing.

    Args:
        prices: Your own prices, see `PriceBook`.
        clock: Seconds, for durations.
    """

    run_inline = True  # on an event loop: no thread per event, and no event behind its run's end
    ignore_custom_event: ClassVar[bool] = True

    def __init__(
        self, prices: UserPrices | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._book = PriceBook(prices)
        self._clock = clock
        self._lock = threading.Lock()
        self._running: dict[UUID, _Started] = {}

    @abstractmethod
    def on_model_call(self, call: ModelCall) -> None:
        """A run of a chat model is over. Called under the handler's lock."""

    # --- what LangChain calls -------------------------------------------------------------------

    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],  # noqa: ARG002 - LangChain's signature
        *,
        run_id: UUID,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note which model it is."""
        params = kwargs.get("invocation_params") or {}
        started = _started(serialized or {}, metadata or {}, params, self._clock())
        with self._lock:
            self._running[run_id] = started

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - LangChain's signature
        """Price it. Runs of plain text models are not counted."""
        self._over(run_id, _message(response), None)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        """Price what was reported before it failed."""
        response = kwargs.get("response")
        message = _message(response) if isinstance(response, LLMResult) else None
        self._over(run_id, message, error)

    # --- reading --------------------------------------------------------------------------------

    def _over(self, run_id: UUID, message: AIMessage | None, error: BaseException | None) -> None:
        with self._lock:
            started = self._running.pop(run_id, None)
        if message is None and (started is None or error is None):
            return
        call = self._call(started, message, error)
        with self._lock:  # not while it is priced, which takes a while
            self.on_model_call(call)

    def _call(
        self, started: _Started | None, message: AIMessage | None, error: BaseException | None
    ) -> ModelCall:
        metadata = message.response_metadata if message else {}
        reported = metadata.get("model_name") or metadata.get("model")
        requested = started.model if started else str(reported or "unknown")
        call = ModelCall(
            model=str(reported or requested),
            requested_model=requested,
            provider=started.provider if started else metadata.get("model_provider"),
            base_url=started.base_url if started else None,
            error=error,
            duration_s=self._clock() - started.at_s if started else None,
        )
        if message is None:
            return call
        counts: Mapping[str, Any] = message.usage_metadata or {}
        if "input_tokens" in counts:
            call = replace(call, usage=usage_from_metadata(counts))  # type: ignore[arg-type]
        if counts.get("total_cost") == 0:  # langchain-core marks what came from its cache so
            return replace(call, cost_nanousd=0, price_source="cache", from_cache=True)
        return self._priced(call, metadata, started.tier if started else None)

    def _priced(self, call: ModelCall, metadata: Mapping[str, Any], tier: str | None) -> ModelCall:
        if isinstance(charge := metadata.get(CHARGE_KEY), Mapping):
            return replace(
                call,
                cost_nanousd=charge.get("cost_nanousd"),
                price_source=charge.get("price_source"),
                estimated=bool(charge.get("estimated")),
            )
        relay = metadata.get(METADATA_KEY)
        if isinstance(relay, Mapping) and metadata.get("model_provider") == METADATA_KEY:
            cost = relay.get("local_cost_nanousd") or 0  # hosted attempts are runs of their own
            return replace(call, provider=LOCAL_PROVIDER, cost_nanousd=cost, price_source="local")
        if call.provider == LOCAL_PROVIDER:  # a `LocalDelegate`
            return replace(call, cost_nanousd=0, price_source="local")
        if (reported := cost_usd(reported_cost(metadata))) is not None:
            return replace(call, cost_nanousd=reported_nanousd(reported), price_source="provider")
        priced = self._by_tokens(call, _context(metadata, tier))
        known = priced.cost_nanousd is not None
        if known or (reckoned := cost_usd(litellms_cost(metadata))) is None:
            return priced
        return replace(call, cost_nanousd=reported_nanousd(reckoned), price_source="litellm")

    def _by_tokens(self, call: ModelCall, context: Mapping[str, str]) -> ModelCall:
        if (usage := reported_usage(call.usage)) is None:
            return call
        where: Any = {"provider": call.provider, "base_url": call.base_url}
        names = (call.requested_model, call.model)
        found = (self._book.users(name, **where) for name in names)
        price: Any = next(filter(None, found), None)
        if price is None and _in_table(call):
            price = self._book.find(names[0], reported=names[1], context=context, **where)
        if price is None:
            return call
        return replace(call, cost_nanousd=price.cost_nanousd(usage), price_source=price.source)


def _in_table(call: ModelCall) -> bool:
    """Whether the table may be asked: a local server's model only bears a hosted one's name."""
    known = provider_id(call.provider) or provider_id(None, call.base_url)
    return call.provider is None or known is not None


def _started(
    serialized: Mapping[str, Any],
    metadata: Mapping[str, Any],
    params: Mapping[str, Any],
    at_s: float,
) -> _Started:
    fields = serialized.get("kwargs") or {}
    named = (metadata.get("ls_model_name"), params.get("model"), params.get("model_name"))
    model = next((name for name in named if name), None) or serialized.get("name")
    addresses = (fields.get(key) for key in _ADDRESS_KEYS)
    provider = metadata.get("ls_provider")
    return _Started(
        model=str(model or "unknown"),
        provider=None if provider == UNKNOWN_PROVIDER else provider,
        base_url=next((url for url in addresses if isinstance(url, str)), None),
        tier=params.get("service_tier"),
        at_s=at_s,
    )


def _message(response: LLMResult) -> AIMessage | None:
    """The answer; of several for one prompt the first, which has the usage of all."""
    generation = next((one for batch in response.generations for one in batch), None)
    message = generation.message if isinstance(generation, ChatGeneration) else None
    return message if isinstance(message, AIMessage) else None


def _context(metadata: Mapping[str, Any], tier: str | None) -> dict[str, str]:
    """What the request was served as, where the provider says; else as it was asked for."""
    within = metadata.get("usage") or metadata.get("token_usage") or {}
    told = within if isinstance(within, Mapping) else {}
    served = metadata.get("service_tier") or told.get("service_tier")
    return price_context(service_tier=served or tier, speed=told.get("speed"))
