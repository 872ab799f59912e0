"""The contract of every client class: the request that leaves for one attempt, to the last field.

Hosts have their real names here, so that the tables of hosts and of reasoning decide as they do for
users; `test_contracts.py` makes those names the fault server's address. Nothing is imported before
a contract is made: LiteLLM lives in an environment of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from langchain_core.messages import HumanMessage, SystemMessage

from langchain_relay.delegates import ChatModelDelegate, OpenAIDelegate
from langchain_relay.delegates.caching import cache_key
from langchain_relay.delegates.continuation import continue_messages
from langchain_relay.engine.values import Attempt, Delegate, Mode

At = Callable[[str], str]
"""From a host's name to the address of the fault server under that name."""

N = 16
SYSTEM, QUESTION = "Be brief.", "Why is the sky blue?"
MESSAGES = (SystemMessage(SYSTEM), HumanMessage(QUESTION))
SHOWN = "The sky is blue because"
DRAFT = f"{SHOWN} "
KEY = "sk-test"
REPORTED = "reported-2026-11-21"

ATTEMPT = Attempt(MESSAGES, DRAFT, N)


@dataclass(frozen=True)
class Contract:
    """One way to reach a host.

    Attributes:
        name: Class, host and mode.
        make: The delegate, as a user makes it.
        mode: The mode it must have.
        path: Where the request goes.
        body: The whole body.
        echoes: The host's replies begin with the draft.
        reports: Whose name of the model comes back; `None`: the one that was asked for.
        waits: A `Retry-After` gets through.
        litellm: It needs LiteLLM, whose environment has an older `openai`.
        env: Variables the class reads its address and key from.
    """

    name: str
    make: Callable[[At], Delegate]
    mode: Mode
    path: str
    body: Mapping[str, Any]
    echoes: bool = False
    reports: str = REPORTED
    waits: bool = True
    litellm: bool = False
    env: Callable[[At], Mapping[str, str]] = field(default=lambda at: {})


# --- what is sent -------------------------------------------------------------------------------


def asked(mode: Mode) -> str:
    """The last user message in the modes that put the draft into it."""
    return continue_messages(MESSAGES, DRAFT, mode)[-1].text


def chat(mode: Mode = "instruct", **mark: Any) -> list[dict[str, Any]]:
    """The conversation as messages of OpenAI's chat API; `mark` is on the draft."""
    if mode in {"instruct", "handoff"}:
        return [said("system", SYSTEM), said("user", asked(mode))]
    return [said("system", SYSTEM), said("user", QUESTION), {**said("assistant", SHOWN), **mark}]


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def openai_chat(model: str | None, limit: str, messages: list[dict[str, Any]], **more: Any) -> Any:
    """A body of OpenAI's chat API."""
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": model, "messages": messages, limit: N, **usage, **more}


def gemini(contents: list[dict[str, Any]], **config: Any) -> Any:
    """A body of Gemini's API."""
    return {
        "contents": contents,
        "systemInstruction": {"parts": [{"text": SYSTEM}]},
        "safetySettings": [],
        "generationConfig": {"candidateCount": 1, "maxOutputTokens": N, **config},
    }


def turn(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "parts": [{"text": text}]}


def groq(model: str, messages: list[dict[str, Any]], effort: str | None) -> Any:
    """A body of Groq's API; the class sends its settings even where there are none."""
    nothing = dict.fromkeys(("reasoning_format", "stop"))
    settings = {"n": 1, "service_tier": "on_demand", "temperature": 0.7, "stream": True}
    sent = {"model": model, "messages": messages, "max_tokens": N}
    return {**sent, **settings, **nothing, "reasoning_effort": effort}


def mistral(messages: list[dict[str, Any]]) -> Any:
    """A body of Mistral's API as `ChatMistralAI` writes it."""
    settings = {"temperature": 0.7, "top_p": 1, "stream": True}
    return {"model": MISTRAL, "messages": messages, "max_tokens": N, **settings}


