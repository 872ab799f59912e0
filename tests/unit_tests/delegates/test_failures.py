"""What an error means for retries and for money."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import pytest
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelInvalidRequestError,
    ModelRateLimitError,
    ModelTimeoutError,
)

from langchain_relay.delegates.failures import delegate_error, translated
from langchain_relay.engine.errors import (
    BudgetExceeded,
    DelegateError,
    DelegateTimeout,
    DelegateTruncated,
)

REQUEST = httpx.Request("POST", "http://127.0.0.1/v1")


class StatusError(Exception):
    """What SDKs raise for an HTTP error status."""

    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"status {status}\nand a long page")
        self.status_code = status
        self.response = httpx.Response(status, headers=headers)


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def mapped(error: Exception, *, received: bool = False) -> DelegateError:
    return delegate_error(error, model="m", received=received)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_busy_or_broken_host_may_be_asked_again_and_is_owed_nothing(status: int):
    error = mapped(StatusError(status))
    assert (error.retryable, error.sent) == (True, False)


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 422])
def test_a_refused_request_is_final_and_owed_nothing(status: int):
    error = mapped(StatusError(status))
    assert (error.retryable, error.sent) == (False, False)


def test_a_status_behind_content_is_owed():
    assert mapped(StatusError(500), received=True).sent
    # anthropic reports an error event of a stream with the status of its response, 200.
    assert mapped(StatusError(200)).sent


@pytest.mark.parametrize(
    ("error", "retryable", "sent"),
    [
        (httpx.ConnectError("refused"), True, False),
        (httpx.ReadError("reset"), True, True),
        (httpx.RemoteProtocolError("peer closed connection"), True, True),
        (caused(ModelConnectionError("down"), httpx.ConnectError("refused")), True, False),
        (caused(ModelConnectionError("down"), httpx.ReadError("reset")), True, True),
        (ConnectionRefusedError(), True, False),
        (ModelRateLimitError("slow down"), True, True),
        (ModelAPIError("broken"), True, True),
        (ModelAuthenticationError("who?"), False, True),
        (ModelInvalidRequestError("what?"), False, True),
        (ContextOverflowError("too long"), False, True),
        (json.JSONDecodeError("Expecting value", "{", 1), True, True),
        (ValueError("Unexpected response type"), True, True),
        (RuntimeError("Event loop is closed"), True, False),
        (TypeError("a bug"), False, True),
    ],
)
def test_errors_without_a_status_are_told_by_their_kind(
    error: Exception, retryable: bool, sent: bool
):
    out = mapped(error)
    assert (out.retryable, out.sent) == (retryable, sent)


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (TimeoutError(), True),
        (ModelTimeoutError("late"), True),
        (httpx.ReadTimeout("late"), True),
        (httpx.ConnectTimeout("late"), False),
        (caused(ModelTimeoutError("late"), httpx.ConnectTimeout("late")), False),
    ],
)
def test_a_timeout_is_one_and_owes_unless_it_never_connected(error: Exception, sent: bool):
    out = mapped(error)
    assert isinstance(out, DelegateTimeout)
    assert out.sent is sent


def test_a_connection_that_breaks_behind_content_cut_the_stream():
    assert isinstance(mapped(httpx.ReadError("reset"), received=True), DelegateTruncated)


def test_an_error_that_was_being_handled_is_not_a_cause():
    error = httpx.ReadError("reset")
    error.__context__ = httpx.ConnectError("an earlier attempt's")
    assert mapped(error).sent


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-3"}, None),
        ({}, None),
    ],
)
def test_what_the_host_asks_to_wait_is_kept(headers: dict[str, str], seconds: float | None):
    assert mapped(StatusError(429, headers)).retry_after_s == seconds


def test_a_host_may_ask_to_wait_until_a_date():
    soon = format_datetime(datetime.now(tz=UTC) + timedelta(seconds=30), usegmt=True)
    wait_s = mapped(StatusError(429, {"retry-after": soon})).retry_after_s
    assert wait_s == pytest.approx(30, abs=2)


def test_the_message_names_the_model_and_is_one_line():
    assert str(mapped(StatusError(500))) == "m: StatusError: status 500"


def test_errors_are_raised_from_what_the_sdk_raised():
    cause = StatusError(500)
    with pytest.raises(DelegateError) as raised, translated("m", lambda: False):
        raise cause
    assert raised.value.__cause__ is cause


@pytest.mark.parametrize(
    "error",
    [
        DelegateTruncated("cut"),
        BudgetExceeded(unit="calls", needed=1, left=0, limit=0),
        KeyboardInterrupt(),
        GeneratorExit(),
    ],
)
def test_our_own_errors_and_interrupts_pass_through(error: Any):
    with pytest.raises(type(error)) as raised, translated("m", lambda: False):
        raise error
    assert raised.value is error
