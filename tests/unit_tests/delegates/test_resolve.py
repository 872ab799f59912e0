"""What may stand after `delegate=`."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import openai
import pytest
from langchain_core.language_models import GenericFakeChatModel
from langchain_openai import ChatOpenAI

from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate, resolve
from langchain_relay.delegates.resolve import resolve_delegate
from langchain_relay.engine.errors import MissingExtra, UnknownDelegate, UsageMistake
from langchain_relay.testing import ScriptedDelegate


def test_a_delegate_is_taken_as_it_is():
    delegate = ScriptedDelegate("blue")
    assert resolve_delegate(delegate) is delegate


def test_a_chat_model_is_wrapped():
    delegate = resolve_delegate(ChatOpenAI(model="gpt-5-mini", api_key="k"))
    assert isinstance(delegate, ChatModelDelegate)
    assert delegate.model == "gpt-5-mini"


def test_a_string_names_a_provider_and_a_model(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    delegate = resolve_delegate("openai:gpt-5-mini")
    assert isinstance(delegate, ChatModelDelegate)
    assert delegate.model == "gpt-5-mini"
    assert delegate.worst_attempts == 1


@pytest.mark.parametrize("missing", ["langchain", "langchain_openai"])
def test_without_langchain_an_openai_string_uses_the_openai_package(
    monkeypatch: pytest.MonkeyPatch, missing: str
):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setattr(resolve, "_installed", lambda package: package != missing)
    assert isinstance(resolve_delegate("openai:gpt-5-mini"), OpenAIDelegate)


def refused(value: Any) -> str:
    with pytest.raises((UnknownDelegate, MissingExtra)) as error:
        resolve_delegate(value)
    return str(error.value)


@pytest.mark.parametrize("client", [openai.OpenAI(api_key="k"), openai.AsyncOpenAI(api_key="k")])
def test_a_bare_client_is_refused_with_what_to_write(client: Any):
    assert 'OpenAIDelegate(client, model="gpt-5-mini")' in refused(client)


@pytest.mark.parametrize("text", ["gpt-5-mini", "", ":", "openai:", ":gpt-5-mini", "  "])
def test_a_string_that_names_no_provider_is_refused_with_the_forms(text: str):
    message = refused(text)
    assert '"provider:model"' in message
    assert "LocalDelegate" in message


def test_an_unknown_provider_is_refused():
    assert "'nosuch'" in refused("nosuch:model")
    assert "LocalDelegate" in refused("nosuch:model")
    assert "did you mean 'openai:gpt-5-mini'?" in refused("opnai:gpt-5-mini")


def test_a_provider_whose_package_is_missing_says_what_to_install():
    message = refused("cohere:command-a")
    assert "pip install langchain-cohere" in message


def test_without_langchain_other_strings_say_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(resolve, "_installed", lambda package: package != "langchain")
    assert "pip install langchain" in refused("anthropic:claude-haiku-4-5")


@pytest.mark.parametrize("langchain", [True, False])
def test_a_missing_key_names_its_variable(monkeypatch: pytest.MonkeyPatch, langchain: bool):
    monkeypatch.setattr(resolve, "_installed", lambda package: langchain)
    assert "OPENAI_API_KEY" in refused("openai:gpt-5-mini")


@pytest.mark.parametrize(
    ("text", "key", "address"),
    [
        ("anthropic:claude-haiku-4-5", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL"),
        ("mistralai:mistral-small", "MISTRAL_API_KEY", "MISTRAL_BASE_URL"),
    ],
)
def test_a_missing_key_is_named_where_the_class_does_not_ask_for_it(
    monkeypatch: pytest.MonkeyPatch, text: str, key: str, address: str
):
    monkeypatch.delenv(key, raising=False)
    monkeypatch.delenv(address, raising=False)
    assert key in refused(text)
    monkeypatch.setenv(address, "http://127.0.0.1:9")
    resolve_delegate(text)  # a gateway may ask for none
    monkeypatch.delenv(address)
    monkeypatch.setenv(key, "k")
    resolve_delegate(text)


@pytest.mark.parametrize("value", [None, 3, object(), ScriptedDelegate, ChatOpenAI, ["openai:x"]])
def test_anything_else_is_refused_with_the_forms(value: Any):
    message = refused(value)
    assert "cannot be a delegate" in message
    assert "OpenAIDelegate(" in message


FAKE = GenericFakeChatModel(messages=iter(()))


@pytest.mark.parametrize(
    "bound",
    [
        FAKE.bind(temperature=0),
        FAKE.with_config(tags=["a"]),
        FAKE.with_retry(),
        FAKE.with_retry().bind(stop=["."]),
    ],
)
def test_a_model_with_settings_bound_is_refused_with_what_to_write(bound: Any):
    message = refused(bound)
    assert "without .bind()" in message
    assert "max_retries=" in message


@pytest.mark.parametrize("first", [FAKE, FAKE.bind(temperature=0)])
def test_a_model_with_fallbacks_is_refused_with_what_to_write(first: Any):
    assert "FallbackDelegate(first, second)" in refused(first.with_fallbacks([FAKE]))


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("gpt-5-mini", "openai:gpt-5-mini"),
        (":claude", "openai:claude"),
        ("anthropic:", "openai:gpt-5-mini"),
    ],
)
def test_the_example_has_the_model_that_was_named(text: str, example: str):
    assert f'write "provider:model", for example "{example}"' in refused(text)


def test_importing_the_delegates_imports_no_vendor_sdk():
    heavy = ("openai", "llama_cpp", "genai_prices", "langchain_openai")
    code = f"""
import sys
import langchain_relay.delegates, langchain_relay.delegates.resolve, langchain_relay.prices
from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
print([name for name in {heavy} if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize("wrong", ["prefil", "", 3])
def test_an_unknown_mode_is_refused_with_those_there_are(wrong: Any):
    said = f"mode={wrong!r}: one of prefill, flag"
    with pytest.raises(UsageMistake, match=said):
        ChatModelDelegate(GenericFakeChatModel(messages=iter(())), mode=wrong)
    with pytest.raises(UsageMistake, match=said):
        OpenAIDelegate(openai.OpenAI(api_key="k"), model="m", mode=wrong)


def test_an_unknown_api_is_refused_with_those_there_are():
    wrong: Any = "response"
    with pytest.raises(UsageMistake, match=r"api='response': one of chat, responses"):
        OpenAIDelegate(openai.OpenAI(api_key="k"), model="m", api=wrong)


def test_a_model_with_fallbacks_is_sent_to_the_delegate_with_some():
    first, second = (GenericFakeChatModel(messages=iter(())) for _ in range(2))
    assert "FallbackDelegate(" in refused(first.with_fallbacks([second]))


@pytest.mark.parametrize("field", ["flag", "limit_name"])
def test_an_unknown_name_of_the_wire_is_refused_with_those_there_are(field: str):
    wrong: Any = {field: "prefx"}
    with pytest.raises(UsageMistake, match=f"{field}='prefx': one of (prefix|max_tokens), "):
        OpenAIDelegate(openai.OpenAI(api_key="k"), model="m", **wrong)


def test_what_is_no_chat_model_is_not_wrapped():
    wrong: Any = "openai:gpt-5-mini"
    with pytest.raises(UnknownDelegate, match="chat model, not str"):
        ChatModelDelegate(wrong)
