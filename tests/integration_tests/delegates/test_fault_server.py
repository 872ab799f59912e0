"""The fault server itself: it says what the providers say, and each fault is the fault it names."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib import import_module
from typing import Any

import httpx
import openai
import pytest

from tests.faults import STATUS, Fault, FaultServer, Reply
from tests.faults.dialects import DIALECTS, RELATIVES

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")

USER = [{"role": "user", "content": "Why is it blue?"}]
ALL = (*RELATIVES, *DIALECTS)
NAMES = [dialect.name for dialect in ALL]
TEXT = "blue light scatters most."


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


# --- what is asked, in every dialect ------------------------------------------------------------


def request(name: str, *, streamed: bool, limit: int | None = None) -> tuple[str, dict[str, Any]]:
    """Path and body of a request in a dialect's own words."""
    common: dict[str, Any] = {"model": "m", "stream": streamed}
    match name:
        case "openai_chat":
            usage = {"stream_options": {"include_usage": True}} if streamed else {}
            body = {**common, **usage, "messages": USER, "max_tokens": limit}
            return "/v1/chat/completions", body
        case "groq":
            return "/openai/v1/chat/completions", {
                **common,
                "messages": USER,
                "max_tokens": limit,
            }
        case "mistral":
            return "/mistral/v1/chat/completions", {
                **common,
                "messages": USER,
                "max_tokens": limit,
            }
        case "openai_responses":
            return "/v1/responses", {**common, "input": USER, "max_output_tokens": limit}
        case "openai_completions":
            usage = {"stream_options": {"include_usage": True}} if streamed else {}
            body = {**common, **usage, "prompt": "Why is it blue?", "max_tokens": limit}
            return "/v1/completions", body
        case "anthropic_messages":
            return "/v1/messages", {**common, "messages": USER, "max_tokens": limit or 1000}
        case "gemini":
            method = "streamGenerateContent?alt=sse" if streamed else "generateContent"
            contents = [{"role": "user", "parts": [{"text": "Why is it blue?"}]}]
            config = {"maxOutputTokens": limit} if limit else {}
            body = {"contents": contents, "generationConfig": config}
            return f"/v1beta/models/m:{method}", body
        case _:
            options = {"options": {"num_predict": limit}} if limit else {}
            return "/api/chat", {**common, **options, "messages": USER}


def ask(server: FaultServer, name: str, *, streamed: bool, **asked: Any) -> httpx.Response:
    path, body = request(name, streamed=streamed, **asked)
    # Reading the certificates for every client takes most of the time.
    return httpx.post(server.url + path, json=body, timeout=5.0, verify=False)


# --- what comes back ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Got:
    text: str
    finish: str | None
    usage: tuple[int, int] | None


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The JSON of a stream, of server-sent events or of lines."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines()]
    return [json.loads(line) for line in lines if line.startswith("{")]


def read_chat(found: list[dict[str, Any]], key: str) -> Got:
    choices = [choice for event in found for choice in event["choices"]]
    text = "".join((c[key] if key == "text" else c[key].get("content")) or "" for c in choices)
    said = [event.get("x_groq") or event for event in found]
    usages = [event["usage"] for event in said if event.get("usage")]
    usage = (usages[0]["prompt_tokens"], usages[0]["completion_tokens"]) if usages else None
    return Got(text, choices[-1]["finish_reason"], usage)


def read_responses(found: list[dict[str, Any]], *, streamed: bool) -> Got:
    over = found[-1]["response"] if streamed else found[0]
    parts = [part for item in over["output"] for part in item.get("content", [])]
    text = "".join(part.get("text", "") for part in parts)
    if streamed:
        deltas = [e["delta"] for e in found if e["type"] == "response.output_text.delta"]
        assert "".join(deltas) == text
        assert [e["sequence_number"] for e in found] == list(range(len(found)))
    usage = over["usage"]
    reason = (over["incomplete_details"] or {}).get("reason")
    finish = reason or over["status"]
    return Got(text, finish, usage and (usage["input_tokens"], usage["output_tokens"]))


