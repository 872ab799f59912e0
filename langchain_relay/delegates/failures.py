"""What a hosted model's failure means: may it be retried, and may money be owed.

No vendor SDK is imported here. Their errors are told apart by what they carry (an HTTP status, a
langchain-core `is_retryable`, a transport error as cause), so that any SDK will do.
"""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from langchain_core.exceptions import ModelConnectionError, ModelError, ModelTimeoutError

from langchain_relay.errors import (
    DelegateError,
    DelegateTimeout,
    DelegateTruncated,
    RelayError,
)

_RETRYABLE_STATUS = frozenset({408, 409, 425, 429})
_ERROR_STATUS = 400
_SERVER_ERROR_STATUS = 500

_NEVER_CONNECTED = frozenset(
    {
        # httpx, httpx2 and httpcore
        "ConnectError",
        "ConnectTimeout",
        "PoolTimeout",
        "ProxyError",
        # urllib3 and aiohttp
        "NewConnectionError",
        "ConnectTimeoutError",
        "ClientConnectorError",
        # the standard library
        "ConnectionRefusedError",
        "gaierror",
    }
)
"""Errors after which no byte of the request can have reached a model."""

_UNREACHED = _NEVER_CONNECTED - {"PoolTimeout"}  # that is about our own connections

_CONNECTION_BROKE = frozenset(
    {
        "ReadError",
        "WriteError",
        "CloseError",
        "RemoteProtocolError",
        "LocalProtocolError",
        "IncompleteRead",
        "ProtocolError",
        "ClientPayloadError",
        "ServerDisconnectedError",
        "ConnectionResetError",
        "BrokenPipeError",
        "EndOfStream",
    }
)
"""Errors of a connection that stood; the request may have been worked on."""

_NO_REQUEST = frozenset({"UnsupportedProtocol", "InvalidURL", "UnicodeEncodeError"})
"""Errors of a request that cannot be written down; another try would be no better."""

_BUILDERS = frozenset(
    {
        # LangChain's chat models: openai and its relatives, anthropic; groq, mistralai, fireworks;
        # google-genai; ollama
        *("_get_request_payload", "_create_message_dicts", "_prepare_request", "_chat_params"),
        # the SDKs of OpenAI and Anthropic, and httpx
        *("_build_request", "build_request"),
    }
)
"""Functions that turn messages into a request: an error that went through one is older than it."""

_READERS = frozenset(
    {
        *("iter_raw", "aiter_raw"),  # httpx reads a body
        *("_create_chat_result", "_convert_chunk_to_generation_chunk"),  # LangChain reads a reply
    }
)
"""Functions that read what came behind the response header."""

_TIMED_OUT = frozenset(
    {"APITimeoutError", "ReadTimeout", "WriteTimeout", "ConnectTimeout", "PoolTimeout"}
)


@contextmanager
def translated(model: str, received: Callable[[], bool]) -> Iterator[None]:
    """Raise whatever goes wrong inside as a `DelegateError`; errors of ours pass through.

    Args:
        model: Named in the message.
        received: Whether content of this attempt has arrived; then money is owed.
    """
    try:
        yield
    except RelayError:
        raise
    except Exception as error:
        raise delegate_error(error, model=model, received=received()) from error


@contextmanager
def building(model: str) -> Iterator[None]:
    """Raise whatever goes wrong inside as a `DelegateError` that costs nothing and is not retried.

    For what is done before anything can have been sent; errors of ours pass through.
    """
    try:
        yield
    except RelayError:
        raise
    except Exception as error:
        raise _not_built(error, model) from error


def http_status(error: Exception) -> int | None:
    """The HTTP status that an SDK's error carries; `None`: it carries none."""
    return _http_status(error, _names_along_causes(error))


