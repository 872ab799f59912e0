"""What each family of chat models needs, without a network; the requests are in the contracts."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_groq import ChatGroq
from langchain_mistralai import ChatMistralAI
from langchain_ollama import ChatOllama
from langchain_openai import ChatOpenAI

from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
from langchain_relay.delegates.failures import delegate_error
from langchain_relay.delegates.litellm import OnlyReported
from langchain_relay.delegates.settings import without_secrets
from langchain_relay.errors import DelegateTruncated, UsageMistake

KEY: Any = "sk-secret"
NAMED: dict[str, Any] = {"model": "claude-haiku-4-5"}  # the aliases users write
CLAUDE = ChatAnthropic(api_key=KEY, **NAMED)
GEMINI = ChatGoogleGenerativeAI(model="gemini-2.5-flash", api_key=KEY)
GROQ = ChatGroq(api_key=KEY, **{**NAMED, "model": "llama-3.3-70b-versatile"})
MISTRAL = ChatMistralAI(model_name="mistral-small-latest", api_key=KEY)
OLLAMA = ChatOllama(model="llama3.2")


@pytest.mark.parametrize("model", [CLAUDE, GEMINI, OLLAMA], ids=lambda m: type(m).__name__)
def test_a_flag_that_would_not_leave_is_refused(model: BaseChatModel):
    with pytest.raises(UsageMistake, match="cannot send the flag 'prefix'"):
        ChatModelDelegate(model, mode="flag")


def test_the_responses_api_has_no_flag_on_a_message():
    model = ChatOpenAI(model="m", api_key=KEY, use_responses_api=True)
    with pytest.raises(UsageMistake, match="cannot send the flag 'partial'"):
        ChatModelDelegate(model, mode="flag", flag="partial")


@pytest.mark.parametrize("model", [CLAUDE, GEMINI, GROQ, MISTRAL, OLLAMA])
def test_an_attempt_is_one_request_and_its_host_has_a_name(model: BaseChatModel):
    delegate = ChatModelDelegate(model)
    assert delegate.worst_attempts == 1
    assert delegate.base_url is not None
    assert delegate.base_url.startswith("http")


# --- settings -----------------------------------------------------------------------------------


def test_every_setting_that_changes_replies_is_in_the_fingerprint():
    def fingerprint(**options: Any) -> str:
        model = ChatOpenAI(model="m", api_key=KEY, **options)
        return repr(ChatModelDelegate(model).fingerprint)

    options: list[dict[str, Any]] = [
        {},
        {"presence_penalty": 0.5},
        {"frequency_penalty": 0.5},
        {"model_kwargs": {"prompt_cache_retention": "24h"}},
        {"extra_body": {"top_k": 20}},
        {"default_headers": {"X-Team": "a"}},
        {"default_query": {"v": "1"}},
        {"logit_bias": {"50256": -100}},
    ]
    assert len({fingerprint(**option) for option in options}) == len(options)


def test_no_secret_is_in_the_fingerprint():
    import openai

    headers = {"Authorization": "Bearer s1", "X-Api-Key": "s2", "X-Team": "a"}
    body = {"api_key": "s3", "nested": [{"access_token": "s4"}], "min_tokens": 5}
    query = {"sig": "s5"}
    chat = ChatOpenAI(
        model="m", api_key=KEY, default_headers=headers, extra_body=body, default_query=query
    )
    client = openai.OpenAI(api_key=KEY, default_headers=headers, default_query=query)
    for delegate in (
        ChatModelDelegate(chat),
        OpenAIDelegate(client, model="m", extra_body=body),
    ):
        known = repr(delegate.fingerprint)
        assert not [secret for secret in ("s1", "s2", "s3", "s4", "s5", KEY) if secret in known]
        assert "'X-Team': 'a'" in known
        assert "'min_tokens': 5" in known


def test_what_is_no_plain_data_is_named_by_its_type():
    assert without_secrets({"a": object(), "b": (1, None)}) == {"a": "object", "b": [1, None]}


# --- LiteLLM, of which the contracts have an environment ----------------------------------------


class Chunk(SimpleNamespace):
    def model_dump(self) -> dict[str, Any]:
        return vars(self)


class Stream(list[Chunk]):
    """Chunks as LiteLLM hands them on, and what it knows of those that came."""

    def __init__(self, *chunks: Chunk, finish: str | None, usage: int | None) -> None:
        super().__init__(chunks)
        self.received_finish_reason = finish
        self.chunks = [Chunk(usage=usage)]


END = Chunk(choices=[SimpleNamespace(finish_reason="stop")])
COUNTED = Chunk(choices=[], usage=12)


def through(stream: Stream) -> list[Any]:
    package = SimpleNamespace(completion=lambda **_: stream)
    return list(OnlyReported(package).completion(stream=True))


def test_an_end_that_litellm_made_up_is_a_cut():
    assert through(Stream(END, finish="stop", usage=None)) == [END]
    with pytest.raises(DelegateTruncated):
        through(Stream(END, finish=None, usage=None))


def test_a_count_that_litellm_made_up_is_left_out():
    assert through(Stream(COUNTED, finish="stop", usage=12)) == [COUNTED]
    assert through(Stream(COUNTED, finish="stop", usage=None)) == [{"choices": []}]


LiteLLMError = type("InternalServerError", (Exception,), {"__module__": "litellm.exceptions"})
ConnectError = type("ConnectError", (Exception,), {})


def failed(cause: Exception | None, **facts: Any) -> Exception:
    error: Exception = LiteLLMError("failed")
    vars(error).update(facts)
    error.__context__ = cause
    return error


def test_a_status_that_litellm_made_up_is_none():
    error = delegate_error(failed(ConnectError(), status_code=500), model="m", received=False)
    assert (error.retryable, error.sent, error.answered) == (True, False, False)


@pytest.mark.parametrize(
    ("cause", "sent"),
    [("ClientConnectorError", False), ("ClientOSError", True), ("CancelledError", True)],
)
def test_a_connection_that_broke_is_none_that_could_not_be_made(cause: str, sent: bool):
    """LiteLLM's transport over aiohttp calls them all a `ConnectError`."""
    cannot = ConnectError("Connection reset by peer")
    cannot.__cause__ = type(cause, (Exception,), {})()
    error = delegate_error(failed(cannot, status_code=500), model="m", received=False)
    assert (error.retryable, error.sent) == (True, sent)


