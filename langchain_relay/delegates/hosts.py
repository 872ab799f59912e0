"""What is known of hosts: how each lets a draft be continued, and where that was read.

A table, newest knowledge first within a provider; the first row that fits decides. Whoever is in
no row is asked in words (`instruct`). The user's own `mode=` wins over all of it, and a probe says
what a host really does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from langchain_relay.engine.values import Mode

__all__ = ["HOSTS", "SERVERS", "HostRule", "Spelling", "first_fitting", "host_rule"]

Spelling = Literal["prefix", "partial", "continue_final_message"]
"""How `flag` mode is written: a key of the last message, or vLLM's field of the request."""

_READ = date(2026, 11, 21)


@dataclass(frozen=True, slots=True)
class HostRule:
    """One row.

    Attributes:
        name: Provider, and model family where it matters.
        mode: The best mode there.
        source: The page that says so.
        read: When it was read.
        classes: Names of LangChain classes, or of their bases.
        addresses: Ends of host names; a path may follow.
        models: Names of models; empty: all.
        flag: How `flag` mode is written there.
        echoes: The reply begins with the draft again.
    """

    name: str
    mode: Mode
    source: str
    read: date = _READ
    classes: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()
    models: str = ""
    flag: Spelling | None = None
    echoes: bool = False


AZURE = ("openai.azure.com", "cognitiveservices.azure.com", "services.ai.azure.com")
"""Ends of the host names under which Azure serves OpenAI's models."""

_CLAUDE_TO_4_5 = (
    r"claude-(instant|v?[123]\b)|claude-([a-z]+-)?[123]([-.]|$|@)"
    r"|claude-([a-z]+-)?4([-.][0-5](?!\d)|-\d{6,}|@|$|-(?![0-9]))"
)
_GEMINI_TO_3_5 = r"gemini-(1|2|3(?![.-]?[5-9]))|gemini-3\.5-flash(?!-lite)"
_REASONS = r"gpt-oss|deepseek-r1|qwen-?3|qwq"