def delegate_error(error: Exception, *, model: str, received: bool) -> DelegateError:
    """The `DelegateError` that says what `error` means for retries, for money and for the breaker.

    `sent` is `False` only for an HTTP error status before any content, for a connection that never
    stood and for a request that was never built: then the provider has nothing to bill. `answered`
    is `True` behind a response header, `False` where the connection or the time ended before one.
    """
    names = _names_along_causes(error)
    status = _http_status(error, names)
    functions = _functions_along_causes(error)
    if not received and status is None and (names & _NO_REQUEST or functions & _BUILDERS):
        return _not_built(error, model)
    replied = received or status is not None or bool(functions & _READERS)
    never_stood = names & _NEVER_CONNECTED and not _had_stood(error)
    connected = not (never_stood or _is_of_a_dead_loop(error))
    refused = status is not None and status >= _ERROR_STATUS and not _is_within_a_stream(error)
    sent = received or (connected and not refused)
    unreached = _nobody_at(error) if names & _UNREACHED else ""
    message = f"{model}: {_one_line(error)}{unreached}"
    if refused and str(status) not in message:
        message += f" (HTTP {status})"  # LiteLLM says "bad request" to most of them
    facts: dict[str, Any] = {
        "sent": sent,
        "retry_after_s": _retry_after_s(error),
        "answered": True if replied else _answered(error, names),
    }
    if _is_timeout(error, names):
        return DelegateTimeout(message, retryable=True, **facts)
    if received and names & _CONNECTION_BROKE:
        return DelegateTruncated(
            f"{message} (in the middle of the stream)", retryable=True, answered=True
        )
    retryable = _is_retryable(error, status, names, replied=replied)
    return DelegateError(message, retryable=retryable, **facts)


def _not_built(error: Exception, model: str) -> DelegateError:
    message = f"{model}: the request could not be built: {_one_line(error)}"
    return DelegateError(message, retryable=False, sent=False)


def _answered(error: Exception, names: frozenset[str]) -> bool | None:
    """What an error that nothing is known to have come before says about the response header."""
    if _is_malformed_reply(error):
        return True
    if "PoolTimeout" in names:
        return None  # our own connections are all in use
    silent = names & (_NEVER_CONNECTED | _CONNECTION_BROKE | {"APIConnectionError"})
    if silent or isinstance(error, ModelConnectionError) or _is_timeout(error, names):
        return False
    return None


def _is_timeout(error: Exception, names: frozenset[str]) -> bool:
    kinds = (TimeoutError, asyncio.TimeoutError, ModelTimeoutError)
    return isinstance(error, kinds) or bool(names & _TIMED_OUT)


def _is_malformed_reply(error: Exception) -> bool:
    """langchain-openai 1.7.3 and google-genai 2.34 let these through from reading a reply."""
    return isinstance(error, json.JSONDecodeError | UnicodeDecodeError) or _is_of_genai(error)


def _is_of_genai(error: Exception) -> bool:
    return type(error).__name__ == "UnknownApiResponseError"  # its text is the reply


def _is_retryable(
    error: Exception, status: int | None, names: frozenset[str], *, replied: bool
) -> bool:
    if _is_out_of_credit(error):
        return False
    if status is not None and status >= _ERROR_STATUS:
        return status in _RETRYABLE_STATUS or status >= _SERVER_ERROR_STATUS
    if isinstance(error, ModelError) and not isinstance(error, ModelConnectionError):
        return error.is_retryable
    if _is_of_a_dead_loop(error) or isinstance(error, ModelConnectionError):
        return True
    if _is_malformed_reply(error) or (replied and isinstance(error, ValueError)):
        return True  # the reply made no sense; any other ValueError may be the request's
    # The SDKs report an error event inside a stream as APIError.
    known = _NEVER_CONNECTED | _CONNECTION_BROKE | {"APIError", "APIConnectionError"}
    return bool(names & known)


def _is_of_a_dead_loop(error: Exception) -> bool:
    """A pooled connection of an event loop that is gone: nothing can be sent on it."""
    links = (error, error.__cause__)
    return any(isinstance(e, RuntimeError) and "loop is closed" in str(e) for e in links)


def _had_stood(error: Exception) -> bool:
    """Whether a connection stood that LiteLLM says could not be made.

    Its transport over aiohttp calls what breaks such a connection a `ConnectError` as well, and
    what cancels a request in the middle.
    """
    links = (link for link in _causes(error) if type(link).__name__ == "ConnectError")
    # By the very class: aiohttp's error of a connection that never stood is a subclass.
    return any(type(e.__cause__).__name__ in {"ClientOSError", "CancelledError"} for e in links)


def _is_out_of_credit(error: Exception) -> bool:
    """OpenAI says 429 both for "slow down" and for "you have no money left"."""
    return getattr(error, "code", None) == "insufficient_quota"