ANTHROPIC = {"max_tokens": N, "stream": True, "system": SYSTEM}
CONTINUE = {"continue_final_message": True, "add_generation_prompt": False}
MISTRAL, CLAUDE = "mistral-small-latest", "claude-haiku-4-5"
PREFILLED = [said("user", QUESTION), said("assistant", SHOWN)]
ROUTED = {"prompt_cache_key": cache_key(MESSAGES)}
RESPONSES = {"max_output_tokens": N, "stream": True, "reasoning": {"effort": "minimal"}}

# --- LangChain classes --------------------------------------------------------------------------


def chat_openai(at: At, host: str, model: str, path: str = "/v1", **options: Any) -> Any:
    from langchain_openai import ChatOpenAI

    return ChatOpenAI(model=model, base_url=at(host) + path, api_key=KEY, **options)


def azure(at: At) -> Any:
    from langchain_openai import AzureChatOpenAI

    return AzureChatOpenAI(
        azure_deployment="gpt-5-mini",
        api_version="2025-04-01-preview",
        azure_endpoint=at("mine.openai.azure.com"),
        api_key=KEY,
    )


def anthropic(at: At, model: str) -> Any:
    from langchain_anthropic import ChatAnthropic

    return ChatAnthropic(model=model, base_url=at("api.anthropic.com"), api_key=KEY)


def mistralai(at: At) -> Any:
    from langchain_mistralai import ChatMistralAI

    return ChatMistralAI(model=MISTRAL, endpoint=at("api.mistral.ai") + "/mistral/v1", api_key=KEY)


def deepseek(at: At, path: str) -> Any:
    from langchain_deepseek import ChatDeepSeek

    address: Any = {"base_url": at("api.deepseek.com") + path, "api_key": KEY}
    return ChatDeepSeek(model="deepseek-chat", **address)


def chat_groq(at: At, model: str) -> Any:
    from langchain_groq import ChatGroq

    address: Any = {"base_url": at("api.groq.com"), "api_key": KEY}
    return ChatGroq(model=model, **address)


def ollama(at: At) -> Any:
    from langchain_ollama import ChatOllama

    return ChatOllama(model="llama3.2", base_url=at("localhost"))


def google(at: At, model: str) -> Any:
    from langchain_google_genai import ChatGoogleGenerativeAI

    base_url = at("generativelanguage.googleapis.com")
    return ChatGoogleGenerativeAI(model=model, base_url=base_url, api_key=KEY)


CHAT_OPENAI = [
    Contract(
        "ChatOpenAI, OpenAI",
        lambda at: ChatModelDelegate(chat_openai(at, "api.openai.com", "gpt-5-mini")),
        "instruct",
        "/v1/chat/completions",
        openai_chat(
            "gpt-5-mini", "max_completion_tokens", chat(), reasoning_effort="minimal", **ROUTED
        ),
    ),
    Contract(
        "ChatOpenAI, handoff",
        lambda at: ChatModelDelegate(
            chat_openai(at, "api.openai.com", "gpt-4o", max_tokens=900), mode="handoff"
        ),
        "handoff",
        "/v1/chat/completions",
        openai_chat("gpt-4o", "max_completion_tokens", chat("handoff"), **ROUTED),
    ),
    Contract(
        "ChatOpenAI, Responses",
        lambda at: ChatModelDelegate(
            chat_openai(at, "api.openai.com", "gpt-5-mini", use_responses_api=True)
        ),
        "instruct",
        "/v1/responses",
        {
            "model": "gpt-5-mini",
            "input": [{"type": "message", **message} for message in chat()],
            **RESPONSES,
            **ROUTED,
        },
    ),
    Contract(
        "AzureChatOpenAI",
        lambda at: ChatModelDelegate(azure(at)),
        "instruct",
        "/openai/deployments/gpt-5-mini/chat/completions",
        openai_chat(None, "max_completion_tokens", chat(), reasoning_effort="minimal"),
    ),
    Contract(
        "ChatOpenAI, llama-server",
        lambda at: ChatModelDelegate(chat_openai(at, "localhost", "qwen"), mode="prefill"),
        "prefill",
        "/v1/chat/completions",
        openai_chat("qwen", "max_tokens", chat("prefill")),
    ),
    Contract(
        "ChatOpenAI, vLLM",
        lambda at: ChatModelDelegate(
            chat_openai(at, "localhost", "qwen", extra_body={"top_k": 20}), mode="flag"
        ),
        "flag",
        "/v1/chat/completions",
        openai_chat("qwen", "max_tokens", chat("flag"), top_k=20, **CONTINUE),
    ),
    Contract(
        "ChatOpenAI, Kimi",
        lambda at: ChatModelDelegate(chat_openai(at, "api.moonshot.ai", "kimi-k2")),
        "flag",
        "/v1/chat/completions",
        openai_chat("kimi-k2", "max_tokens", chat("flag", partial=True)),
    ),
    Contract(
        "ChatOpenAI, Alibaba",
        lambda at: ChatModelDelegate(
            chat_openai(at, "dashscope-intl.aliyuncs.com", "qwen-plus", "/compatible-mode/v1")
        ),
        "flag",
        "/compatible-mode/v1/chat/completions",
        openai_chat(
            "qwen-plus",
            "max_tokens",
            chat("flag", partial=True),
            enable_thinking=False,
        ),
    ),
    Contract(
        "ChatOpenAI, Mistral",
        lambda at: ChatModelDelegate(chat_openai(at, "api.mistral.ai", MISTRAL)),
        "flag",
        "/v1/chat/completions",
        openai_chat(MISTRAL, "max_tokens", chat("flag", prefix=True)),
        echoes=True,
    ),
    Contract(
        "ChatOpenAI, OpenRouter",
        lambda at: ChatModelDelegate(
            chat_openai(at, "openrouter.ai", "meta-llama/llama-3.3-70b", "/api/v1")
        ),
        "instruct",
        "/api/v1/chat/completions",
        openai_chat(
            "meta-llama/llama-3.3-70b",
            "max_tokens",
            chat(),
            reasoning={"effort": "none"},
        ),
    ),
]

