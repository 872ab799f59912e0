"""How each host is told to reason as little as it can: a short span leaves no room for it.

Hidden reasoning counts as output, uses up a small limit and leaves an empty span. A setting of the
user's own is never touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_relay.delegates.hosts import AZURE, first_fitting

__all__ = ["REASONING", "ReasoningRule", "least_reasoning"]

_OPENAI = ("api.openai.com", *AZURE)
_OPENAI_PAGE = "developers.openai.com/api/docs/guides/reasoning, read 2026-11-21"
_GEMINI = frozenset({"ChatGoogleGenerativeAI", "ChatVertexAI"})
_GEMINI_PAGE = "ai.google.dev/gemini-api/docs/thinking, read 2026-11-21"
_LITELLM = frozenset({"ChatLiteLLM"})
_DEEPSEEK_PAGE = "api-docs.deepseek.com/guides/thinking_mode, read 2026-11-21"
_HANDED_ON = "; litellm 1.106 hands it on, as its requests at a test server show"
_GROQ_PAGE = "console.groq.com/docs/reasoning, read 2026-11-21"


@dataclass(frozen=True, slots=True)
class ReasoningRule:
    """One row.

    Attributes:
        name: Provider and models.
        source: The page that says so, and when it was read.
        models: Names of models; empty: all.
        classes: Names of LangChain classes, or of their bases.
        addresses: Ends of host names.
        settings: Fields of the chat model, and parameters of an openai client.
        body: Further fields of the request, for who takes an `extra_body`.
    """

    name: str
    source: str
    models: str = ""
    classes: frozenset[str] = frozenset()
    addresses: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)


REASONING: tuple[ReasoningRule, ...] = (
    ReasoningRule(
        "OpenAI, GPT-5 Codex",
        _OPENAI_PAGE,
        models=r"^gpt-5(\.\d+)?-codex",
        addresses=_OPENAI,
        settings={"reasoning_effort": "low"},
    ),
    ReasoningRule(
        "OpenAI, GPT-5.1 and later",
        _OPENAI_PAGE,
        models=r"^gpt-5\.\d+(?!.*(-pro|-chat))",
        addresses=_OPENAI,
        settings={"reasoning_effort": "none"},
    ),
    ReasoningRule(
        "OpenAI, GPT-5",
        _OPENAI_PAGE,
        models=r"^gpt-5(-mini|-nano)?(-\d{4}-\d\d-\d\d)?$",
        addresses=_OPENAI,
        settings={"reasoning_effort": "minimal"},
    ),
    ReasoningRule(
        "OpenAI, o series",
        _OPENAI_PAGE,
        models=r"^o[134](-mini)?(-\d{4}-\d\d-\d\d)?$",
        addresses=_OPENAI,
        settings={"reasoning_effort": "low"},
    ),
    ReasoningRule(
        "LiteLLM before GPT-5.1 and later",
        _OPENAI_PAGE + _HANDED_ON,
        models=r"^(openai/)?gpt-5\.\d+(?!.*(-pro|-chat|-codex))",
        classes=_LITELLM,
        settings={"reasoning_effort": "none"},
    ),
    ReasoningRule(
        "LiteLLM before GPT-5",
        _OPENAI_PAGE + _HANDED_ON,
        models=r"^(openai/)?gpt-5(-mini|-nano)?(-\d{4}-\d\d-\d\d)?$",
        classes=_LITELLM,
        settings={"reasoning_effort": "minimal"},
    ),
    ReasoningRule(
        "LiteLLM before the o series",
        _OPENAI_PAGE + _HANDED_ON,
        models=r"^(openai/)?o[134](-mini)?(-\d{4}-\d\d-\d\d)?$",
        classes=_LITELLM,
        settings={"reasoning_effort": "low"},
    ),
    ReasoningRule(
        "LiteLLM before DeepSeek",
        _DEEPSEEK_PAGE + _HANDED_ON,
        models=r"^deepseek/",
        classes=_LITELLM,
        body={"thinking": {"type": "disabled"}},
    ),
    ReasoningRule(
        "DeepSeek",
        _DEEPSEEK_PAGE,
        classes=frozenset({"ChatDeepSeek"}),
        addresses=("api.deepseek.com",),
        body={"thinking": {"type": "disabled"}},
    ),
    ReasoningRule(
        "Alibaba Model Studio, hybrid Qwen",
        "help.aliyun.com/en/model-studio/deep-thinking, read 2026-11-21",
        models=r"qwen-?3|qwen-(plus|flash|turbo)",
        addresses=("dashscope.aliyuncs.com", "dashscope-intl.aliyuncs.com"),
        body={"enable_thinking": False},
    ),
    ReasoningRule(
        "OpenRouter",
        "openrouter.ai/docs/guides/best-practices/reasoning-tokens, read 2026-11-21",
        classes=frozenset({"ChatOpenRouter"}),
        addresses=("openrouter.ai",),
        body={"reasoning": {"effort": "none"}},
    ),
    ReasoningRule(
        "Groq, Qwen 3",
        _GROQ_PAGE,
        models=r"qwen-?3",
        classes=frozenset({"ChatGroq"}),
        addresses=("api.groq.com",),
        settings={"reasoning_effort": "none"},
    ),
    ReasoningRule(
        "Groq, gpt-oss",
        _GROQ_PAGE,
        models=r"gpt-oss",
        classes=frozenset({"ChatGroq"}),
        addresses=("api.groq.com",),
        settings={"reasoning_effort": "low"},
    ),
    ReasoningRule(
        "Gemini 2.5 Flash",
        _GEMINI_PAGE,
        models=r"gemini-2\.5-flash",
        classes=_GEMINI,
        settings={"thinking_budget": 0},
    ),
    ReasoningRule(
        "Gemini 2.5 Pro: the least it takes",
        _GEMINI_PAGE,
        models=r"gemini-2\.5-pro",
        classes=_GEMINI,
        settings={"thinking_budget": 128},
    ),
    ReasoningRule(
        "Gemini 3 Flash and later",
        _GEMINI_PAGE,
        models=r"gemini-[3-9].*flash",
        classes=_GEMINI,
        settings={"thinking_level": "minimal"},
    ),
    ReasoningRule(
        "Gemini 3 Pro and later: it cannot be turned off",
        _GEMINI_PAGE,
        models=r"gemini-[3-9].*pro",
        classes=_GEMINI,
        settings={"thinking_level": "low"},
    ),
    ReasoningRule(
        "Ollama",
        "docs.ollama.com/capabilities/thinking, read 2026-11-21",
        classes=frozenset({"ChatOllama"}),
        settings={"reasoning": False},
    ),
)
"""The table; the first row that fits decides."""


def least_reasoning(classes: Iterable[str], address: str, model: str) -> ReasoningRule | None:
    """The first row that fits; `None`: this model does not reason, or nothing is known of it.

    Args:
        classes: The names of the chat model's class and bases.
        address: Host and path of its base URL, without the scheme.
        model: Its name.
    """
    return first_fitting(REASONING, classes, address, model)