def _http_status(error: Exception, names: frozenset[str]) -> int | None:
    """The HTTP status an SDK's error carries, or the one it was raised from (google-genai)."""
    nothing_came = bool(names & (_NEVER_CONNECTED | _CONNECTION_BROKE | _TIMED_OUT))
    for link in _causes(error):
        if type(link).__name__ in _CONNECTION_BROKE:
            return None  # aiohttp's are raised from errors that number what broke like a status
        if nothing_came and _is_litellms(link):
            continue  # LiteLLM gives errors of the connection a status of its own
        for carrier in (link, getattr(link, "response", None)):
            for name in ("status_code", "code", "status"):
                value = getattr(carrier, name, None)
                if isinstance(value, int) and not isinstance(value, bool):
                    return int(value)
    return None


def _is_within_a_stream(error: Exception) -> bool:
    """Whether the status is that of an event, behind a response header that said otherwise.

    google-genai 2.34 raises both as one class; only the response that it keeps tells which.
    """
    headers = (getattr(getattr(e, "response", None), "status_code", None) for e in _causes(error))
    return any(isinstance(status, int) and status < _ERROR_STATUS for status in headers)


def _is_litellms(link: BaseException) -> bool:
    return type(link).__module__.startswith("litellm")


def _names_along_causes(error: BaseException) -> frozenset[str]:
    """Class names of the error and of what it was raised from.

    Only `__cause__` is followed: `__context__` may be an earlier attempt that is being handled.
    LiteLLM raises its own errors from inside a handler and names no cause.
    """
    return frozenset(cls.__name__ for link in _causes(error) for cls in type(link).__mro__)


def _functions_along_causes(error: BaseException) -> frozenset[str]:
    """Names of the functions that the error and what it was raised from went through."""
    frames = (
        frame for link in _causes(error) for frame, _ in traceback.walk_tb(link.__traceback__)
    )
    return frozenset(frame.f_code.co_name for frame in frames)


def _causes(error: BaseException) -> list[BaseException]:
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        link = link.__cause__ or (link.__context__ if _is_litellms(link) else None)
    return causes


def _retry_after_s(error: Exception) -> float | None:
    """What the provider asked to wait, from `retry-after-ms` or `retry-after`."""
    waits = (_asked_to_wait_s(headers) for link in _causes(error) for headers in _headers(link))
    return next((wait for wait in waits if wait is not None), None)


def _headers(link: BaseException) -> Iterator[Mapping[str, Any]]:
    """Of the reply an error carries; LiteLLM keeps them beside a reply it makes up."""
    response = getattr(link, "response", None)
    for headers in (
        getattr(response, "headers", None),
        getattr(link, "litellm_response_headers", None),
    ):
        if isinstance(headers, Mapping):
            yield headers


def _asked_to_wait_s(headers: Mapping[str, Any]) -> float | None:
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    seconds = _number(value)
    return seconds if seconds is not None else _seconds_until(value)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number < float("inf") else None


def _seconds_until(http_date: Any) -> float | None:
    try:
        then = parsedate_to_datetime(http_date)
    except (TypeError, ValueError):
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max(0.0, (then - datetime.now(tz=UTC)).total_seconds())


def _nobody_at(error: Exception) -> str:
    """The host that could not be reached, where the error knows it; SDKs say only that it failed.

    Without path, query and user: there may be keys in them.
    """
    for link in _causes(error):
        with suppress(RuntimeError, ValueError):  # httpx: the request was not set
            url = getattr(getattr(link, "request", None), "url", None)
            parts = urlsplit(str(url or ""))
            if parts.hostname:
                port = f":{parts.port}" if parts.port else ""
                return f" (nobody answers at {parts.scheme}://{parts.hostname}{port})"
    return ""


def _one_line(error: Exception) -> str:
    """The error's class and the first line of what it says, at most 300 characters."""
    said_by = _causes(error) if _is_litellms(error) else [error]
    unread = _is_of_genai(error) or any(isinstance(e, json.JSONDecodeError) for e in said_by)
    said = "malformed reply" if unread else str(error)
    lines = said.strip().splitlines() or [""]
    text = f"{type(error).__name__}: {lines[0][:300]}"
    return text.removesuffix(": ")
