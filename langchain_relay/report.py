"""Who wrote what in an answer, and what it cost."""

from __future__ import annotations

import html
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from langchain_relay.engine.errors import NANOUSD_PER_USD, amount_text, whose
from langchain_relay.engine.values import Charge, Span
from langchain_relay.errors import UsageMistake
from langchain_relay.messages import METADATA_KEY
from langchain_relay.prices import with_age
from langchain_relay.schema import CALL_DENIED, CALL_FAILED, CALL_STARTED, total_cost_nanousd

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage
    from rich.console import RenderableType

DELEGATED_STYLE = "bold magenta"
REASON_CHARS = 300
DELEGATED_CSS = "background:#f3d9fa;color:#5f1a7a;border-radius:3px;padding:0 2px"


@dataclass(frozen=True, slots=True)
class RelayReport:
    """One answer's provenance and cost; shows itself in a terminal and in a notebook.

    Attributes:
        spans: Who wrote what; they tile the answer's text.
        charges: One per request to a hosted model.
        calls: Hand-overs that started.
        denied: Hand-overs that did not start, malformed commands included.
        failed: Hand-overs that started and failed.
        local_tokens: Tokens of the answer by the local model.
        delegated_tokens: Tokens of the answer by hosted models, in the local vocabulary.
        delegated_share: Delegated tokens over all tokens of the answer, 0 to 1.
        cost_nanousd: What the hosted models cost, in nano-dollars; `None` if a price is unknown.
        delegate_only_cost_nanousd: Estimate of what the hosted model alone would have cost for
            this question and an answer of this length; `None` if its price is unknown.
        estimated: Part of the cost is a reserved worst case, because no usage was reported.
        local_ms: Milliseconds of local work, where they were priced.
        local_cost_nanousd: What they cost at `local_usd_per_hour`; `None`: no price was given.
        reasons: Why hand-overs were denied or failed, each reason once.
    """

    spans: tuple[Span, ...]
    charges: tuple[Charge, ...]
    calls: int
    denied: int
    failed: int
    local_tokens: int
    delegated_tokens: int
    delegated_share: float
    cost_nanousd: int | None
    delegate_only_cost_nanousd: int | None
    estimated: bool
    local_ms: int | None = None
    local_cost_nanousd: int | None = None
    reasons: tuple[str, ...] = ()

    @property
    def total_cost_nanousd(self) -> int | None:
        """Hosted and, where it has a price, local cost together; `None` if one is unknown."""
        if self.cost_nanousd is None:
            return None
        return self.cost_nanousd + (self.local_cost_nanousd or 0)

    def __str__(self) -> str:
        return "\n".join([self._marked(), *(f"{name}: {value}" for name, value in self._rows())])

    def _marked(self) -> str:
        """The answer with delegated spans in brackets, where there are no colours."""
        return "".join(
            f"[{span.text}]" if span.author == "delegate" else span.text for span in self.spans
        )

    def _rows(self) -> list[tuple[str, str]]:
        cost = usd(self.cost_nanousd) + (
            " (partly estimated)" if self.estimated and self.cost_nanousd else ""
        )
        today = datetime.now().astimezone().date()
        sources = sorted({with_age(c.price_source, today) for c in self.charges if c.price_source})
        return [
            ("spans", str(len(self.spans))),
            ("calls", f"{self.calls} ({self.denied} denied, {self.failed} failed)"),
            *(("why", reason) for reason in self.reasons),
            ("local tokens", str(self.local_tokens)),
            ("delegated tokens", f"{self.delegated_tokens} ({self.delegated_share:.1%})"),
            *self._cached(),
            ("cost", cost),
            *self._local_rows(),
            ("price from", "; ".join(sources) or "-"),
            ("the hosted model alone", f"about {usd(self.delegate_only_cost_nanousd)}"),
        ]

    def _local_rows(self) -> list[tuple[str, str]]:
        if self.local_cost_nanousd is None:
            return []
        worked = f" for {self.local_ms / 1000:.1f} s" if self.local_ms is not None else ""
        return [
            ("local cost", usd(self.local_cost_nanousd) + worked),
            ("both", usd(self.total_cost_nanousd)),
        ]

    def _cached(self) -> list[tuple[str, str]]:
        """What the hosted models read, where some of it came from or went to a cache."""
        read = sum(charge.input_tokens or 0 for charge in self.charges)
        cached = sum(charge.cached_input_tokens or 0 for charge in self.charges)
        wrote = sum(charge.cache_write_tokens or 0 for charge in self.charges)
        if not cached and not wrote:
            return []
        return [("hosted input", f"{read} tokens ({cached} from a cache, {wrote} written to one)")]

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        text = Text()
        for span in self.spans:
            text.append(span.text, style=DELEGATED_STYLE if span.author == "delegate" else "")
        table = Table(show_header=False, box=None)
        for name, value in self._rows():
            table.add_row(name, Text(value))  # not markup: an error may have brackets
        return Group(text, table)

    def _repr_html_(self) -> str:
        text = "".join(
            f'<span style="{DELEGATED_CSS}" title="{html.escape(span.model or "")}">'
            f"{html.escape(span.text)}</span>"
            if span.author == "delegate"
            else html.escape(span.text)
            for span in self.spans
        )
        rows = "".join(
            f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
            f"<td>{html.escape(value)}</td></tr>"
            for name, value in self._rows()
        )
        return f"<p style='white-space:pre-wrap'>{text}</p><table>{rows}</table>"


