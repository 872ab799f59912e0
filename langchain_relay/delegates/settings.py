"""What tells one hosted model from another of its name: plain data for a cache key, no secrets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

from langchain_core.language_models import BaseChatModel
from pydantic import BaseModel

__all__ = ["settings_of", "without_secrets"]

_SETTINGS = (
    *("temperature", "top_p", "top_k", "min_p", "typical_p", "seed", "random_seed", "n", "stop"),
    *("frequency_penalty", "presence_penalty", "repetition_penalty", "repeat_penalty"),
    *("repeat_last_n", "mirostat", "mirostat_eta", "mirostat_tau", "tfs_z", "num_ctx", "format"),
    *("reasoning", "reasoning_effort", "reasoning_format", "thinking", "thinking_budget"),
    *("thinking_level", "thinking_config", "include_thoughts", "effort", "output_config"),
    *("logit_bias", "verbosity", "service_tier", "truncation", "use_responses_api", "betas"),
    *("safe_mode", "safety_settings", "cached_content", "custom_llm_provider", "organization"),
    *("model_kwargs", "extra_body", "default_headers", "default_query", "additional_headers"),
    *("extra_headers", "disabled_params", "context_management", "mcp_servers"),
)
"""Fields that may change what a model writes. A list of what is kept, since most other fields hold
clients, keys or callbacks."""

_SECRET = re.compile(
    r"auth|secret|passw|credential|cookie|bearer|signature|(^|[-_.])(api)?-?_?keys?$|"
    r"(^|[-_.])token$|apikey|^sig$",
    re.IGNORECASE,
)
"""Names of headers, parameters and fields whose values are left out."""


def settings_of(chat: BaseChatModel) -> dict[str, Any]:
    """What tells a chat model from another of its name: sampling, extra fields, headers; no key."""
    values = {name: getattr(chat, name, None) for name in _SETTINGS}
    return {name: without_secrets(value) for name, value in values.items() if value is not None}


def without_secrets(value: Any) -> Any:
    """`value` as plain data, with the values of fields that are named like secrets left out."""
    if isinstance(value, Mapping):
        return {
            str(name): "(left out)" if _SECRET.search(str(name)) else without_secrets(inner)
            for name, inner in sorted(value.items(), key=lambda item: str(item[0]))
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [without_secrets(inner) for inner in value]
    if isinstance(value, BaseModel):
        return without_secrets(value.model_dump(exclude_none=True))
    if isinstance(value, Enum):
        return value.name
    known = value is None or isinstance(value, str | int | float | bool)
    return value if known else type(value).__name__