OTHERS = [
    Contract(
        "ChatAnthropic, up to 4.5",
        lambda at: ChatModelDelegate(anthropic(at, CLAUDE)),
        "prefill",
        "/v1/messages",
        {"model": CLAUDE, "messages": PREFILLED, **ANTHROPIC},
    ),
    Contract(
        "ChatAnthropic, from 4.6 on",
        lambda at: ChatModelDelegate(anthropic(at, "claude-opus-4-6")),
        "instruct",
        "/v1/messages",
        {"model": "claude-opus-4-6", "messages": [chat()[1]], **ANTHROPIC},
    ),
    Contract(
        "ChatMistralAI",
        lambda at: ChatModelDelegate(mistralai(at)),
        "flag",
        "/mistral/v1/chat/completions",
        mistral(chat("flag", prefix=True)),
        echoes=True,
    ),
    Contract(
        "ChatMistralAI, vLLM",
        lambda at: ChatModelDelegate(mistralai(at), mode="flag", flag="continue_final_message"),
        "flag",
        "/mistral/v1/chat/completions",
        {**mistral(chat("flag")), **CONTINUE},
        echoes=True,
    ),
    Contract(
        "ChatDeepSeek, beta",
        lambda at: ChatModelDelegate(deepseek(at, "/beta")),
        "flag",
        "/beta/chat/completions",
        openai_chat(
            "deepseek-chat",
            "max_tokens",
            chat("flag", prefix=True),
            thinking={"type": "disabled"},
        ),
    ),
    Contract(
        "ChatDeepSeek",
        lambda at: ChatModelDelegate(deepseek(at, "/v1")),
        "instruct",
        "/v1/chat/completions",
        openai_chat("deepseek-chat", "max_tokens", chat(), thinking={"type": "disabled"}),
    ),
    Contract(
        "ChatGroq",
        lambda at: ChatModelDelegate(chat_groq(at, "llama-3.3-70b-versatile")),
        "prefill",
        "/openai/v1/chat/completions",
        groq("llama-3.3-70b-versatile", chat("prefill"), None),
        reports="llama-3.3-70b-versatile",
    ),
    Contract(
        "ChatGroq, models that reason",
        lambda at: ChatModelDelegate(chat_groq(at, "openai/gpt-oss-120b")),
        "instruct",
        "/openai/v1/chat/completions",
        groq("openai/gpt-oss-120b", chat(), "low"),
        reports="openai/gpt-oss-120b",
    ),
    Contract(
        "ChatOllama",
        lambda at: ChatModelDelegate(ollama(at)),
        "prefill",
        "/api/chat",
        {
            "model": "llama3.2",
            "messages": chat("prefill"),
            "options": {"num_predict": N},
            "stream": True,
            "think": False,
            "tools": [],
        },
        waits=False,  # the package keeps no headers
    ),
    Contract(
        "ChatGoogleGenerativeAI, up to 3.5 Flash",
        lambda at: ChatModelDelegate(google(at, "gemini-2.5-flash")),
        "prefill",
        "/v1beta/models/gemini-2.5-flash:streamGenerateContent",
        gemini(
            [turn("user", QUESTION), turn("model", SHOWN)],
            temperature=0.7,
            thinkingConfig={"thinking_budget": 0},
        ),
    ),
    Contract(
        "ChatGoogleGenerativeAI, from 3.6 on",
        lambda at: ChatModelDelegate(google(at, "gemini-3.6-flash")),
        "instruct",
        "/v1beta/models/gemini-3.6-flash:streamGenerateContent",
        gemini(
            [turn("user", asked("instruct"))],
            thinkingConfig={"thinking_level": "MINIMAL"},
        ),
    ),
]

