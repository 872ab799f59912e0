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

from langchain_relay.delegates.failures import building, delegate_error, translated
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


def test_a_status_within_a_stream_is_owed_and_one_of_the_response_is_not():
    # google-genai gives both an error event and a refusal its `code`.
    event, refusal = StatusError(503), StatusError(503)
    for error in (event, refusal):
        vars(error)["code"] = vars(error).pop("status_code")
    event.response = httpx.Response(200)
    assert (mapped(event).sent, mapped(event).retryable) == (True, True)
    assert (mapped(refusal).sent, mapped(refusal).retryable) == (False, True)


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
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), True, True),
        (ValueError("who knows when"), False, True),
        (httpx.UnsupportedProtocol("no http://"), False, False),
        (httpx.InvalidURL("no URL"), False, False),
        (UnicodeEncodeError("ascii", "k\u00e9y", 1, 2, "not in range"), False, False),
        (RuntimeError("Event loop is closed"), True, False),
        (TypeError("a bug"), False, True),
    ],
)
def test_errors_without_a_status_are_told_by_their_kind(
    error: Exception, retryable: bool, sent: bool
):
    out = mapped(error)
    assert (out.retryable, out.sent) == (retryable, sent)


def raised_in(function: str, error: Exception, cause: Exception | None = None) -> Exception:
    """`error` as it comes out of a function of that name."""
    if cause is not None:
        error.__cause__ = raised_in(function, cause)
        return error
    names: dict[str, Any] = {"error": error}
    exec(f"def {function}(): raise error", names)
    with pytest.raises(type(error)) as raised:
        names[function]()
    return raised.value


BUILDERS = [
    *("_get_request_payload", "_create_message_dicts", "_prepare_request", "_chat_params"),
    *("_build_request", "build_request"),
]
READERS = ["iter_raw", "aiter_raw", "_create_chat_result", "_convert_chunk_to_generation_chunk"]


@pytest.mark.parametrize("function", BUILDERS)
@pytest.mark.parametrize("error", [ValueError("no such role"), TypeError("no such type")])
def test_a_request_that_could_not_be_built_costs_nothing_and_is_not_retried(
    function: str, error: Exception
):
    out = mapped(raised_in(function, error))
    assert (out.retryable, out.sent, out.answered) == (False, False, None)
    assert "the request could not be built" in str(out)
    wrapped = mapped(raised_in(function, RuntimeError("wrapped"), cause=error))
    assert (wrapped.retryable, wrapped.sent) == (False, False)


def test_behind_content_nothing_is_a_matter_of_building():
    out = mapped(raised_in("build_request", ValueError("odd")), received=True)
    assert (out.retryable, out.sent, out.answered) == (True, True, True)


def test_what_is_built_before_anything_is_sent_is_marked_as_such():
    with pytest.raises(DelegateError) as raised, building("m"):
        raise ValueError("no such role")
    assert (raised.value.retryable, raised.value.sent) == (False, False)
    with pytest.raises(BudgetExceeded), building("m"):
        raise BudgetExceeded(unit="calls", needed=1, left=0, limit=0)


@pytest.mark.parametrize("function", READERS)
def test_what_goes_wrong_in_reading_a_reply_may_be_tried_again(function: str):
    out = mapped(raised_in(function, ValueError("Unexpected response type")))
    assert (out.retryable, out.sent, out.answered) == (True, True, True)


@pytest.mark.parametrize(
    ("error", "answered"),
    [
        (httpx.ConnectError("refused"), False),
        (httpx.ConnectTimeout("late"), False),
        (httpx.ReadTimeout("late"), False),
        (httpx.ReadError("reset"), False),
        (httpx.RemoteProtocolError("disconnected without a response"), False),
        (ModelConnectionError("down"), False),
        (ModelTimeoutError("late"), False),
        (TimeoutError(), False),
        (raised_in("iter_raw", httpx.ReadTimeout("late")), True),
        (raised_in("aiter_raw", httpx.ReadError("reset")), True),
        (raised_in("iter_raw", ModelConnectionError("down"), httpx.ReadError("reset")), True),
        (StatusError(500), True),
        (StatusError(401), True),
        (json.JSONDecodeError("Expecting value", "{", 1), True),
        (httpx.PoolTimeout("all in use"), None),
        (RuntimeError("Event loop is closed"), None),
        (TypeError("a bug"), None),
    ],
)
def test_whether_there_was_a_response_header(error: Exception, answered: bool | None):
    assert mapped(error).answered is answered
    assert mapped(error, received=True).answered is True


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
    assert wait_s is not None
    assert 20 < wait_s <= 30  # a date has whole seconds, and some pass here


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


def test_a_host_that_was_not_reached_is_named_without_what_may_be_secret():
    request = httpx.Request("POST", "http://user:pw@127.0.0.1:9/v1?key=secret")
    refused = httpx.ConnectError("refused", request=request)
    said = str(delegate_error(refused, model="m", received=False))
    assert said == "m: ConnectError: refused (nobody answers at http://127.0.0.1:9)"
    unset = delegate_error(httpx.ConnectError("refused"), model="m", received=False)
    assert str(unset) == "m: ConnectError: refused"
    own = delegate_error(
        httpx.PoolTimeout("all in use", request=request), model="m", received=False
    )
    assert "nobody" not in str(own)
