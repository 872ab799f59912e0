"""Clients of the openai package in the hosted role, without a network."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage

from langchain_relay.delegates import OpenAIDelegate
from langchain_relay.engine.errors import UnknownDelegate, UsageMistake
from langchain_relay.engine.values import Attempt, Delegate

ASKED = Attempt(messages=(HumanMessage("Why?"),), draft="It is ", max_tokens=5)
SETTINGS: dict[str, Any] = {
    "api_key": "k",
    "base_url": "http://127.0.0.1:9/v1",
    "organization": "o",
    "project": "p",
    "timeout": 3.0,
    "default_headers": {"X-Team": "t"},
    "default_query": {"v": "1"},
}


def test_it_is_a_delegate():
    delegate = OpenAIDelegate(openai.OpenAI(api_key="k"), model="m")
    assert isinstance(delegate, Delegate)
    assert (delegate.model, delegate.mode, delegate.worst_attempts) == ("m", "instruct", 1)


@pytest.mark.parametrize("given", [openai.OpenAI, openai.AsyncOpenAI])
async def test_the_other_flavour_has_the_same_settings_and_no_retries(given: Any):
    clients = OpenAIDelegate(given(**SETTINGS), model="m")._clients
    for client, flavour in (
        (clients.sync, openai.OpenAI),
        (clients.asynchronous, openai.AsyncOpenAI),
    ):
        assert type(client) is flavour
        assert client.max_retries == 0
        assert (client.api_key, str(client.base_url)) == ("k", "http://127.0.0.1:9/v1/")
        assert (client.organization, client.project, client.timeout) == ("o", "p", 3.0)
        assert client.default_headers["X-Team"] == "t"
        assert client.default_query == {"v": "1"}


def test_a_client_that_was_given_is_used_and_keeps_its_own_retries():
    client = openai.OpenAI(api_key="k", max_retries=2)
    used = OpenAIDelegate(client, model="m")._clients.sync
    assert (client.max_retries, used.max_retries) == (2, 0)
    assert used._client is client._client  # one pool of connections


@pytest.mark.parametrize(
    ("client", "reason"),
    [
        (openai.OpenAI(api_key="k", http_client=openai.DefaultHttpxClient()), "http_client"),
        (openai.OpenAI(api_key=lambda: "k"), "function"),
        (
            openai.AzureOpenAI(api_key="k", api_version="1", azure_endpoint="http://127.0.0.1"),
            "class of its own",
        ),
    ],
)
async def test_a_client_that_cannot_be_converted_says_why_and_what_to_do(client: Any, reason: str):
    delegate = OpenAIDelegate(client, model="m")
    assert delegate._clients.sync.max_retries == 0
    with pytest.raises(UsageMistake, match=reason) as refused:
        _ = delegate._clients.asynchronous
    assert "async_client=" in str(refused.value)
    both = OpenAIDelegate(client, model="m", async_client=openai.AsyncOpenAI(api_key="k"))
    assert both._clients.asynchronous.max_retries == 0


def test_only_clients_are_taken_and_one_of_each_flavour():
    with pytest.raises(UnknownDelegate, match="not str"):
        OpenAIDelegate("gpt-5-mini", model="m")  # type: ignore[arg-type]  # the point
    client: Any = openai.OpenAI(api_key="k")
    with pytest.raises(UnknownDelegate, match="one client of each flavour"):
        OpenAIDelegate(client, model="m", async_client=client)


@pytest.mark.parametrize(
    ("api", "mode"),
    [
        ("chat", "completion"),
        ("completions", "prefill"),
        ("responses", "completion"),
        ("responses", "flag"),
    ],
)
def test_a_mode_of_the_other_api_is_refused(api: Any, mode: Any):
    with pytest.raises(UsageMistake, match="does not go with"):
        OpenAIDelegate(openai.OpenAI(api_key="k"), model="m", api=api, mode=mode)


@pytest.mark.parametrize(
    ("base_url", "api", "name"),
    [
        ("https://api.openai.com/v1", "chat", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1", "chat", "max_completion_tokens"),
        ("https://x.openai.azure.com/openai/v1", "chat", "max_completion_tokens"),
        ("https://x.cognitiveservices.azure.com/openai/v1", "chat", "max_completion_tokens"),
        ("https://x.services.ai.azure.com/openai/v1", "chat", "max_completion_tokens"),
        ("https://api.openai.com/v1", "completions", "max_tokens"),
        ("https://api.openai.com/v1", "responses", "max_output_tokens"),
        ("http://127.0.0.1:8000/v1", "responses", "max_output_tokens"),
        ("https://notopenai.com/v1", "chat", "max_tokens"),
        ("http://127.0.0.1:8000/v1", "chat", "max_tokens"),
    ],
)
def test_the_limit_goes_by_the_name_the_host_knows(base_url: str, api: Any, name: str):
    delegate = OpenAIDelegate(openai.OpenAI(api_key="k", base_url=base_url), model="m", api=api)
    assert delegate._request(ASKED)[name] == 5


def test_the_user_may_know_better_and_may_add_fields():
    delegate = OpenAIDelegate(
        openai.OpenAI(api_key="k"),
        model="m",
        mode="flag",
        limit_name="max_tokens",
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    request = delegate._request(ASKED)
    assert request["max_tokens"] == 5
    assert set(request["extra_body"]) == {
        *("chat_template_kwargs", "continue_final_message", "add_generation_prompt")
    }


def test_the_fingerprint_tells_hosts_apart_and_holds_no_secret():
    client = openai.OpenAI(api_key="sk-secret", base_url="http://u:pass@127.0.0.1:1/v1")
    fingerprint = OpenAIDelegate(client, model="m").fingerprint
    assert fingerprint["base_url"] == "http://127.0.0.1:1/v1/"
    assert not any(secret in repr(fingerprint) for secret in ("sk-secret", "pass"))


def test_the_input_bound_covers_every_byte_that_is_sent():
    for api in ("chat", "completions"):
        delegate = OpenAIDelegate(openai.OpenAI(api_key="k"), model="m", api=api)
        sent = delegate._request(ASKED)
        text = sent["prompt"] if api == "completions" else sent["messages"][0]["content"]
        assert delegate.input_bound(ASKED) >= len(text.encode())


def test_another_model_of_the_host_has_a_mode_and_a_reasoning_of_its_own():
    base = OpenAIDelegate(openai.OpenAI(api_key="k"), model="davinci-002")
    chat = base.for_model("gpt-5-mini")
    assert (base.mode, chat.mode) == ("completion", "instruct")
    assert chat.fingerprint["settings"] == {"reasoning_effort": "minimal"}
    assert chat.model == "gpt-5-mini"