def usd(nanousd: int | None) -> str:
    """Nano-dollars as text in dollars, without rounding; `unknown` for `None`."""
    if nanousd is None:
        return "unknown"
    whole, rest = divmod(nanousd, NANOUSD_PER_USD)
    return f"{whole}.{rest:09d}".rstrip("0").rstrip(".") + " USD"


def _reasons(events: list[dict[str, Any]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reason for event in events if (reason := _reason(event))))


def _reason(event: dict[str, Any]) -> str | None:
    if event["type"] == CALL_FAILED:
        return f"failed: {' '.join(str(event['error']).split())[:REASON_CHARS]}"
    if event["type"] != CALL_DENIED:
        return None
    if event["unit"] is None:
        return f"denied: {event['reason']}"
    amounts = (amount_text(event[name], event["unit"]) for name in ("needed", "left", "limit"))
    needed, left, limit = amounts
    limited = whose(event["scope"], event["window"])
    return f"denied: {needed} needed, {left} of {limit} left for {limited}"


def relay_report(message: BaseMessage) -> RelayReport:
    """Read the report of an answer by `RelayChatModel`, or of its chunks added up.

    Raises:
        UsageMistake: the message was not written by a `RelayChatModel`, or it is no message.
    """
    if not hasattr(message, "response_metadata"):
        raise UsageMistake(
            f"relay_report reads a message, and this is of type {type(message).__name__}: pass the "
            f"AIMessage a RelayChatModel returned, before an output parser; of an agent's result "
            f'one of result["messages"]'
        )
    relay: dict[str, Any] | None = message.response_metadata.get(METADATA_KEY)
    if relay is None or "schema_version" not in relay:
        raise UsageMistake(
            "this message carries no relay report: pass the AIMessage a RelayChatModel returned, "
            "or the sum of all its streamed chunks"
        )
    spans = tuple(Span(**span) for span in relay.get("spans", []))
    charges = tuple(Charge(**charge) for charge in relay.get("charges", []))
    kinds = [event["type"] for event in relay.get("events", [])]
    local = sum(span.tokens for span in spans if span.author == "local")
    delegated = sum(span.tokens for span in spans if span.author == "delegate")
    written = sum(span.tokens for span in spans)
    # langchain-core marks a message that came from its cache like this; it cost nothing this time.
    cached = (getattr(message, "usage_metadata", None) or {}).get("total_cost") == 0
    local_cost: int | None = relay.get("local_cost_nanousd")
    return RelayReport(
        spans=spans,
        charges=charges,
        calls=kinds.count(CALL_STARTED),
        denied=kinds.count(CALL_DENIED),
        failed=kinds.count(CALL_FAILED),
        local_tokens=local,
        delegated_tokens=delegated,
        delegated_share=delegated / written if written else 0.0,
        cost_nanousd=0 if cached else total_cost_nanousd(charges),
        delegate_only_cost_nanousd=relay.get("delegate_only_cost_nanousd"),
        estimated=any(charge.estimated for charge in charges),
        local_ms=relay.get("local_ms"),
        local_cost_nanousd=0 if cached and local_cost is not None else local_cost,
        reasons=_reasons(relay.get("events", [])),
    )