def read_anthropic(found: list[dict[str, Any]], *, streamed: bool) -> Got:
    if not streamed:
        (message,) = found
        text = "".join(block.get("text", "") for block in message["content"])
        usage = message.get("usage")
        counted = usage and (usage["input_tokens"], usage["output_tokens"])
        return Got(text, message["stop_reason"], counted)
    kinds = [event["type"] for event in found]
    assert (kinds[0], kinds[-2], kinds[-1]) == ("message_start", "message_delta", "message_stop")
    text = "".join(e["delta"].get("text", "") for e in found if e["type"] == "content_block_delta")
    begun, over = found[0]["message"].get("usage"), found[-2].get("usage")
    counted = (begun["input_tokens"], over["output_tokens"]) if begun and over else None
    return Got(text, found[-2]["delta"]["stop_reason"], counted)


def read_gemini(found: list[dict[str, Any]]) -> Got:
    candidates = [c for event in found for c in event.get("candidates", [])]
    text = "".join(p.get("text", "") for c in candidates for p in c["content"]["parts"])
    usage = found[-1].get("usageMetadata")
    blocked = found[-1].get("promptFeedback", {}).get("blockReason")
    finish = blocked or candidates[-1].get("finishReason")
    counted = usage and (usage["promptTokenCount"], usage["candidatesTokenCount"])
    return Got(text, finish, counted)


def read_ollama(found: list[dict[str, Any]]) -> Got:
    assert [line["done"] for line in found] == [*[False] * (len(found) - 1), True]
    text = "".join(line["message"]["content"] for line in found)
    last = found[-1]
    counted = (last["prompt_eval_count"], last["eval_count"]) if "eval_count" in last else None
    return Got(text, last["done_reason"], counted)


def read(name: str, response: httpx.Response, *, streamed: bool) -> Got:
    assert response.status_code == 200
    found = events(response) if streamed else [response.json()]
    match name:
        case "openai_chat" | "groq" | "mistral":
            return read_chat(found, "delta" if streamed else "message")
        case "openai_completions":
            return read_chat(found, "text")
        case "openai_responses":
            return read_responses(found, streamed=streamed)
        case "anthropic_messages":
            return read_anthropic(found, streamed=streamed)
        case "gemini":
            return read_gemini(found)
        case _:
            return read_ollama(found)


STOPPED = {
    **dict.fromkeys(("openai_chat", "groq", "mistral"), "stop"),
    "openai_responses": "completed",
    "openai_completions": "stop",
    "anthropic_messages": "end_turn",
    "gemini": "STOP",
    "ollama": "stop",
}
CUT = {
    **dict.fromkeys(("openai_chat", "groq", "mistral"), "length"),
    "openai_responses": "max_output_tokens",
    "openai_completions": "length",
    "anthropic_messages": "max_tokens",
    "gemini": "MAX_TOKENS",
    "ollama": "length",
}
FILTERED = {
    **dict.fromkeys(("openai_chat", "groq", "mistral"), "content_filter"),
    "openai_responses": "content_filter",
    "openai_completions": "content_filter",
    "anthropic_messages": "refusal",
    "gemini": "SAFETY",
}

every_dialect = pytest.mark.parametrize("name", NAMES)
both_ways = pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "whole"])


@both_ways
@every_dialect
def test_text_finish_and_usage_in_the_dialects_own_words(
    server: FaultServer, name: str, streamed: bool
):
    server.script(TEXT)
    got = read(name, ask(server, name, streamed=streamed), streamed=streamed)
    assert got == Got(TEXT, STOPPED[name], (4, 4))
    got = read(name, ask(server, name, streamed=streamed, limit=3), streamed=streamed)
    assert got == Got("blue light scatters", CUT[name], (4, 3))
    assert server.usage_total == (8, 7)
    assert [one.dialect for one in server.served] == [name, name]
    assert server.settled()
    assert all(one.through and not one.hung_up for one in server.served)


@both_ways
@every_dialect
def test_every_dialect_has_every_fault_it_does_not_lack(
    server: FaultServer, name: str, streamed: bool
):
    lacks = next(dialect.lacks for dialect in ALL if dialect.name == name)
    for fault in Fault:
        server.script(Reply(fault=fault, delay_s=0.01, hold_s=0.05))
        if fault in lacks:
            assert ask(server, name, streamed=streamed).status_code == 501
        else:
            check_fault(server, name, fault, streamed=streamed)
        assert server.served[-1].fault is fault


