"""What each fault comes to for the user: how the hand-over ends, what is kept, what is booked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from tests.faults import STATUS, Fault
from tests.faults.script import (
    CALL_TAGS_TEXT,
    DEFAULT_TEXT,
    IGNORED_LIMIT_TEXT,
    MEBIBYTE_TEXT,
    words,
)

Booked = Literal["reported", "worst", "released"]

N = 8
"""What the local model asks for."""

MOST_BYTES = 8 * N
"""Where a span is cut at the latest if the host ignores the limit and nobody can count."""

TIMEOUT_S = 0.8
"""The deadline of hand-overs to hosts that are too slow for it."""


@dataclass(frozen=True)
class Expected:
    """How one hand-over, sent once, ends under the default policy.

    Attributes:
        ends: `declined` is a `finished` that brought nothing.
        booked: As reported, at the worst case, or not at all.
        kept: The text of the span; with `whole=False` it may be any beginning of it.
        error_types: Classes the error may have.
        says: What the error says.
        retryable: Whether another attempt is made where retries are allowed.
    """

    ends: Literal["finished", "declined", "failed"]
    booked: Booked
    kept: str = ""
    whole: bool = True
    error_types: tuple[str, ...] = ()
    says: str = ""
    retryable: bool = False


UNCOUNTED: Mapping[Fault, Expected] = {
    Fault.IGNORED_LIMIT: Expected("finished", "reported", IGNORED_LIMIT_TEXT, whole=False),
    Fault.MEBIBYTE: Expected("finished", "reported", MEBIBYTE_TEXT, whole=False),
}
"""What is kept where the model's tokenizer is not at hand."""

CUT_AT_N = "".join(words(IGNORED_LIMIT_TEXT)[:N])
"""What is kept of a host that writes on past the limit."""

KEPT = "blue light"
"""What stands before a fault in the middle of the stream."""

_NOT_RETRYABLE = {Fault.UNAUTHORIZED, Fault.FORBIDDEN, Fault.NOT_FOUND}


def _status(fault: Fault) -> Expected:
    again = fault not in _NOT_RETRYABLE
    return Expected(
        "failed",
        "released",
        error_types=("DelegateError",),
        says=str(STATUS[fault]),
        retryable=again,
    )


def _broken(kept: str, *error_types: str, says: str = "", whole: bool = True) -> Expected:
    return Expected("failed", "worst", kept, whole, error_types, says, retryable=True)


def _withheld(kept: str, says: str) -> Expected:
    return Expected("failed", "reported", kept, error_types=("DelegateError",), says=says)


def _late(kept: str = "", *, whole: bool = True) -> Expected:
    return Expected("failed", "worst", kept, whole=whole, error_types=("DelegateTimeout",))


EXPECTED: Mapping[Fault, Expected] = {
    **{fault: _status(fault) for fault in STATUS},
    Fault.SLOW_HEADERS: _late(),
    Fault.SLOW_TOKENS: _late(DEFAULT_TEXT, whole=False),
    Fault.STALLED: _late(KEPT),
    Fault.KEEP_ALIVE: _late(KEPT),
    Fault.RESET_BEFORE_HEADERS: _broken("", "DelegateError"),
    Fault.RESET_BEFORE_TOKEN: _broken("", "DelegateError", "DelegateTruncated"),
    Fault.RESET_AFTER_TOKEN: _broken(KEPT, "DelegateTruncated"),
    Fault.TRUNCATED: _broken(KEPT, "DelegateTruncated", says="finish reason"),
    Fault.TRUNCATED_BODY: _broken(KEPT, "DelegateTruncated"),
    Fault.MALFORMED_JSON: _broken(KEPT, "DelegateError", says="malformed reply"),
    Fault.ERROR_EVENT: _broken(KEPT, "DelegateError"),
    Fault.INVALID_UTF8: _broken(KEPT, "DelegateError"),
    Fault.WRONG_CONTENT_TYPE: _broken("", "DelegateError", "DelegateTruncated"),
    Fault.NO_USAGE: Expected("finished", "worst", DEFAULT_TEXT),
    Fault.IGNORED_LIMIT: Expected("finished", "reported", CUT_AT_N),
    Fault.MEBIBYTE: Expected("finished", "reported", CUT_AT_N),
    Fault.CALL_TAGS: Expected("finished", "reported", CALL_TAGS_TEXT),
    Fault.EMPTY_CHOICE: Expected("declined", "reported"),
    Fault.TOOL_CALLS: Expected("declined", "reported"),
    Fault.REFUSAL: Expected("declined", "reported"),
    Fault.CONTENT_FILTER: _withheld(KEPT, "content_filter"),
}
"""What OpenAI's clients make of it."""

_REPLACED = Expected("finished", "reported", f"{KEPT}\ufffd\ufffd\ufffd( scatters most.")
"""Clients that put a mark in place of bytes that are no UTF-8."""

_BY_AIOHTTP = {
    fault: _broken(KEPT, "DelegateTruncated", whole=False)
    for fault in (Fault.RESET_AFTER_TOKEN, Fault.TRUNCATED_BODY)
}
"""On a loop it raises before its caller has passed on what it read last."""

OTHERWISE: Mapping[str, Mapping[Fault, Expected]] = {
    "ChatAnthropic": {  # has one word for both
        Fault.REFUSAL: _withheld("", "refusal"),
        Fault.CONTENT_FILTER: _withheld(KEPT, "refusal"),
    },
    "ChatGoogleGenerativeAI": {
        # google-genai takes a comment for data.
        Fault.KEEP_ALIVE: _broken(KEPT, "DelegateError", says="malformed reply"),
        Fault.REFUSAL: _withheld("", "prompt_blocked"),
        Fault.CONTENT_FILTER: _withheld(KEPT, "safety"),
        **_BY_AIOHTTP,
    },
    "openai_client_responses": {Fault.REFUSAL: _withheld("", "refusal")},
    "ChatOllama": {Fault.INVALID_UTF8: _REPLACED},
    "ChatLiteLLM_openai": _BY_AIOHTTP,
    "ChatLiteLLM_deepseek": {
        **_BY_AIOHTTP,
        Fault.INVALID_UTF8: _REPLACED,
        # LiteLLM passes over what is no JSON.
        Fault.MALFORMED_JSON: Expected("finished", "reported", DEFAULT_TEXT),
    },
    "ChatMistralAI": {
        Fault.INVALID_UTF8: _REPLACED,
        # langchain-mistralai passes over events without choices.
        Fault.ERROR_EVENT: _broken(KEPT, "DelegateTruncated"),
    },
}
"""Where another class makes something else of it."""


def expected_of(side: str, fault: Fault, *, on_a_thread: bool, exact: bool) -> Expected:
    """How a hand-over to this side ends."""
    if not exact and fault in UNCOUNTED:
        return UNCOUNTED[fault]
    by_httpx = on_a_thread or find_spec("aiohttp") is None
    if (side, fault) == ("ChatGoogleGenerativeAI", Fault.INVALID_UTF8) and by_httpx:
        return _REPLACED  # on a loop google-genai reads with aiohttp where that is installed
    return OTHERWISE.get(side, {}).get(fault, EXPECTED[fault])


TOO_SLOW = frozenset({Fault.SLOW_HEADERS, Fault.SLOW_TOKENS, Fault.STALLED, Fault.KEEP_ALIVE})
"""Faults that use up the deadline."""
