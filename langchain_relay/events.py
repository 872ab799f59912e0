"""The five events as pydantic models: for reading them back, and for their schema.

The relay itself sends plain dicts (`schema.py`), which are cheap and JSON-able; these models check
them and give them types. `docs/events.md` and `docs/events.schema.json` are made from them by
`python -m langchain_relay.events`.

Version 1. A field may be added under a version; what a field means, its type or its name changes
only with the version. So readers should not mind fields they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from langchain_relay.errors import UsageMistake
from langchain_relay.schema import SCHEMA_VERSION

__all__ = [
    "EVENTS",
    "BudgetWarned",
    "CallDenied",
    "CallFailed",
    "CallFinished",
    "CallStarted",
    "ChargeRecord",
    "Event",
    "json_schema",
    "markdown",
    "parse_event",
]

_Count = Annotated[int, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="allow",
        strict=True,
        json_schema_serialization_defaults_required=True,  # `type` tells them apart
    )


class ChargeRecord(_Record):
    """What one request to a hosted model cost."""

    call_id: str = Field(description="The hand-over it belongs to.")
    attempt: int = Field(ge=1, description="1 for the first request of the hand-over.")
    model: str = Field(description="The model that was asked, as configured.")
    input_tokens: _Count | None = Field(description="As the provider reported; null: it did not.")
    output_tokens: _Count | None = Field(description="As the provider reported; null: it did not.")
    cached_input_tokens: _Count | None = Field(
        description="Of the input, read from the provider's cache."
    )
    cache_write_tokens: _Count | None = Field(
        description="Of the input, written to the provider's cache."
    )
    reasoning_tokens: _Count | None = Field(description="Of the output, hidden reasoning.")
    cost_nanousd: _Count | None = Field(description="Nano-dollars; null: no price is known.")
    estimated: bool = Field(description="The cost is the reserved worst case, not reported usage.")
    released: bool = Field(description="Nothing was owed: an error status, or never connected.")
    price_source: str | None = Field(description="Where the price comes from, and of which date.")
    overage_nanousd: _Count = Field(description="Reported above the reserved worst case.")
    outcome: str = Field(description="`stop`, `length`, `cut`, `truncated` or an error's name.")
    unbooked: bool = Field(description="The ledger is away; it is told when it is back.")


class _Event(_Record):
    version: Literal[1] = Field(description="Version of this schema.")


class _Call(_Event):
    call_id: str = Field(description="Names the hand-over in all its events and charges.")
    model: str = Field(description="The hosted model that is asked, or that wrote last.")
    n: _Count = Field(description="Tokens it may write, after all clamps.")
    requested_n: _Count | None = Field(
        description="Tokens the local model or the policy asked for; null: the rest of the answer."
    )
    cause: str = Field(description="The policy's word for why it hands over.")


class CallStarted(_Call):
    """A hand-over is reserved and about to be sent; one `finished` or `failed` follows."""

    type: Literal["relay.call.started"] = "relay.call.started"


class _Outcome(_Call):
    why: str = Field(
        description="Why the span ended: `stop`, `length`, `cut`, `truncated`, `refused`, "
        "`failed`, `tool_calls`."
    )
    input_tokens: _Count | None = Field(description="Reported, all attempts; null: nobody did.")
    output_tokens: _Count | None = Field(description="Reported, all attempts; null: nobody did.")
    cached_input_tokens: _Count | None = Field(description="Reported, all attempts.")
    cache_write_tokens: _Count | None = Field(description="Reported, all attempts.")
    reasoning_tokens: _Count | None = Field(description="Reported, all attempts.")
    cost_nanousd: _Count | None = Field(
        description="Nano-dollars of all attempts; null if one of them has no known price."
    )
    overage_nanousd: _Count = Field(description="Reported above the reserved worst cases.")
    estimated: bool = Field(description="Part of the cost is a worst case, not reported usage.")
    attempts: _Count = Field(description="Requests, refused and unconnected ones included.")
    local_tokens: _Count = Field(description="Tokens of the span in the local vocabulary.")
    trimmed: str = Field(description="What the hosted model repeated and the seam removed.")
    charges: list[ChargeRecord] = Field(description="One per request.")


class CallFinished(_Outcome):
    """A hand-over ended well."""

    type: Literal["relay.call.finished"] = "relay.call.finished"
    declined: bool = Field(description="The hosted model wrote nothing.")


class CallFailed(_Outcome):
    """A hand-over started and did not end well; the text that arrived is kept and charged."""

    type: Literal["relay.call.failed"] = "relay.call.failed"
    error: str = Field(description="What went wrong.")
    error_type: str = Field(description="The error's class; empty if there is none.")


class CallDenied(_Event):
    """A hand-over that did not start: refused, or a malformed command."""

    type: Literal["relay.call.denied"] = "relay.call.denied"
    call_id: str = Field(description="Names the hand-over that would have been.")
    reason: str = Field(description="`budget`, `ledger`, `offline`, or why a command is malformed.")
    n: _Count | None = Field(description="Tokens it would have written; null: malformed.")
    requested_n: _Count | None = Field(description="Tokens that were asked for.")
    unit: str | None = Field(
        description="What refused: `usd`, `tokens`, `calls`, `share`; null: no budget did."
    )
    needed: _Count | None = Field(description="Worst case; nano-dollars, tokens or calls.")
    left: int | None = Field(description="What was left, in the same unit.")
    limit: _Count | None = Field(description="The limit, in the same unit.")
    scope: str | None = Field(description="Whose limit it is, for example `run`.")
    window: str | None = Field(description="Its window; null: none.")


class BudgetWarned(_Event):
    """A limit is nearly used up (`Budget.warn_at`)."""

    type: Literal["relay.budget.warning"] = "relay.budget.warning"
    unit: str = Field(description="`usd`, `tokens`, `calls` or `share`.")
    spent: _Count = Field(description="Nano-dollars, tokens or calls spent.")
    limit: _Count = Field(description="The limit, in the same unit.")
    scope: str = Field(description="Whose limit it is, for example `run`.")
    window: str | None = Field(description="Its window; null: none.")


Event = Annotated[
    CallStarted | CallFinished | CallDenied | CallFailed | BudgetWarned,
    Field(discriminator="type"),
]
"""Any of the five."""

EVENTS: Mapping[str, type[_Event]] = {
    cls.model_fields["type"].default: cls
    for cls in (CallStarted, CallFinished, CallDenied, CallFailed, BudgetWarned)
}
"""By name."""

_ANY: TypeAdapter[Any] = TypeAdapter(Event)


def parse_event(data: Mapping[str, Any], name: str | None = None) -> Event:
    """An event as a typed value.

    Args:
        data: The event's dict: what a handler gets, or an item of
            `response_metadata["relay"]["events"]`.
        name: The event's name, where `data` has no `type` (a handler gets both apart).

    Raises:
        UsageMistake: it is none of the five, or not as the schema says.
    """
    kind = name or data.get("type")
    if kind not in EVENTS:
        raise UsageMistake(f"{kind!r} is no relay event; they are {', '.join(EVENTS)}")
    try:
        event: Event = _ANY.validate_python({**data, "type": kind})
    except ValidationError as error:
        raise UsageMistake(f"this {kind} event is not as version 1 says: {error}") from error
    return event


# --- the documents ------------------------------------------------------------------------------


def json_schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of any event that has its `type`."""
    schema = _ANY.json_schema(mode="serialization")
    for shape in schema["$defs"].values():
        shape["description"] = " ".join(shape["description"].split())
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"langchain-relay events, version {SCHEMA_VERSION}",
        **schema,
    }