# --- openai clients -----------------------------------------------------------------------------


def client(at: At, host: str, path: str = "/v1", *, sync: bool = True) -> Any:
    import openai

    flavour = openai.OpenAI if sync else openai.AsyncOpenAI
    return flavour(base_url=at(host) + path, api_key=KEY)


def azure_client(host: str) -> Callable[[At], Delegate]:
    return lambda at: _azure_client(at, host)


def _azure_client(at: At, host: str) -> Delegate:
    import openai

    settings: dict[str, Any] = {"api_key": KEY, "api_version": "1", "azure_endpoint": at(host)}
    both = openai.AzureOpenAI(**settings), openai.AsyncAzureOpenAI(**settings)
    return OpenAIDelegate(both[0], async_client=both[1], model="gpt-5-mini")


CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def completions(model: str, prompt: str) -> Any:
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": model, "prompt": prompt, "max_tokens": N, **usage}


RAW = [
    Contract(
        "OpenAI client",
        lambda at: OpenAIDelegate(client(at, "api.openai.com"), model="gpt-5-mini"),
        "instruct",
        "/v1/chat/completions",
        openai_chat(
            "gpt-5-mini", "max_completion_tokens", chat(), reasoning_effort="minimal", **ROUTED
        ),
    ),
    Contract(
        "AsyncOpenAI client",
        lambda at: OpenAIDelegate(client(at, "api.openai.com", sync=False), model="gpt-4o"),
        "instruct",
        "/v1/chat/completions",
        openai_chat("gpt-4o", "max_completion_tokens", chat(), **ROUTED),
    ),
    Contract(
        "OpenAI client, vLLM",
        lambda at: OpenAIDelegate(client(at, "localhost"), model="qwen", mode="flag"),
        "flag",
        "/v1/chat/completions",
        openai_chat("qwen", "max_tokens", chat("flag"), **CONTINUE),
    ),
    Contract(
        "OpenAI client, Kimi",
        lambda at: OpenAIDelegate(client(at, "api.moonshot.ai"), model="kimi-k2"),
        "flag",
        "/v1/chat/completions",
        openai_chat("kimi-k2", "max_tokens", chat("flag", partial=True)),
    ),
    Contract(
        "OpenAI client, DeepSeek beta",
        lambda at: OpenAIDelegate(client(at, "api.deepseek.com", "/beta"), model="deepseek-chat"),
        "flag",
        "/beta/chat/completions",
        openai_chat(
            "deepseek-chat",
            "max_tokens",
            chat("flag", prefix=True),
            thinking={"type": "disabled"},
        ),
    ),
    Contract(
        "OpenAI client, Mistral",
        lambda at: OpenAIDelegate(client(at, "api.mistral.ai"), model=MISTRAL),
        "flag",
        "/v1/chat/completions",
        openai_chat(MISTRAL, "max_tokens", chat("flag", prefix=True)),
        echoes=True,
    ),
    Contract(
        "OpenAI client, completions",
        lambda at: OpenAIDelegate(client(at, "api.openai.com"), model="gpt-3.5-turbo-instruct"),
        "completion",
        "/v1/completions",
        completions(
            "gpt-3.5-turbo-instruct", f"System: {SYSTEM}\n\nUser: {QUESTION}\n\nAssistant: {SHOWN}"
        ),
    ),
    Contract(
        "OpenAI client, completions with a chat template",
        lambda at: OpenAIDelegate(
            client(at, "localhost"), model="qwen", api="completions", prompt=CHATML
        ),
        "completion",
        "/v1/completions",
        completions("qwen", f"<|system|>{SYSTEM}\n<|user|>{QUESTION}\n<|assistant|>{SHOWN}"),
    ),
    Contract(
        "OpenAI client, Responses",
        lambda at: OpenAIDelegate(
            client(at, "api.openai.com"), model="gpt-5-mini", api="responses"
        ),
        "instruct",
        "/v1/responses",
        {"model": "gpt-5-mini", "input": chat(), **RESPONSES, **ROUTED},
    ),
    Contract(
        "AsyncOpenAI client, Responses with a prefill",
        lambda at: OpenAIDelegate(
            client(at, "localhost", sync=False), model="qwen", api="responses", mode="prefill"
        ),
        "prefill",
        "/v1/responses",
        {"model": "qwen", "input": chat("prefill"), "max_output_tokens": N, "stream": True},
    ),
    *(
        Contract(
            f"AzureOpenAI client, {host}",
            azure_client(host),
            "instruct",
            "/openai/deployments/gpt-5-mini/chat/completions",
            openai_chat("gpt-5-mini", "max_completion_tokens", chat(), reasoning_effort="minimal"),
        )
        for host in (
            "mine.openai.azure.com",
            "mine.cognitiveservices.azure.com",
            "mine.services.ai.azure.com",
        )
    ),
]

