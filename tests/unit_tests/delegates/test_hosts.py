"""What is known of hosts: the mode, how a flag is written, and how reasoning is turned down."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime

import openai
import pytest
from langchain_openai import ChatOpenAI

from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
from langchain_relay.delegates.continuation import LITERAL_MODES, Repeated
from langchain_relay.delegates.hosts import HOSTS, SERVERS, HostRule, host_rule
from langchain_relay.delegates.reasoning import REASONING, least_reasoning

ANTHROPIC, GEMINI = ("ChatAnthropic",), ("ChatGoogleGenerativeAI",)
OPENAI = ("ChatOpenAI", "BaseChatOpenAI")

KNOWN = [
    (ANTHROPIC, "api.anthropic.com", "claude-3-5-sonnet-20241022", "prefill", None),
    (ANTHROPIC, "api.anthropic.com", "claude-2.1", "prefill", None),
    (ANTHROPIC, "api.anthropic.com", "claude-opus-4-5-20251101", "prefill", None),
    (ANTHROPIC, "", "claude-sonnet-4@20250514", "prefill", None),
    (ANTHROPIC, "api.anthropic.com", "claude-opus-4-6", "instruct", None),
    (ANTHROPIC, "api.anthropic.com", "claude-haiku-5", "instruct", None),
    (OPENAI, "api.deepseek.com/beta", "deepseek-chat", "flag", "prefix"),
    (OPENAI, "api.deepseek.com/v1", "deepseek-chat", "instruct", None),
    (("ChatDeepSeek", "BaseChatOpenAI"), "api.deepseek.com/beta", "x", "flag", "prefix"),
    (("ChatMistralAI",), "", "mistral-small-latest", "flag", "prefix"),
    (OPENAI, "api.mistral.ai/v1", "mistral-small-latest", "flag", "prefix"),
    (OPENAI, "api.moonshot.ai/v1", "kimi-k2", "flag", "partial"),
    (OPENAI, "dashscope-intl.aliyuncs.com/compatible-mode/v1", "qwen-plus", "flag", "partial"),
    (OPENAI, "dashscope.aliyuncs.com/compatible-mode/v1", "glm-5", None, None),
    (("ChatGroq",), "", "llama-3.3-70b-versatile", "prefill", None),
    (("ChatGroq",), "", "openai/gpt-oss-120b", "instruct", None),
    (OPENAI, "openrouter.ai/api/v1", "meta-llama/llama-3.3-70b", "instruct", None),
    (GEMINI, "", "gemini-2.5-pro", "prefill", None),
    (GEMINI, "", "models/gemini-3-flash-preview", "prefill", None),
    (GEMINI, "", "gemini-3.5-flash", "prefill", None),
    (GEMINI, "", "gemini-3.5-flash-lite", "instruct", None),
    (GEMINI, "", "gemini-3.6-flash", "instruct", None),
    (("ChatOllama",), "", "llama3.2", "prefill", None),
    (("ChatLiteLLM",), "", "deepseek/deepseek-chat", "flag", "prefix"),
    (("ChatLiteLLM",), "", "mistral/mistral-small-latest", "flag", "prefix"),
    (("ChatLiteLLM",), "", "anthropic/claude-3-5-haiku-latest", "prefill", None),
    (("ChatLiteLLM",), "", "anthropic/claude-opus-4-6", None, None),
    (("ChatLiteLLM",), "", "gpt-5-mini", None, None),
    (OPENAI, "api.openai.com/v1", "gpt-5-mini", "instruct", None),
    ((), "api.openai.com/v1", "gpt-3.5-turbo-instruct", "completion", None),
    (OPENAI, "my.openai.azure.com/openai", "gpt-5", "instruct", None),
    (OPENAI, "my.cognitiveservices.azure.com/openai/v1", "gpt-5", "instruct", None),
    (OPENAI, "my.services.ai.azure.com/openai/v1", "gpt-5", "instruct", None),
    (OPENAI, "notapi.openai.com.example.org/v1", "gpt-5", None, None),
    (OPENAI, "127.0.0.1:8000/v1", "qwen", None, None),
]


@pytest.mark.parametrize(("classes", "address", "model", "mode", "flag"), KNOWN)
def test_the_first_row_that_fits_decides(classes, address, model, mode, flag):
    rule = host_rule(classes, address, model)
    assert (rule and rule.mode, rule and rule.flag) == (mode, flag)


def test_every_row_has_a_page_a_date_and_a_spelling_where_it_needs_one():
    for rule in (*HOSTS, *SERVERS):
        page_or_trial = r"[a-z.-]+\.[a-z]+/" if rule in HOSTS else r"[a-z.-]+\.[a-z]+/|tried: "
        assert re.match(page_or_trial, rule.source), rule.name
        assert date(2026, 1, 1) <= rule.read <= datetime.now(UTC).date()
        assert (rule.flag is not None) == (rule.mode == "flag"), rule.name
        assert not rule.echoes or rule.mode in LITERAL_MODES
    assert all(rule.classes or rule.addresses for rule in HOSTS)
    assert not any(rule.classes or rule.addresses for rule in SERVERS)


@pytest.mark.parametrize("rule", SERVERS, ids=lambda rule: rule.name)
def test_a_flag_for_a_server_without_an_address_is_spelled_as_its_row_says(rule: HostRule):
    model = ChatOpenAI(model="m", api_key="k", base_url="http://127.0.0.1:8000/v1")
    assert ChatModelDelegate(model, mode=rule.mode).fingerprint["flag"] == rule.flag
    client = openai.OpenAI(api_key="k", base_url="http://127.0.0.1:8000/v1")
    delegate = OpenAIDelegate(client, model="m", mode=rule.mode)
    assert delegate.fingerprint["flag"] == rule.flag


def test_every_row_decides_for_somebody():
    decided = {host_rule(*known[:3]) for known in KNOWN}
    undecided = {rule.name for rule in HOSTS if rule not in decided}
    assert undecided == {
        "Fireworks: documented for its completions API only",
        "Together: not documented",
    }


LEAST = [
    (OPENAI, "api.openai.com/v1", "gpt-5-mini", {"reasoning_effort": "minimal"}),
    (OPENAI, "api.openai.com/v1", "gpt-5-2025-08-07", {"reasoning_effort": "minimal"}),
    (OPENAI, "api.openai.com/v1", "gpt-5-chat-latest", {}),
    (OPENAI, "api.openai.com/v1", "gpt-5-pro", {}),
    (OPENAI, "api.openai.com/v1", "gpt-5.1", {"reasoning_effort": "none"}),
    (OPENAI, "api.openai.com/v1", "gpt-5.4-mini", {"reasoning_effort": "none"}),
    (OPENAI, "api.openai.com/v1", "gpt-5.2-pro", {}),
    (OPENAI, "api.openai.com/v1", "gpt-5.1-codex", {"reasoning_effort": "low"}),
    (OPENAI, "api.openai.com/v1", "o3-mini", {"reasoning_effort": "low"}),
    (OPENAI, "api.openai.com/v1", "gpt-4o", {}),
    (OPENAI, "127.0.0.1:8000/v1", "gpt-5", {}),
    (OPENAI, "api.deepseek.com/beta", "deepseek-chat", {"thinking": {"type": "disabled"}}),
    (OPENAI, "dashscope.aliyuncs.com/v1", "qwen3-max", {"enable_thinking": False}),
    (("ChatGroq",), "", "qwen/qwen3-32b", {"reasoning_effort": "none"}),
    (("ChatGroq",), "", "openai/gpt-oss-20b", {"reasoning_effort": "low"}),
    (GEMINI, "", "gemini-2.5-flash-lite", {"thinking_budget": 0}),
    (GEMINI, "", "gemini-2.5-pro", {"thinking_budget": 128}),
    (GEMINI, "", "gemini-3-flash-preview", {"thinking_level": "minimal"}),
    (GEMINI, "", "gemini-3.6-pro", {"thinking_level": "low"}),
    (GEMINI, "", "gemini-2.0-flash", {}),
    (("ChatOllama",), "", "qwen3", {"reasoning": False}),
]


@pytest.mark.parametrize(("classes", "address", "model", "settings"), LEAST)
def test_reasoning_is_turned_down_as_the_host_wants_it(classes, address, model, settings):
    rule = least_reasoning(classes, address, model)
    assert ({**rule.settings, **rule.body} if rule else {}) == settings


def test_every_row_of_reasoning_has_a_page_and_says_something():
    for rule in REASONING:
        assert "read 20" in rule.source, rule.name
        assert bool(rule.settings) != bool(rule.body), rule.name


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("reply", "new"),
    [
        ("The sea is salty because", " because"),
        ("The sea is salty", ""),
        ("The sea is", "The sea is"),
        (" because of salt", " because of salt"),
        ("The sky", "The sky"),
        ("", ""),
    ],
)
def test_a_reply_that_begins_with_the_draft_loses_it(reply, new, size):
    repeated = Repeated("The sea is salty  ")
    pieces = [reply[i : i + size] for i in range(0, len(reply), size)]
    assert "".join(map(repeated.push, pieces)) + repeated.flush() == new


def test_without_a_draft_a_reply_is_left_alone():
    assert Repeated(" ").push("Hello") == "Hello"


@pytest.mark.parametrize(
    ("reply", "new"),
    [("The sea", "The sea"), ("The sea is salty and blue", ""), ("The sea is so", "The sea is so")],
)
def test_a_repetition_that_the_limit_cut_off_is_no_text(reply, new):
    repeated = Repeated("The sea is salty and blue, and cold. ")
    shown = "".join(map(repeated.push, reply)) + repeated.flush()
    assert shown == new