HOSTS: tuple[HostRule, ...] = (
    HostRule(
        "LiteLLM before Claude up to 4.5, which needs no flag",
        "prefill",
        "docs.litellm.ai/docs/completion/prefix",
        classes=frozenset({"ChatLiteLLM"}),
        models=_CLAUDE_TO_4_5,
    ),
    HostRule(
        "Anthropic, Claude up to 4.5",
        "prefill",
        "docs.claude.com/en/docs/prefill-claudes-response",
        classes=frozenset({"ChatAnthropic"}),
        models=_CLAUDE_TO_4_5,
    ),
    HostRule(
        "Anthropic, Claude from 4.6 on",
        "instruct",
        "platform.claude.com/docs/en/about-claude/models/migration-guide",
        classes=frozenset({"ChatAnthropic"}),
        addresses=("api.anthropic.com",),
    ),
    HostRule(
        "DeepSeek, beta address",
        "flag",
        "api-docs.deepseek.com/guides/chat_prefix_completion",
        addresses=("api.deepseek.com/beta",),
        flag="prefix",
    ),
    HostRule(
        "DeepSeek",
        "instruct",
        "api-docs.deepseek.com/guides/chat_prefix_completion",
        classes=frozenset({"ChatDeepSeek"}),
        addresses=("api.deepseek.com",),
    ),
    HostRule(
        "Mistral",
        "flag",
        "docs.mistral.ai/guides/prefix",
        classes=frozenset({"ChatMistralAI"}),
        addresses=("api.mistral.ai",),
        flag="prefix",
        echoes=True,
    ),
    HostRule(
        "Kimi",
        "flag",
        "platform.kimi.ai/docs/guide/use-partial-mode-feature-of-kimi-api",
        classes=frozenset({"MoonshotChat"}),
        addresses=("api.moonshot.ai", "api.moonshot.cn"),
        flag="partial",
    ),
    HostRule(
        "Alibaba Model Studio, Qwen",
        "flag",
        "alibabacloud.com/help/en/model-studio/user-guide/partial-mode",
        addresses=("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
        models=r"qwen",
        flag="partial",
    ),
    HostRule(
        "Groq, models that do not reason",
        "prefill",
        "console.groq.com/docs/prefilling",
        classes=frozenset({"ChatGroq"}),
        addresses=("api.groq.com",),
        models=rf"^(?!.*({_REASONS}))",
    ),
    HostRule(
        "Groq, models that reason",
        "instruct",
        "console.groq.com/docs/prefilling",
        classes=frozenset({"ChatGroq"}),
        addresses=("api.groq.com",),
    ),
    HostRule(
        "OpenRouter: it depends on the upstream, which changes",
        "instruct",
        "openrouter.ai/docs/api_reference/overview",
        classes=frozenset({"ChatOpenRouter"}),
        addresses=("openrouter.ai",),
    ),
    HostRule(
        "Fireworks: documented for its completions API only",
        "instruct",
        "docs.fireworks.ai/guides/completions-api",
        classes=frozenset({"ChatFireworks"}),
        addresses=("api.fireworks.ai",),
    ),
    HostRule(
        "Together: not documented",
        "instruct",
        "docs.together.ai/reference/chat-completions",
        classes=frozenset({"ChatTogether"}),
        addresses=("api.together.xyz", "api.together.ai"),
    ),
    HostRule(
        "Gemini up to 3.5 Flash",
        "prefill",
        "ai.google.dev/gemini-api/docs/latest-model",
        classes=frozenset({"ChatGoogleGenerativeAI", "ChatVertexAI"}),
        models=_GEMINI_TO_3_5,
    ),
    HostRule(
        "Gemini from 3.5 Flash Lite and 3.6 on",
        "instruct",
        "ai.google.dev/gemini-api/docs/latest-model",
        classes=frozenset({"ChatGoogleGenerativeAI", "ChatVertexAI"}),
    ),
    HostRule(
        "Ollama",
        "prefill",
        "github.com/ollama/ollama/issues/6778",
        classes=frozenset({"ChatOllama"}),
    ),
    HostRule(
        "LiteLLM before Mistral",
        "flag",
        "docs.litellm.ai/docs/completion/prefix",
        classes=frozenset({"ChatLiteLLM"}),
        models=r"^mistral/",
        flag="prefix",
        echoes=True,
    ),
    HostRule(
        "LiteLLM before DeepSeek",
        "flag",
        "docs.litellm.ai/docs/completion/prefix",
        classes=frozenset({"ChatLiteLLM"}),
        models=r"^deepseek/",
        flag="prefix",
    ),
    HostRule(
        "OpenAI, legacy completions",
        "completion",
        "developers.openai.com/api/docs/api-reference/completions",
        addresses=("api.openai.com",),
        models=r"^(gpt-3\.5-turbo-instruct|davinci-002|babbage-002)",
    ),
    HostRule(
        "OpenAI, chat and Responses",
        "instruct",
        "developers.openai.com/api/docs/api-reference/chat",
        addresses=("api.openai.com", *AZURE),
    ),
)
"""The table."""

SERVERS: tuple[HostRule, ...] = (
    HostRule(
        "vLLM",
        "flag",
        "docs.vllm.ai/en/latest/serving/openai_compatible_server.html",
        flag="continue_final_message",
    ),
    HostRule(
        "SGLang",
        "flag",
        "github.com/sgl-project/sglang/pull/4226",
        flag="continue_final_message",
    ),
    HostRule(
        "llama.cpp's llama-server",
        "flag",
        "tried: make test-servers, build 11434",
        flag="continue_final_message",
    ),
)
"""Servers that anybody runs anywhere: they have no address of their own, so nothing fits by itself.

The user says `mode="flag"`, which is spelled as here where nothing is known of the host, or probes.
llama-server was tried (build 11434): in `prefill` mode it continues, too, but its reply repeats the
draft, which only a probe finds out.
"""


_OPENAI_HOSTS = (".openai.com", *(f".{end}" for end in AZURE))
_OPENAI_MODELS = re.compile(r"(openai/)?(gpt-[3-9]|chatgpt|o[1-9])", re.IGNORECASE)


def is_openais_host(base_url: str | None) -> bool:
    """Whether OpenAI or Azure answers there."""
    return f".{urlsplit(base_url or '').hostname}".endswith(_OPENAI_HOSTS)


def is_openais(base_url: str | None, model: str) -> bool:
    """Whether a model of OpenAI's answers, at its address or behind somebody's gateway.

    These want `max_completion_tokens`; servers of other makers know `max_tokens`.
    """
    return is_openais_host(base_url) or bool(_OPENAI_MODELS.match(model))


def host_rule(classes: Iterable[str], address: str, model: str) -> HostRule | None:
    """The first row that fits; `None`: nothing is known."""
    return first_fitting(HOSTS, classes, address, model)


class Row(Protocol):
    """A row of a table about hosts: a class or an address, and names of models."""

    @property
    def classes(self) -> frozenset[str]: ...
    @property
    def addresses(self) -> tuple[str, ...]: ...
    @property
    def models(self) -> str: ...


R = TypeVar("R", bound=Row)


def first_fitting(rows: Iterable[R], classes: Iterable[str], address: str, model: str) -> R | None:
    """The first row that is about a model; `None`: there is none.

    Args:
        rows: The table.
        classes: The names of the chat model's class and bases.
        address: Host and path of its base URL, without the scheme.
        model: Its name.
    """
    known = frozenset(classes)
    for row in rows:
        named = not row.classes.isdisjoint(known) or _ends_in(address, row.addresses)
        if named and re.search(row.models, model, re.IGNORECASE):
            return row
    return None


def _ends_in(address: str, ends: tuple[str, ...]) -> bool:
    """Whether the host of `address` ends in one of `ends`, and its path begins as theirs does."""
    host, _, path = address.partition("/")
    host = host.rpartition("@")[2].partition(":")[0]
    for end in ends:
        wanted_host, _, wanted_path = end.partition("/")
        if f".{host}".endswith(f".{wanted_host}") and f"{path}/".startswith(wanted_path):
            return True
    return False
