"""From whatever a user writes after `delegate=` to a `Delegate`. Needs no network."""

from __future__ import annotations

import re
from difflib import get_close_matches
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase

from langchain_relay.engine.values import Delegate
from langchain_relay.errors import MissingExtra, UnknownDelegate

if TYPE_CHECKING:
    from langchain_relay.delegates.openai import OpenAIDelegate

__all__ = ["resolve_delegate"]

_FORMS = (
    'a LangChain chat model, for example ChatOpenAI(model="gpt-5-mini"); a string '
    '"provider:model", for example "openai:gpt-5-mini"; '
    'OpenAIDelegate(openai.OpenAI(), model="gpt-5-mini"); or LocalDelegate(path)'
)

# Their classes are made without a key, and each hand-over is refused instead.
_KEYLESS = {
    "anthropic": ("anthropic_api_key", "ANTHROPIC_API_KEY", "anthropic_api_url"),
    "mistralai": ("mistral_api_key", "MISTRAL_API_KEY", "endpoint"),
}
"""By provider: the key's field, its environment variable, and the field of the address."""


def resolve_delegate(value: object) -> Delegate:
    """The delegate that `value` stands for.

    Args:
        value: A `Delegate`, a LangChain chat model, or a string `"provider:model"`. Strings are
            resolved by LangChain's `init_chat_model` where `langchain` is installed; without it,
            `"openai:..."` uses the `openai` package.

    Raises:
        UnknownDelegate: nobody can use `value`; the message says what to write instead.
        MissingExtra: the provider's package is not installed.
    """
    from langchain_relay.delegates.chat_model import ChatModelDelegate
    from langchain_relay.delegates.openai import is_openai_client

    if isinstance(value, BaseChatModel):
        return ChatModelDelegate(value)
    if isinstance(value, str):
        return _from_string(value)
    if is_openai_client(value):
        raise UnknownDelegate(
            f"a bare {type(value).__name__} client does not say which model to ask; write "
            f'OpenAIDelegate(client, model="gpt-5-mini")'
        )
    if (said := _said_of_wrapped(value)) is not None:
        raise UnknownDelegate(said)
    if isinstance(value, type) or not isinstance(value, Delegate):
        what = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise UnknownDelegate(f"{what} cannot be a delegate; use {_FORMS}")
    return value


def _said_of_wrapped(value: object) -> str | None:
    """Why a chat model that LangChain has wrapped is no delegate, and what to write instead."""
    if isinstance(value, RunnableWithFallbacks) and _is_chat_model(value.runnable):
        return (
            "a chat model with fallbacks cannot be a delegate; name the models instead: "
            "FallbackDelegate(first, second), where each goes on from what has arrived"
        )
    if not isinstance(value, RunnableBindingBase) or not _is_chat_model(value):
        return None
    return (
        "a chat model with settings bound to it cannot be a delegate; pass the chat model itself, "
        "without .bind(), .with_config() or .with_retry(): settings are its constructor's, and "
        "retries the relay's (max_retries=)"
    )


def _is_chat_model(value: object) -> bool:
    """Whether it is one, however often it is wrapped."""
    while isinstance(value, RunnableBindingBase):
        value = value.bound
    return isinstance(value, BaseChatModel)


def _from_string(text: str) -> Delegate:
    from langchain_relay.delegates.chat_model import ChatModelDelegate

    provider, colon, model = (part.strip() for part in text.partition(":"))
    if not (provider and colon and model):
        example = f'"openai:{(model if colon else provider) or "gpt-5-mini"}"'
        raise UnknownDelegate(
            f'the delegate {text!r} does not name a provider; write "provider:model", for '
            f"example {example}, or use {_FORMS}"
        )
    if provider == "openai" and not (_installed("langchain") and _installed("langchain_openai")):
        return _openai(text, model)
    if not _installed("langchain"):
        raise MissingExtra(
            f"the delegate {text!r} needs LangChain's init_chat_model: pip install langchain, and "
            f"the provider's package, for example langchain-{_dashed(provider)}"
        )
    return ChatModelDelegate(_chat_model(text, provider, model))


def _chat_model(text: str, provider: str, model: str) -> BaseChatModel:
    from langchain.chat_models import init_chat_model

    try:
        chat: Any = init_chat_model(model, model_provider=provider)
    except ImportError as e:
        raise MissingExtra(
            f"the delegate {text!r} needs a package that is not installed: "
            f"pip install langchain-{_dashed(provider)} ({_first_line(e)})"
        ) from e
    except Exception as e:  # each provider has its own errors for a missing key
        if "Unsupported provider" in str(e):
            # The error lists the providers there are.
            known = set(re.findall(r"\w+", str(e))) - {provider}
            near = "".join(get_close_matches(provider, known, n=1))
            hint = f"; did you mean {f'{near}:{model}'!r}?" if near else ""
            raise UnknownDelegate(
                f"the delegate {text!r} names the provider {provider!r}, which LangChain's "
                f"init_chat_model does not know{hint or '; use ' + _FORMS}"
            ) from e
        raise _not_set_up(text, provider, e) from e
    if not isinstance(chat, BaseChatModel):
        raise UnknownDelegate(f"init_chat_model made no chat model of {text!r}; use {_FORMS}")
    _require_key(text, provider, chat)
    return chat


def _require_key(text: str, provider: str, chat: BaseChatModel) -> None:
    """Refuse a model whose provider would refuse it; any other address may ask for no key.

    Raises:
        UnknownDelegate: there is no key.
    """
    key, variable, address = _KEYLESS.get(provider, ("", "", ""))
    at_home = f"api.{provider.removesuffix('ai')}." in str(getattr(chat, address, ""))
    value = getattr(chat, key, None)
    if variable and at_home and not (value and value.get_secret_value()):
        raise UnknownDelegate(
            f"the delegate {text!r} has no key: set the environment variable {variable}, or pass a "
            f"chat model that has one"
        )


def _openai(text: str, model: str) -> OpenAIDelegate:
    import openai

    from langchain_relay.delegates.openai import OpenAIDelegate

    try:
        return OpenAIDelegate(openai.OpenAI(), model=model)
    except openai.OpenAIError as e:
        raise _not_set_up(text, "openai", e) from e


def _not_set_up(text: str, provider: str, error: Exception) -> UnknownDelegate:
    variable = "OPENAI_API_KEY" if provider == "openai" else f"that {provider} reads"
    return UnknownDelegate(
        f"the delegate {text!r} could not be set up; if its key is missing, set the environment "
        f"variable {variable}, or pass a chat model that has a key ({_first_line(error)})"
    )


def _installed(package: str) -> bool:
    return find_spec(package) is not None


def _dashed(provider: str) -> str:
    return provider.replace("_", "-")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # pydantic says in the first line only how many errors there are.
    said = " ".join(lines[:3]) if "validation error" in "".join(lines[:1]) else "".join(lines[:1])
    return f"{type(error).__name__}: {said[:300]}"