# --- strings ------------------------------------------------------------------------------------


def named(text: str) -> Callable[[At], Delegate]:
    def make(at: At) -> Delegate:
        from langchain_relay.delegates.resolve import resolve_delegate

        return resolve_delegate(text)

    return make


def string(
    text: str, like: Contract, address: str, host: str, key: str, path: str = ""
) -> Contract:
    """The contract of a string, whose class reads address and key from variables."""
    return Contract(
        f"{text!r}",
        named(text),
        like.mode,
        like.path,
        like.body,
        echoes=like.echoes,
        reports=like.reports,
        waits=like.waits,
        env=lambda at: {address: at(host) + path, key: KEY},
    )


def _like(name: str) -> Contract:
    return next(known for known in (*CHAT_OPENAI, *OTHERS) if known.name == name)


STRINGS = [
    string(
        "openai:gpt-5-mini",
        _like("ChatOpenAI, OpenAI"),
        *("OPENAI_API_BASE", "api.openai.com", "OPENAI_API_KEY", "/v1"),
    ),
    string(
        f"anthropic:{CLAUDE}",
        _like("ChatAnthropic, up to 4.5"),
        *("ANTHROPIC_BASE_URL", "api.anthropic.com", "ANTHROPIC_API_KEY"),
    ),
    string(
        "ollama:llama3.2",
        _like("ChatOllama"),
        *("OLLAMA_HOST", "localhost", "OLLAMA_API_KEY"),
    ),
    string(
        f"mistralai:{MISTRAL}",
        _like("ChatMistralAI"),
        *("MISTRAL_BASE_URL", "api.mistral.ai", "MISTRAL_API_KEY", "/mistral/v1"),
    ),
    string(
        "google_genai:gemini-2.5-flash",
        _like("ChatGoogleGenerativeAI, up to 3.5 Flash"),
        "GOOGLE_GEMINI_BASE_URL",
        *("generativelanguage.googleapis.com", "GOOGLE_API_KEY"),
    ),
    string(
        "groq:llama-3.3-70b-versatile",
        _like("ChatGroq"),
        *("GROQ_API_BASE", "api.groq.com", "GROQ_API_KEY"),
    ),
    string(
        "deepseek:deepseek-chat",
        _like("ChatDeepSeek, beta"),
        *("DEEPSEEK_API_BASE", "api.deepseek.com", "DEEPSEEK_API_KEY", "/beta"),
    ),
]

