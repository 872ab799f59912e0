"""The client classes people use, each over the fault server's dialect that it speaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai
import pytest
from langchain_openai import ChatOpenAI

from langchain_relay.delegates import OpenAIDelegate
from tests.faults import Fault, FaultServer
from tests.faults.dialects import DIALECTS, RELATIVES
from tests.faults.script import word_ids
from tests.integration_tests.delegates import older_openai

MODEL = "gpt-5-mini"


def lacks(dialect: str) -> frozenset[Fault]:
    """Faults that a dialect has no words for."""
    return next(one.lacks for one in (*RELATIVES, *DIALECTS) if one.name == dialect)


@dataclass(frozen=True)
class HostedSide:
    """One client class.

    Attributes:
        name: What the tests call it.
        dialect: The fault server's name of what it speaks.
        model: The model that is asked.
        make: Builds the client for a server.
        exact: The model's tokenizer is at hand: the host's own, which counts words.
        without: Faults that are not put to it.
    """

    name: str
    dialect: str
    model: str
    make: Callable[[FaultServer], Any]
    exact: bool = False
    without: frozenset[Fault] = frozenset()

    @property
    def faults(self) -> list[Fault]:
        """Those its dialect has words for."""
        return [fault for fault in Fault if fault not in lacks(self.dialect) | self.without]

    def __str__(self) -> str:
        return self.name

    def __call__(self, server: FaultServer) -> Any:
        return self.make(server)


def _client(server: FaultServer, **settings: Any) -> OpenAIDelegate:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="test")
    return OpenAIDelegate(client, model=MODEL, tokenizer=word_ids, **settings)


def _chat_openai(server: FaultServer, **fields: Any) -> Any:
    return ChatOpenAI(
        model=MODEL,
        base_url=f"{server.url}/v1",
        api_key="test",
        custom_get_token_ids=word_ids,
        **fields,
    )


def _anthropic(server: FaultServer) -> Any:
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(model="claude-haiku-4-5", base_url=server.url, api_key="test")


def _gemini(server: FaultServer) -> Any:
    from langchain_google_genai import ChatGoogleGenerativeAI

    return ChatGoogleGenerativeAI(model="gemini-2.5-flash", base_url=server.url, api_key="test")


def _ollama(server: FaultServer) -> Any:
    from langchain_ollama import ChatOllama

    return ChatOllama(model="qwen3:8b", base_url=server.url, custom_get_token_ids=word_ids)


def _groq(server: FaultServer) -> Any:
    from langchain_groq import ChatGroq

    return ChatGroq(
        model="llama-3.3-70b-versatile",
        base_url=server.url,
        api_key="test",
        custom_get_token_ids=word_ids,
    )  # type: ignore[call-arg]


def _mistral(server: FaultServer) -> Any:
    from langchain_mistralai import ChatMistralAI

    return ChatMistralAI(
        model_name="mistral-small-latest", base_url=f"{server.url}/mistral/v1", api_key="test"
    )


def _deepseek(server: FaultServer) -> Any:
    from langchain_deepseek import ChatDeepSeek

    return ChatDeepSeek(model="deepseek-chat", api_base=f"{server.url}/v1", api_key="test")  # type: ignore[call-arg]


def _litellm(server: FaultServer, model: str) -> Any:
    from langchain_litellm import ChatLiteLLM

    return ChatLiteLLM(model=model, api_base=f"{server.url}/v1", api_key="test", max_retries=4)


THROUGH_A_CLIENT = HostedSide("openai_client", "openai_chat", MODEL, _client, exact=True)
THROUGH_LANGCHAIN = HostedSide("ChatOpenAI", "openai_chat", MODEL, _chat_openai, exact=True)
RESPONSES = HostedSide(
    "ChatOpenAI_responses",
    "openai_responses",
    MODEL,
    lambda server: _chat_openai(server, use_responses_api=True),
    exact=True,
)
CLIENT_RESPONSES = HostedSide(
    "openai_client_responses",
    "openai_responses",
    MODEL,
    lambda server: _client(server, api="responses"),
    exact=True,
)
COMPLETIONS = HostedSide(
    "openai_client_completions",
    "openai_completions",
    MODEL,
    lambda server: _client(server, api="completions"),
    exact=True,
)
ANTHROPIC = HostedSide("ChatAnthropic", "anthropic_messages", "claude-haiku-4-5", _anthropic)
GEMINI = HostedSide("ChatGoogleGenerativeAI", "gemini", "gemini-2.5-flash", _gemini)
OLLAMA = HostedSide("ChatOllama", "ollama", "qwen3:8b", _ollama, exact=True)
GROQ = HostedSide("ChatGroq", "groq", "llama-3.3-70b-versatile", _groq, exact=True)
MISTRAL = HostedSide("ChatMistralAI", "mistral", "mistral-small-latest", _mistral)
DEEPSEEK = HostedSide("ChatDeepSeek", "openai_chat", "deepseek-chat", _deepseek)

ON_EVERY_PATH = [THROUGH_LANGCHAIN, ANTHROPIC]
ON_ONE_PATH = [
    *(THROUGH_A_CLIENT, RESPONSES, CLIENT_RESPONSES, COMPLETIONS),
    *(GEMINI, OLLAMA, GROQ, MISTRAL, DEEPSEEK),
]
LITELLM = [
    HostedSide(
        "ChatLiteLLM_openai",
        "openai_chat",
        "openai/house-1",
        lambda server: _litellm(server, "openai/house-1"),
    ),
    HostedSide(
        "ChatLiteLLM_deepseek",
        "openai_chat",
        "deepseek/house-1",
        lambda server: _litellm(server, "deepseek/house-1"),
        # On a loop LiteLLM 1.106 sends such a request once more by itself, whatever it was told.
        without=frozenset({Fault.RESET_BEFORE_HEADERS}),
    ),
]
"""LiteLLM asks the one through `openai` and the other through a client of its own.

It has no price and no tokenizer for these models: what it knows would go before the tests' own.
"""

if older_openai.INSIDE:
    ON_EVERY_PATH, ON_ONE_PATH = LITELLM[:1], LITELLM[1:]
SIDES = [*ON_EVERY_PATH, *ON_ONE_PATH]

every_side = pytest.mark.parametrize("make", SIDES, ids=lambda side: side.name)