def check_fault(server: FaultServer, name: str, fault: Fault, *, streamed: bool) -> None:
    """Ask over a plain HTTP client and compare what comes with what the fault says."""
    if fault in BROKEN or (fault is Fault.TRUNCATED and not streamed):
        with pytest.raises(httpx.TransportError):
            ask(server, name, streamed=streamed)
        return
    limit = 8 if fault is Fault.IGNORED_LIMIT else None
    response = ask(server, name, streamed=streamed, limit=limit)
    if fault in STATUS:
        assert response.status_code == STATUS[fault]
        assert "error" in response.json()
        assert server.served[-1].due == (0, 0)
    elif fault is Fault.WRONG_CONTENT_TYPE:
        assert response.headers["content-type"] == "text/html"
    elif fault in UNREADABLE:
        check_unreadable(name, fault, response, streamed=streamed)
    else:
        check_content(name, fault, read(name, response, streamed=streamed))


BROKEN = frozenset(
    {
        Fault.STALLED,
        Fault.KEEP_ALIVE,
        Fault.RESET_BEFORE_HEADERS,
        Fault.RESET_BEFORE_TOKEN,
        Fault.RESET_AFTER_TOKEN,
        Fault.TRUNCATED_BODY,
    }
)
UNREADABLE = frozenset(
    {Fault.TRUNCATED, Fault.MALFORMED_JSON, Fault.ERROR_EVENT, Fault.INVALID_UTF8}
)


def check_unreadable(name: str, fault: Fault, response: httpx.Response, *, streamed: bool) -> None:
    if fault is Fault.INVALID_UTF8:
        with pytest.raises(UnicodeDecodeError):
            response.content.decode()
        return
    if fault is Fault.ERROR_EVENT:
        assert "told to fail" in response.text
        return
    if fault is Fault.MALFORMED_JSON:
        with pytest.raises(json.JSONDecodeError):
            events(response) if streamed else response.json()
        return
    assert "light" in response.text.strip().splitlines()[-1]


def check_content(name: str, fault: Fault, got: Got) -> None:
    match fault:
        case Fault.NO_USAGE:
            assert got == Got(TEXT, STOPPED[name], None)
        case Fault.IGNORED_LIMIT:
            assert got.text.split() == ["word"] * 40
            assert got.usage == (4, 40)
        case Fault.MEBIBYTE:
            assert len(got.text) >= 2**20
        case Fault.EMPTY_CHOICE:
            assert (got.text, got.finish) == ("", STOPPED[name])
        case Fault.CALL_TAGS:
            assert "<call>9</call>" in got.text
        case Fault.CONTENT_FILTER:
            assert (got.text, got.finish) == ("blue light", FILTERED[name])
        case Fault.TOOL_CALLS | Fault.REFUSAL:
            assert got.text == ""
        case _:
            assert got == Got(TEXT, STOPPED[name], (4, 4))


# --- what the real clients make of it -----------------------------------------------------------


def client(server: FaultServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="test", max_retries=0)


def test_the_openai_package_reads_chat(server: FaultServer):
    server.script(Reply(TEXT), Reply(fault=Fault.TOOL_CALLS), Reply(fault=Fault.REFUSAL))
    create: Any = client(server).chat.completions.create
    whole = create(model="m", messages=USER)
    assert (whole.choices[0].message.content, whole.usage.completion_tokens) == (TEXT, 4)
    call = create(model="m", messages=USER).choices[0].message.tool_calls[0]
    assert json.loads(call.function.arguments) == {"q": "sky"}
    assert "help" in create(model="m", messages=USER).choices[0].message.refusal
    server.script(Reply(fault=Fault.TOOL_CALLS))
    chunks = list(create(model="m", messages=USER, stream=True))
    assert [c.choices[0].finish_reason for c in chunks][-1] == "tool_calls"
    assert any(c.choices[0].delta.tool_calls for c in chunks)