# --- LiteLLM ------------------------------------------------------------------------------------


def litellm(at: At, model: str, host: str, path: str = "") -> Any:
    from langchain_litellm import ChatLiteLLM

    return ChatLiteLLM(model=model, api_base=at(host) + path, api_key=KEY, max_retries=4)


def blocks(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as LiteLLM writes it for Anthropic."""
    return said(message["role"], [{"type": "text", "text": message["content"]}])


LITELLM = [
    Contract(
        "ChatLiteLLM, DeepSeek",
        lambda at: ChatModelDelegate(
            litellm(at, "deepseek/deepseek-chat", "api.deepseek.com", "/beta")
        ),
        "flag",
        "/beta/chat/completions",
        openai_chat(
            "deepseek-chat",
            "max_tokens",
            chat("flag", prefix=True),
            thinking={"type": "disabled"},
        ),
        reports="deepseek/deepseek-chat",
        litellm=True,
    ),
    Contract(
        "ChatLiteLLM, Mistral",
        lambda at: ChatModelDelegate(
            litellm(at, f"mistral/{MISTRAL}", "api.mistral.ai", "/mistral/v1")
        ),
        "flag",
        "/mistral/v1/chat/completions",
        {
            "model": MISTRAL,
            "messages": chat("flag", prefix=True),
            "max_tokens": N,
            "stream": True,
        },
        echoes=True,
        reports=f"mistral/{MISTRAL}",
        litellm=True,
    ),
    Contract(
        "ChatLiteLLM, Claude up to 4.5",
        lambda at: ChatModelDelegate(litellm(at, f"anthropic/{CLAUDE}", "api.anthropic.com")),
        "prefill",
        "/v1/messages",
        {
            "model": CLAUDE,
            "messages": [blocks(message) for message in PREFILLED],
            "system": [{"type": "text", "text": SYSTEM}],
            "max_tokens": N,
            "stream": True,
        },
        reports=f"anthropic/{CLAUDE}",
        litellm=True,
    ),
    Contract(
        "ChatLiteLLM, OpenAI",
        lambda at: ChatModelDelegate(litellm(at, "openai/gpt-5-mini", "api.openai.com", "/v1")),
        "instruct",
        "/v1/chat/completions",
        openai_chat("gpt-5-mini", "max_completion_tokens", chat(), reasoning_effort="minimal"),
        reports="openai/gpt-5-mini",
        litellm=True,
    ),
]

ALL = [*CHAT_OPENAI, *OTHERS, *RAW, *STRINGS]
OLDER_OPENAI = [*LITELLM, *CHAT_OPENAI, *RAW]
"""What is tested in LiteLLM's environment."""


def _named(*names: str) -> list[Contract]:
    known = {contract.name: contract for contract in (*ALL, *LITELLM)}
    return [known[name] for name in names]


OF_EACH_CLASS = _named(
    *("ChatOpenAI, OpenAI", "ChatOpenAI, vLLM", "ChatOpenAI, Responses", "AzureChatOpenAI"),
    *("ChatAnthropic, up to 4.5", "ChatMistralAI", "ChatDeepSeek, beta", "ChatGroq", "ChatOllama"),
    *("ChatGoogleGenerativeAI, up to 3.5 Flash", "OpenAI client", "OpenAI client, completions"),
    *("OpenAI client, Responses", "ChatLiteLLM, DeepSeek", "ChatLiteLLM, OpenAI"),
)
"""For what a class does whatever the host."""

OF_EACH_SDK = _named(
    *("ChatOpenAI, OpenAI", "ChatAnthropic, up to 4.5", "ChatMistralAI", "ChatGroq"),
    *("ChatOllama", "ChatGoogleGenerativeAI, up to 3.5 Flash", "AsyncOpenAI client"),
    *("ChatLiteLLM, DeepSeek", "ChatLiteLLM, OpenAI"),
)
"""For what is a matter of connections."""