def markdown() -> str:
    """`docs/events.md`."""
    parts = [_HEAD, *(_section(name, cls) for name, cls in EVENTS.items()), _CHARGES]
    return "\n".join([*parts, _table(ChargeRecord)])


_HEAD = f"""# Events

Made by `python -m langchain_relay.events`; do not edit.

Every hand-over is told in events: JSON-able dicts, version {SCHEMA_VERSION}. They reach

- handlers, on the answer's own run: `RelayCallbackHandler` and `AsyncRelayCallbackHandler` have a
  typed method for each, every other LangChain handler gets them in `on_custom_event(name, data)`;
- `astream_events`, as `on_custom_event`;
- LangGraph's `stream_mode="custom"`, with the name as `type`;
- the answer itself: `message.response_metadata["relay"]["events"]`, with the name as `type`;
- the log, with `langchain_relay.callbacks.RelayLogHandler`.

After `relay.call.started` comes exactly one of `relay.call.finished` or `relay.call.failed` for the
same `call_id`, retries and fallbacks included. `relay.call.denied` comes alone. Money is whole
nano-dollars. A field may be added under a version; its meaning, type and name do not change.

`langchain_relay.events.parse_event(data, name)` checks an event and gives it a type;
[events.schema.json](events.schema.json) is the JSON schema.
"""

_CHARGES = """## A charge

Items of `charges`, one per request to a hosted model.
"""


def _section(name: str, cls: type[_Event]) -> str:
    return f"## `{name}`\n\n{' '.join((cls.__doc__ or '').split())}\n\n{_table(cls)}"


def _table(cls: type[_Record]) -> str:
    shapes = cls.model_json_schema(mode="serialization")["properties"]
    rows = [
        f"| `{field}` | {_kind(shape)} | {shape.get('description', '')} |"
        for field, shape in shapes.items()
        if field != "type"
    ]
    return "\n".join(["| field | type | meaning |", "|---|---|---|", *rows, ""])


def _kind(shape: Mapping[str, Any]) -> str:
    if "const" in shape:
        return f"`{shape['const']}`"
    if "anyOf" in shape:
        return " or ".join(_kind(one) for one in shape["anyOf"])
    return "list of charges" if shape.get("type") == "array" else str(shape.get("type"))


def _write(folder: str) -> None:
    from pathlib import Path

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    Path(folder, "events.schema.json").write_text(text, encoding="utf-8")
    Path(folder, "events.md").write_text(markdown(), encoding="utf-8")


if __name__ == "__main__":
    _write("docs")