def test_the_openai_package_reads_responses(server: FaultServer):
    server.script(Reply(TEXT))
    create: Any = client(server).responses.create
    assert create(model="m", input=USER).output_text == TEXT
    kinds = [event.type for event in create(model="m", input=USER, stream=True)]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 4
    server.script(Reply(fault=Fault.TOOL_CALLS), Reply(fault=Fault.REFUSAL))
    assert create(model="m", input=USER).output[0].name == "lookup"
    assert "help" in create(model="m", input=USER).output[0].content[0].refusal
    with client(server).responses.stream(model="m", input="Why?") as stream:
        last: Any = stream.get_final_response()
    assert last.output[0].content[0].type == "refusal"


def test_the_openai_package_reads_completions(server: FaultServer):
    server.script(Reply(TEXT))
    create: Any = client(server).completions.create
    whole = create(model="m", prompt="Why?", max_tokens=2)
    assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("blue light", "length")
    chunks = list(create(model="m", prompt="Why?", stream=True))
    assert "".join(c.choices[0].text for c in chunks) == TEXT


def test_the_anthropic_package_reads_messages(server: FaultServer):
    anthropic: Any = import_module("anthropic")
    claude = anthropic.Anthropic(base_url=server.url, api_key="test", max_retries=0)
    ask: Mapping[str, Any] = {"model": "m", "max_tokens": 9, "messages": USER}
    server.script(Reply(TEXT))
    assert claude.messages.create(**ask).content[0].text == TEXT
    with claude.messages.stream(**ask) as stream:
        last = stream.get_final_message()
    assert (last.content[0].text, last.stop_reason) == (TEXT, "end_turn")
    assert (last.usage.input_tokens, last.usage.output_tokens) == (4, 4)
    server.script(Reply(fault=Fault.TOOL_CALLS))
    with claude.messages.stream(**ask) as stream:
        last = stream.get_final_message()
    assert (last.content[0].input, last.stop_reason) == ({"q": "sky"}, "tool_use")
    server.script(Reply(fault=Fault.OVERLOADED))
    with pytest.raises(anthropic.APIStatusError, match="overloaded"):
        claude.messages.create(**ask)


def test_the_ollama_package_reads_chat(server: FaultServer):
    ollama: Any = import_module("ollama")
    host = ollama.Client(host=server.url)
    server.script(Reply(TEXT))
    assert host.chat("m", messages=USER).message.content == TEXT
    lines = list(host.chat("m", messages=USER, stream=True))
    assert "".join(line.message.content for line in lines) == TEXT
    assert (lines[-1].done_reason, lines[-1].eval_count) == ("stop", 4)
    server.script(Reply(fault=Fault.TOOL_CALLS))
    (call,) = host.chat("m", messages=USER).message.tool_calls
    assert call.function.arguments == {"q": "sky"}
    server.script(Reply(fault=Fault.ERROR_EVENT))
    with pytest.raises(ollama.ResponseError, match="told to fail"):
        list(host.chat("m", messages=USER, stream=True))


def test_the_google_package_reads_gemini(server: FaultServer):
    genai: Any = import_module("google.genai")
    options = genai.types.HttpOptions(base_url=server.url)
    google = genai.Client(api_key="test", http_options=options)  # its models die with it
    models = google.models
    server.script(Reply(TEXT))
    assert models.generate_content(model="m", contents="Why?").text == TEXT
    chunks = list(models.generate_content_stream(model="m", contents="Why?"))
    assert "".join(chunk.text or "" for chunk in chunks) == TEXT
    assert chunks[-1].candidates[0].finish_reason.name == "STOP"
    assert chunks[-1].usage_metadata.candidates_token_count == 4
    server.script(Reply(fault=Fault.TOOL_CALLS))
    (call,) = models.generate_content(model="m", contents="Why?").function_calls
    assert call.args == {"q": "sky"}
    server.script(Reply(fault=Fault.REFUSAL))
    refused = models.generate_content(model="m", contents="Why?")
    assert refused.prompt_feedback.block_reason.name == "SAFETY"
    server.script(Reply(fault=Fault.RATE_LIMITED_SECONDS))
    with pytest.raises(genai.errors.ClientError, match="RESOURCE_EXHAUSTED"):
        models.generate_content(model="m", contents="Why?")