def test_the_status_is_told_where_litellm_does_not():
    error = delegate_error(failed(None, status_code=401), model="m", received=False)
    assert str(error) == "m: InternalServerError: failed (HTTP 401)"
    told = LiteLLMError("Error 401")
    vars(told).update(status_code=401)
    assert str(delegate_error(told, model="m", received=False)).count("401") == 1


def test_a_reply_that_litellm_could_not_read_is_malformed():
    unread = json.JSONDecodeError("Expecting value", "{", 1)
    error = delegate_error(failed(unread), model="m", received=True)
    assert str(error) == "m: InternalServerError: malformed reply"


def test_litellm_keeps_the_headers_of_a_reply_beside_it():
    headers = {"retry-after": "3"}
    error = failed(None, status_code=429, litellm_response_headers=headers)
    known = delegate_error(error, model="m", received=False)
    assert (known.retry_after_s, known.sent, known.answered) == (3.0, False, True)


def test_an_error_without_a_status_has_that_of_its_cause():
    class ClientError(Exception):
        code = 429
        response = SimpleNamespace(headers={"Retry-After": "7", "retry-after": "7"})

    error = ValueError("as google-genai is wrapped")
    error.__cause__ = ClientError()
    known = delegate_error(error, model="m", received=False)
    assert (known.retryable, known.sent, known.retry_after_s) == (True, False, 7.0)
