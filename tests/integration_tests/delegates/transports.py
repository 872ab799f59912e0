"""Every transport under test, driven the same way by threads and by an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import openai
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI

from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
from langchain_relay.engine.values import Attempt, Delegate, Delta
from tests.servers.openai_server import OpenAIServer

Colour = Literal["sync", "async"]

MESSAGES = (SystemMessage("Be brief."), HumanMessage("Why is the sky blue?"))


def attempt(draft: str = "", max_tokens: int = 50, **fields: Any) -> Attempt:
    return Attempt(messages=MESSAGES, draft=draft, max_tokens=max_tokens, **fields)


def chat_openai(server: OpenAIServer, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model="gpt-5-mini", base_url=server.base_url, api_key="test", **options)


def through_langchain(server: OpenAIServer, **options: Any) -> Delegate:
    return ChatModelDelegate(chat_openai(server), **options)


def through_a_sync_client(server: OpenAIServer, **options: Any) -> Delegate:
    client = openai.OpenAI(base_url=server.base_url, api_key="test")
    return OpenAIDelegate(client, model="gpt-5-mini", **options)


def through_an_async_client(server: OpenAIServer, **options: Any) -> Delegate:
    client = openai.AsyncOpenAI(base_url=server.base_url, api_key="test")
    return OpenAIDelegate(client, model="gpt-5-mini", **options)


Maker = Callable[..., Delegate]
MAKERS: list[Maker] = [through_langchain, through_a_sync_client, through_an_async_client]


def stream(
    delegate: Delegate, asked: Attempt, colour: Colour, until: int | None = None
) -> list[Delta]:
    """All deltas, or the first `until`, after which the stream is closed."""
    return list(pieces_and_error(delegate, asked, colour, until, catch=False)[0])


def pieces_and_error(
    delegate: Delegate,
    asked: Attempt,
    colour: Colour,
    until: int | None = None,
    *,
    catch: bool = True,
) -> tuple[list[Delta], Exception | None]:
    """What came, and what was raised behind it."""
    got: list[Delta] = []

    async def pull() -> None:
        deltas: Any = delegate.astream(asked)
        async for delta in deltas:
            got.append(delta)
            if len(got) == until:
                break
        await deltas.aclose()

    def pull_here() -> None:
        deltas: Any = delegate.stream(asked)
        for delta in deltas:
            got.append(delta)
            if len(got) == until:
                break
        deltas.close()

    try:
        asyncio.run(pull()) if colour == "async" else pull_here()
    except Exception as error:
        if not catch:
            raise
        return got, error
    return got, None


def text(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)