# --- the wire -----------------------------------------------------------------------------------


def raw(server: FaultServer, *, streamed: bool = True) -> socket.socket:
    """A connection on which one chat request has been sent."""
    path, body = request("openai_chat", streamed=streamed)
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    wire = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=5)
    wire.sendall(head.encode() + data)
    return wire


def received(wire: socket.socket) -> bytes:
    got = b""
    while piece := wire.recv(65536):
        got += piece
    return got


RESETS = [Fault.RESET_BEFORE_HEADERS, Fault.RESET_BEFORE_TOKEN, Fault.RESET_AFTER_TOKEN]


@pytest.mark.parametrize("fault", RESETS)
def test_a_reset_is_a_reset_and_not_an_end(server: FaultServer, fault: Fault):
    server.script(Reply(fault=fault))
    with raw(server) as wire, pytest.raises(ConnectionResetError):
        received(wire)


def test_a_truncated_body_ends_without_a_reset(server: FaultServer):
    server.script(Reply(fault=Fault.TRUNCATED_BODY))
    with raw(server) as wire:
        got = received(wire)
    assert b"light" in got
    assert not got.endswith(b"0\r\n\r\n")


def test_a_connection_is_kept_for_the_next_request(server: FaultServer):
    server.script(TEXT)
    with httpx.Client() as http:
        for _ in range(3):
            path, body = request("openai_chat", streamed=True)
            assert http.post(server.url + path, json=body).status_code == 200
        assert server.open_connections == 1


def test_tokens_leave_as_they_are_written(server: FaultServer):
    """Not in packets that wait for the acknowledgement of the one before."""
    server.script("word " * 500)
    began_s = time.monotonic()
    ask(server, "openai_chat", streamed=True)
    assert time.monotonic() - began_s < 10.0  # 500 tokens at 40 ms are 20 s


def test_a_hundred_clients_connect_at_once(server: FaultServer):
    server.script(Reply(TEXT, fault=Fault.SLOW_HEADERS, delay_s=0.2))
    statuses: list[int] = []
    together = threading.Barrier(100)

    def one() -> None:
        together.wait()
        statuses.append(ask(server, "openai_chat", streamed=False).status_code)

    threads = [threading.Thread(target=one) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 100


def test_retry_after_comes_in_seconds_or_as_a_date(server: FaultServer):
    server.script(
        Reply(fault=Fault.RATE_LIMITED_SECONDS, retry_after_s=7),
        Reply(fault=Fault.RATE_LIMITED_DATE, retry_after_s=7),
    )
    first = ask(server, "openai_chat", streamed=True)
    assert first.headers["retry-after"] == "7"
    before = time.time()
    second = ask(server, "openai_chat", streamed=True)
    then = parsedate_to_datetime(second.headers["retry-after"]).timestamp()
    assert before + 6 < then <= time.time() + 7  # a date has whole seconds


@pytest.mark.parametrize("fault", [Fault.STALLED, Fault.KEEP_ALIVE, Fault.SLOW_HEADERS])
def test_a_client_that_leaves_is_noticed(server: FaultServer, fault: Fault):
    server.script(Reply(fault=fault, delay_s=30.0))
    wire = raw(server)
    assert until(lambda: bool(server.served))
    time.sleep(0.1)
    wire.close()
    assert server.served[0].wait(10.0)
    assert server.served[0].hung_up


def test_a_reply_may_depend_on_the_request(server: FaultServer):
    server.script(lambda served: f"{served.model} {served.headers['user-agent'][:5]}")
    got = read("ollama", ask(server, "ollama", streamed=True), streamed=True)
    assert got.text == "m pytho"


def test_the_count_goes_on_where_no_usage_was_reported(server: FaultServer):
    server.script(Reply(fault=Fault.TRUNCATED), Reply(fault=Fault.NO_USAGE), Reply(usage=(9, 1)))
    for _ in range(3):
        ask(server, "openai_chat", streamed=True)
    assert [one.due for one in server.served] == [(4, 2), (4, 4), (9, 1)]
    assert server.usage_total == (17, 7)


def until(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5.0
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()
