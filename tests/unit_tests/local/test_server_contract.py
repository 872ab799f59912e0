"""What leaves for a completion server, and how its answers are read, without any server.

llama.cpp's own server and `llama_cpp.server` are run by the integration tests; what is said of
vLLM and SGLang here is their documented contract, unverified.
"""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import pytest

from langchain_relay import errors
from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.values import FREE, LocalModel, Rule, Sampling, Turn
from langchain_relay.local import CompletionServerModel
from langchain_relay.local.server.transport import Loop

TIMEOUT_S = 30
URL = "http://127.0.0.1:8080"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HI = [Turn("user", "Hi")]
TO_NAME = str.maketrans("/-", "__")


class Events(httpx.AsyncByteStream):
    """The events of one completion; `{"hold": True}` stays silent until the stream is closed."""

    def __init__(self, fake: FakeServer, events: list[dict[str, Any]]) -> None:
        self._fake = fake
        self._events = events

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for event in self._events:
            if event == {"hold": True}:
                await asyncio.sleep(TIMEOUT_S)
            if event == LATE:
                await asyncio.sleep(0.05)
            for byte in f"data: {json.dumps(event, ensure_ascii=False)}\r\n\r\n".encode():
                yield bytes([byte])

    async def aclose(self) -> None:
        await asyncio.sleep(0)  # as a network does
        self._fake.streams_closed += 1


class FakeServer:
    """Answers from a script; one character is one token, control text is one too.

    Completions come from `say`, a list of lists of events, one for each request.
    """

    def __init__(self, *, owner: str = "me", own: bool = False, **model: Any) -> None:
        self.own = own
        self.model = {"id": "slm", "owned_by": owner, **model}
        self.say: list[list[dict[str, Any]]] = []
        self.fault: httpx.Response | Exception | None = None
        self.requests: list[httpx.Request] = []
        self.streams_closed = 0

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault is not None:
            return self.fault
        answer = getattr(self, "_" + request.url.path.strip("/").translate(TO_NAME), None)
        if answer is None or (request.url.path == "/props" and not self.own):
            return httpx.Response(404, json={"detail": "Not Found"})
        found: httpx.Response = answer(json.loads(request.content or b"{}"))
        return found

    def bodies(self, path: str) -> list[dict[str, Any]]:
        return [json.loads(r.content) for r in self.requests if r.url.path == path]

    @property
    def completions(self) -> list[dict[str, Any]]:
        return self.bodies("/completion") + self.bodies("/v1/completions")

    def _v1_models(self, body: Any) -> httpx.Response:
        return httpx.Response(200, json={"data": [self.model]})

    def _props(self, body: Any) -> httpx.Response:
        settings = {"n_ctx": 512}
        return httpx.Response(
            200,
            json={
                "default_generation_settings": settings,
                "total_slots": 4,
                "chat_template": CHATML,
                "bos_token": "<s>",
                "eos_token": "<|im_end|>",
            },
        )

    def _lora_adapters(self, body: Any) -> httpx.Response:
        return httpx.Response(
            200, json=[{"id": 0, "path": "/a/cook.gguf"}, {"id": 1, "path": "/a/poet.gguf"}]
        )

    def _tokenize(self, body: Any) -> httpx.Response:
        text = body.get("content", body.get("prompt", body.get("input")))
        ids, pieces = [], []
        while text:
            control = text.startswith("<|im_end|>") and body.get("parse_special", True)
            piece = "<|im_end|>" if control else text[0]
            ids.append(900 if control else ord(piece))
            pieces.append(piece)
            text = text[len(piece) :]
        if body.get("with_pieces"):
            told = [{"id": i, "piece": p} for i, p in zip(ids, pieces, strict=True)]
            return httpx.Response(200, json={"tokens": told})
        return httpx.Response(200, json={"tokens": ids})

    _extras_tokenize = _tokenize

    def _detokenize(self, body: Any) -> httpx.Response:
        return httpx.Response(200, json={"content": "".join(map(chr, body["tokens"]))})

    def _completion(self, body: Any) -> httpx.Response:
        return httpx.Response(200, stream=Events(self, self.say.pop(0)))

    _v1_completions = _completion


def own_events(text, *, end=None):
    """Events of llama.cpp's own server: a token for each character."""
    events: list[dict[str, Any]] = [
        {"content": c, "tokens": [ord(c)], "stop": False, "tokens_predicted": i}
        for i, c in enumerate(text, start=1)
    ]
    return events if end is None else [*events, {"content": "", "stop": True, **end}]


def text_events(*texts, **end):
    """Events of the OpenAI protocol."""
    events: list[dict[str, Any]] = [
        {"choices": [{"text": t, "finish_reason": None}]} for t in texts
    ]
    return [*events, {"choices": [{"text": "", **end}]}] if end else events


LATE = {"late": True}  # what follows comes when somebody waits for it
LIMIT = {"stop_type": "limit"}
EOS = {"stop_type": "eos"}


@pytest.fixture
def connect():
    """Models over a fake, closed at the end of the test."""
    opened = []

    def connect(fake, **options):
        if not fake.own:
            options = {"template": CHATML, "n_ctx": 512, **options}
        model = CompletionServerModel(URL, transport=httpx.MockTransport(fake), **options)
        opened.append(model)
        return model

    yield connect
    for model in opened:
        model.close()


def begin(model, turns=HI, **sampling):
    return model.open(turns, Sampling(**{"temperature": 0.0, **sampling})).result(TIMEOUT_S)


def step(session, *append, **ask):
    return session.decode(Decode(append, **ask)).result(TIMEOUT_S)


def steps(session, n, rule=FREE):
    got, append = [], tuple[int, ...]()
    for _ in range(n):
        one = step(session, *append, rule=rule)
        got.append(one)
        append = (one.id,)
    return got


def until(condition):
    """Wait for the loop's thread, which nobody can ask."""
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("the thread did not get there")


# --- construction -------------------------------------------------------------------------------


def test_constructing_sends_nothing_and_the_fingerprint_has_no_secrets(connect):
    fake = FakeServer(own=True)
    secret = "sk-very-secret"
    model = connect(fake, api_key=secret, headers={"X-Key": secret}, extra_body={"key": secret})
    assert (fake.requests, model.requests) == ([], 0)
    assert isinstance(model, LocalModel)
    assert secret not in json.dumps(model.fingerprint) + repr(model) + model.name
    begin(model)
    assert all(r.headers["authorization"] == f"Bearer {secret}" for r in fake.requests)
    assert all(r.headers["x-key"] == secret for r in fake.requests)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"base_url": "127.0.0.1:8080"}, "http://127.0.0.1:8080"),
        ({"base_url": "http://me:secret@host"}, "no secrets"),
        ({"protocol": "grpc"}, "'openai'"),
        ({"server": "tgi"}, "'vllm'"),
        ({"server": "vllm", "protocol": "llama.cpp"}, "leave it out"),
        ({"n_ctx": 0}, "n_ctx=0"),
        ({"max_concurrency": 0}, "max_concurrency=0"),
        ({"timeout_s": 0}, "timeout_s=0"),
        ({"tokenizer": "smolm2"}, "smolm2"),
    ],
)
def test_a_mistake_is_found_at_construction(wrong, said):
    with pytest.raises(errors.UsageMistake, match=said):
        CompletionServerModel(**{"base_url": URL, **wrong})


@pytest.mark.parametrize("secret", ["sk-secret\n", "sk-s\u00e9cret", "sk-\x7fsecret"])
def test_a_secret_no_header_may_have_is_refused_and_not_quoted(secret):
    for wrong in ({"api_key": secret}, {"headers": {"X-Key": secret}}):
        with pytest.raises(errors.UsageMistake, match="api_key|X-Key") as caught:
            CompletionServerModel(URL, **wrong)
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize("given", [URL, URL + "/", URL + "/v1", URL + "/v1/"])
def test_the_url_may_be_that_of_an_openai_client(given):
    model = CompletionServerModel(given)
    assert model.fingerprint["base_url"] == URL
    assert model.name == "127.0.0.1:8080"


def test_a_sampling_value_out_of_range_is_refused_before_anything_is_sent(connect):
    fake = FakeServer(own=True)
    with pytest.raises(errors.UsageMistake, match="top_p"):
        connect(fake).open(HI, Sampling(top_p=2))
    assert fake.requests == []


# --- llama.cpp's own server ---------------------------------------------------------------------


def test_own_server_gets_ids_and_every_sampling_value(connect):
    fake = FakeServer(own=True)
    fake.say = [own_events("ab", end=EOS)]
    session = begin(connect(fake), temperature=0.5, seed=7)
    assert [one.text for one in steps(session, 2)] == ["a", "b"]
    (body,) = fake.bodies("/completion")
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert len(body["prompt"]) == len(prompt) - len("<|im_end|>") + 1
    assert all(isinstance(token, int) for token in body["prompt"])
    assert body["n_predict"] == 512 - len(body["prompt"]) == session.context_left
    assert body["cache_prompt"] is body["stream"] is body["return_tokens"] is True
    assert body["stop"] == ["</call>"]
    assert body["id_slot"] == 0
    expected = {"temperature": 0.5, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
    expected |= {"repeat_penalty": 1.0, "repeat_last_n": 64, "presence_penalty": 0.0}
    assert {name: body[name] for name in expected} == expected
    assert "xtc" not in body["samplers"]
    assert 0 <= body["seed"] < 2**32


def test_own_server_s_stop_string_is_restored_with_its_tokens(connect):
    fake = FakeServer(own=True)
    events = own_events("ab</call>")
    for event in events[2:]:
        event["content"] = ""
    fake.say = [
        [*events, {"content": "", "stop": True, "stop_type": "word", "stopping_word": "</call>"}],
        own_events("c", end=EOS),
    ]
    session = begin(connect(fake))
    got = steps(session, 9)
    assert "".join(one.text for one in got) == "ab</call>"
    assert [one.id for one in got] == list(map(ord, "ab</call>"))
    assert step(session, got[-1].id).text == "c"
    assert fake.completions[1]["prompt"][-9:] == list(map(ord, "ab</call>"))


def test_text_withheld_before_the_end_of_a_turn_is_not_the_end_token_s(connect):
    fake = FakeServer(own=True)
    fake.say = [
        [
            {"content": "", "tokens": [ord("<")], "stop": False, "tokens_predicted": 1},
            {"content": "<", "tokens": [900], "stop": False, "tokens_predicted": 2},
            {"content": "", "stop": True, "stop_type": "eos"},
        ]
    ]
    session = begin(connect(fake))
    first = step(session)
    assert (first.id, first.text) == (ord("<"), "<")
    end = step(session, first.id)
    assert (end.id, end.text, end.eog) == (900, "", True)


def test_ids_the_server_never_sent_are_asked_for(connect):
    """It sends no event for a token that ends within a character."""
    fake = FakeServer(own=True)
    fake.say = [
        [
            {"content": "é", "tokens": [3], "stop": False, "tokens_predicted": 2},
            {"content": "x", "tokens": [ord("x")], "stop": False, "tokens_predicted": 3},
            {"content": "", "stop": True, "stop_type": "eos"},
        ]
    ]
    session = begin(connect(fake))
    assert [(one.id, one.text) for one in steps(session, 2)] == [(ord("é"), "é"), (ord("x"), "x")]


def test_control_text_of_a_message_is_tokenized_as_text(connect):
    fake = FakeServer(own=True)
    fake.say = [own_events("a", end=EOS)]
    begin(connect(fake), [Turn("user", "x<|im_end|>y")])
    harmless = begin(connect(FakeServer(own=True)), [Turn("user", "xy")])
    session = begin(connect(fake), [Turn("user", "x<|im_end|>y")])
    ids = session._writer.history.items[0].ids
    assert ids.count(900) == harmless._writer.history.items[0].ids.count(900) == 1
    assert "".join(map(chr, ids)).count("<|im_end|>") == 1


def test_a_ban_is_kept_by_asking_for_one_other_token(connect):
    fake = FakeServer(own=True)
    fake.say = [
        own_events("a<call>", end=EOS),
        own_events("k", end=LIMIT),
        own_events("e", end=EOS),
    ]
    session = begin(connect(fake))
    got = steps(session, 7, Rule(ban=("<call>",)))
    assert "".join(one.text for one in got) == "a<calke"
    first, second, last = fake.completions
    assert first["stop"] == []
    assert (second["logit_bias"], second["n_predict"]) == ([[ord("l"), False]], 1)
    assert "".join(map(chr, second["prompt"])).endswith("a<cal")
    assert "".join(map(chr, last["prompt"])).endswith("a<calk")
    assert last["logit_bias"] == []


def test_whatever_python_takes_for_the_end_of_a_line_may_be_written(connect):
    text = "a\u2028b\x85c\x0bd\x1ee\r\nf\u00e9"
    fake = FakeServer(own=True)
    fake.say = [own_events(text, end=EOS)]
    session = begin(connect(fake))
    assert "".join(one.text for one in steps(session, len(text))) == text


def test_an_error_that_is_null_is_none(connect):
    fake = FakeServer(own=True)
    fake.say = [[{**event, "error": None} for event in own_events("a", end=EOS)]]
    assert step(begin(connect(fake))).text == "a"


@pytest.mark.parametrize("why", ["eos", "limit", "whim"])
def test_a_stream_that_ends_while_somebody_waits_is_closed(connect, why):
    fake = FakeServer(own=True)
    end = {"content": "", "stop": True, "stop_type": why}
    fake.say = [[*own_events("a"), LATE, end], [{"hold": True}]]
    session = begin(connect(fake))
    session.decode(Decode((step(session).id,)))
    until(lambda: fake.streams_closed)


def test_what_is_written_instead_of_a_ban_may_be_a_character_of_several_tokens(connect):
    fake = FakeServer(own=True)
    nothing = own_events("", end=LIMIT)
    smile = [{"content": "\u263a", "tokens": [9], "stop": False, "tokens_predicted": 3}]
    smile += own_events("", end=LIMIT)
    fake.say = [own_events("<call>"), nothing, smile, own_events("b", end=EOS)]
    session = begin(connect(fake))
    got = steps(session, 6, Rule(ban=("<call>",)))
    assert "".join(one.text for one in got) == "<cal\u263ab"
    limits = [(body["n_predict"], body["logit_bias"]) for body in fake.completions[1:3]]
    assert limits == [(1, [[ord("l"), False]]), (4, [[ord("l"), False]])]


def test_a_ban_that_leaves_nothing_is_not_tried_for_ever(connect, monkeypatch):
    fake = FakeServer(own=True)

    def completion(body):
        text = "" if body["logit_bias"] else "<call>"[len(fake.completions) > 1 and 4 :]
        return httpx.Response(200, stream=Events(fake, own_events(text, end=LIMIT)))

    monkeypatch.setattr(fake, "_completion", completion)
    session = begin(connect(fake))
    with pytest.raises(errors.LocalModelError, match="gave no reason"):
        steps(session, 6, Rule(ban=("<call>",)))
    assert len(fake.completions) == 3


def test_a_server_that_ignores_a_ban_is_found_out(connect):
    fake = FakeServer(own=True)
    fake.say = [own_events("<call>", end=EOS), *[own_events("l", end=LIMIT)] * 2]
    session = begin(connect(fake))
    append: tuple[int, ...] = ()
    with pytest.raises(errors.LocalModelError, match="'l' again.*logit_bias"):
        for _ in range(7):
            append = (step(session, *append, rule=Rule(ban=("<call>",))).id,)


def test_a_feed_closes_the_stream_and_its_text_is_tokenized_as_a_whole(connect):
    fake = FakeServer(own=True)
    fake.say = [[*own_events("abc"), {"hold": True}], own_events("d", end=EOS)]
    session = begin(connect(fake))
    got = steps(session, 2)
    for piece in (" one", " two", " <|im_end|>"):
        session.feed(Feed((got[-1].id, piece) if piece == " one" else (piece,)))
    assert step(session).text == "d"
    until(lambda: fake.streams_closed)
    assert {"content": " one two <|im_end|>", "add_special": False, "parse_special": False} in (
        fake.bodies("/tokenize")
    )
    prompt = fake.completions[1]["prompt"]
    assert "".join(map(chr, prompt)).endswith("ab one two <|im_end|>")
    assert session.completions == 2


def test_a_rewind_may_end_within_a_span(connect):
    fake = FakeServer(own=True)
    fake.say = [own_events("a"), own_events("b")]
    session = begin(connect(fake))
    step(session, "one two")
    step(session, rewind=4)
    first, second = ("".join(map(chr, body["prompt"])) for body in fake.completions)
    assert first.endswith("one two")
    assert second == first.removesuffix(" two")


def test_a_rewind_within_a_text_needs_a_server_with_ids(connect):
    fake = FakeServer()
    fake.say = [text_events("a"), text_events("b")]
    session = begin(connect(fake))
    step(session, "one two")
    with pytest.raises(errors.UsageMistake, match="4 of the 7 tokens.*all of it"):
        step(session, rewind=4)
    step(session, "!")
    assert fake.completions[1]["prompt"].endswith("one two!")


def test_the_last_token_of_the_context_is_written_and_no_more(connect):
    fake = FakeServer(own=True)
    fake.say = [own_events("a", end=LIMIT)]
    session = begin(connect(fake))
    one = step(session, "x" * (session.context_left - 1))
    assert fake.completions[0]["n_predict"] == 1
    with pytest.raises(errors.ContextOverflowError, match="512 tokens") as caught:
        step(session, one.id)
    assert (caught.value.needed_tokens, caught.value.n_ctx) == (513, 512)
    assert len(fake.completions) == 1


def test_no_text_is_withheld_at_the_end_of_the_context_or_under_a_grammar(connect):
    fake = FakeServer(own=True)
    withheld = {"content": "", "tokens": [ord("<")], "stop": False, "tokens_predicted": 2}
    fake.say = [
        own_events("a", end=EOS),
        [*own_events("a"), withheld, *own_events("", end=LIMIT)],
        own_events("</", end=LIMIT),
    ]
    session = begin(connect(fake))
    step(session, rule=Rule(grammar="root ::= [a-z]"))
    got = step(session, "x" * (session.context_left - 8))
    assert (got.text, step(session, got.id).text) == ("a", "<")
    assert [body["stop"] for body in fake.completions] == [[], ["</call>"], []]


def test_an_ask_that_was_cancelled_takes_nothing_twice(connect):
    fake = FakeServer(own=True)
    fake.say = [[*own_events("a"), {"hold": True}], own_events("b", end=EOS)]
    session = begin(connect(fake))
    one = step(session)
    assert session.decode(Decode((one.id,))).cancel()
    assert step(session).text == "b"
    assert "".join(map(chr, fake.completions[1]["prompt"])).endswith("\na")


def test_text_stays_if_its_ask_is_cancelled_or_fails_while_it_is_tokenized(connect, monkeypatch):
    fake = FakeServer(own=True)
    fake.say = [own_events("a", end=EOS)]
    session = begin(connect(fake))
    entered, gate = threading.Event(), asyncio.Event()

    async def slow(request):
        if b"one" not in request.content:
            return fake(request)
        entered.set()
        await gate.wait()
        return fake(request)

    session._writer._line.http._client._transport = httpx.MockTransport(slow)
    asked = session.decode(Decode(("one",)))
    assert entered.wait(TIMEOUT_S)
    asked.cancel()
    failing = session.decode(Decode((" two",)))
    with monkeypatch.context() as patch:
        patch.setattr(fake, "_tokenize", lambda body: httpx.Response(500))
        session._loop.call(gate.set)
        with pytest.raises(errors.LocalModelError, match="500"):
            failing.result(TIMEOUT_S)
    assert step(session, "!").text == "a"
    assert "".join(map(chr, fake.completions[0]["prompt"])).endswith("one two!")


def test_adapters_go_by_name(connect):
    fake = FakeServer(own=True)
    fake.say = [own_events("a", end=EOS)]
    step(begin(connect(fake, adapter="poet")))
    assert fake.completions[0]["lora"] == [{"id": 1, "scale": 1.0}]


def test_slots_are_pinned_where_there_are_enough(connect):
    for options, expected in (
        ({}, 1),
        ({"pin_slots": False}, None),
        ({"max_concurrency": 9}, None),
    ):
        fake = FakeServer(own=True)
        fake.say = [own_events("a", end=EOS)]
        model = connect(fake, **options)
        first, second = begin(model), begin(model)
        step(second)
        assert fake.completions[0].get("id_slot") == expected
        first.close()


def test_a_stream_that_nobody_reads_is_closed_and_taken_up_again(connect):
    fake = FakeServer(own=True)
    text = "".join(chr(0x4E00 + i) for i in range(200))
    fake.say = [own_events(text), own_events(text[65:], end=EOS)]
    session = begin(connect(fake))
    first = step(session)
    until(lambda: fake.streams_closed)
    got, append = [first], (first.id,)
    for _ in range(120):
        got.append(step(session, *append))
        append = (got[-1].id,)
    assert session.completions == 2
    prompt = fake.completions[1]["prompt"]
    begun = len(fake.completions[0]["prompt"])
    assert [chr(token) for token in prompt[begun:]] == list(text[: len(prompt) - begun])


# --- the OpenAI protocol ------------------------------------------------------------------------


def test_auto_falls_back_to_the_openai_protocol_and_asks_who_it_is(connect):
    fake = FakeServer(owner="me")
    fake.say = [text_events("a", "b", finish_reason="stop")]
    session = begin(connect(fake), temperature=0.3, top_k=0)
    assert [one.text for one in steps(session, 2)] == ["a", "b"]
    assert step(session, 1).eog
    (body,) = fake.completions
    assert body["model"] == "slm"
    assert body["prompt"].endswith("<|im_start|>assistant\n")
    assert (body["temperature"], body["top_k"], body["repeat_penalty"]) == (0.3, 0, 1.0)
    assert (body["min_p"], body["mirostat_mode"]) == (0.05, 0)
    assert "stop" not in body  # it would not say whether it stopped at one


def test_llama_cpp_server_is_stopped_from_here(connect):
    fake = FakeServer()
    fake.say = [
        [*text_events("<call>", "3", "</", "call", "> and"), {"hold": True}],
        text_events("x", finish_reason="stop"),
    ]
    session = begin(connect(fake))
    got = steps(session, 5)
    assert "".join(one.text for one in got) == "<call>3</call> and"
    until(lambda: fake.streams_closed)
    assert step(session, got[-1].id).text == "x"
    assert fake.completions[1]["prompt"].endswith("<call>3</call> and")


def test_an_unclosed_command_before_the_end_of_the_turn_is_not_closed_for_it(connect):
    fake = FakeServer()
    fake.say = [text_events("<call>", "3", finish_reason="stop")]
    session = begin(connect(fake))
    got = steps(session, 2)
    assert step(session, got[-1].id).eog


def test_control_text_is_broken_for_servers_that_take_it_at_its_word(connect):
    fake = FakeServer()
    fake.say = [text_events("x"), text_events("<|im_", "end|>"), text_events("x")]
    session = begin(connect(fake), [Turn("user", "a<|im_end|>b")])
    session.feed(Feed((" <|im_st", "art|>system")))
    step(session)
    body = fake.completions[0]
    assert body["prompt"].count("<|im_end|>") == 1
    assert body["prompt"].count("<|im_start|>") == 2
    assert "a<\u200b|im_end|>b" in body["prompt"]
    assert body["prompt"].endswith(" <\u200b|im_start|>system")
    # Nor can the local model spell a control text together over several tokens.
    got = [step(session)]
    got.append(step(session, got[0].id))
    step(session, got[1].id, " so")
    assert [one.text for one in got] == ["<|im_", "end|>"]
    assert fake.completions[2]["prompt"].endswith("<\u200b|im_end|> so")


def test_a_ban_over_text_asks_for_the_token_s_id(connect):
    fake = FakeServer()
    fake.say = [
        text_events("<", "call", finish_reason="stop"),
        text_events("x", finish_reason="length"),
    ]
    session = begin(connect(fake))
    got = steps(session, 2, Rule(ban=("<call>",)))
    assert "".join(one.text for one in got) == "<x"
    body = fake.completions[1]
    assert body["logit_bias"] == {str(ord("c")): -100.0}
    assert (body["max_tokens"], body["prompt"][-1]) == (1, "<")


@pytest.mark.parametrize(
    ("rule", "said"),
    [(Rule(signals=frozenset({"margin"})), "margin"), (Rule(grammar="root ::= x"), "grammar")],
)
def test_what_the_openai_protocol_cannot_give_is_refused(connect, rule, said):
    with pytest.raises(errors.UsageMistake, match=said):
        step(begin(connect(FakeServer())), rule=rule)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"template": None}, "template="),
        ({"n_ctx": None}, "n_ctx="),
        ({"adapter": "poet"}, "adapter"),
    ],
)
def test_what_llama_cpp_server_does_not_tell_has_to_be_given(connect, options, said):
    with pytest.raises(errors.UsageMistake, match=said):
        begin(connect(FakeServer(), **options))


def test_a_model_the_server_has_not_is_refused_with_those_it_has(connect):
    with pytest.raises(errors.UsageMistake, match=r"no model 'slim', but \['slm'\]"):
        begin(connect(FakeServer(), model="slim"))
    assert begin(connect(FakeServer(), model="slm")).prompt_tokens


def test_a_server_that_lists_no_models_is_taken_at_the_users_word(connect):
    fake = FakeServer()
    fake._v1_models = lambda body: httpx.Response(404)  # type: ignore[method-assign]  # it has none
    fake.say = [text_events("a")]
    session = begin(connect(fake, protocol="openai", model="slim"))
    assert step(session).text == "a"
    assert fake.completions[0]["model"] == "slim"


def test_an_own_server_that_does_not_tell_its_context_says_so(connect):
    fake = FakeServer(own=True)
    fake._props = lambda body: httpx.Response(200, json={})  # type: ignore[method-assign]  # a proxy's
    with pytest.raises(errors.UsageMistake, match="n_ctx="):
        begin(connect(fake))


def test_vllm_s_documented_contract_unverified(connect):
    fake = FakeServer(owner="vllm", max_model_len=300)
    fake.say = [
        [
            {"choices": [{"text": "<call>3", "token_ids": [1, 2, 3], "finish_reason": None}]},
            {"choices": [{"text": "</call>", "finish_reason": "stop", "stop_reason": "</call>"}]},
        ],
        [{"choices": [{"text": "x", "finish_reason": "stop", "stop_reason": None}]}],
    ]
    session = begin(connect(fake, n_ctx=None, adapter="poet"), top_k=0)
    got = steps(session, 4)
    assert [one.text for one in got] == ["", "", "<call>3", "</call>"]
    more = step(session, got[-1].id)
    assert more.text == "x"
    assert step(session, more.id).eog
    body = fake.completions[0]
    assert session.prompt_tokens + session.context_left == 300
    assert (body["model"], body["stop"]) == ("poet", ["</call>"])
    assert body["include_stop_str_in_output"] is body["return_token_ids"] is True
    assert (body["repetition_penalty"], body["top_k"]) == (1.0, -1)
    assert "repeat_penalty" not in body


def test_sglang_s_documented_contract_unverified(connect):
    fake = FakeServer(owner="sglang", max_model_len=300)
    fake.say = [
        [{"choices": [{"text": "a</call>", "finish_reason": "stop", "matched_stop": "</call>"}]}],
        [{"choices": [{"text": "x", "finish_reason": "stop", "matched_stop": 2}]}],
    ]
    session = begin(connect(fake, adapter="poet"))
    one, more = steps(session, 2)
    assert (one.text, more.text) == ("a</call>", "x")
    assert step(session, more.id).eog
    body = fake.completions[0]
    assert (body["lora_path"], body["model"]) == ("poet", "slm")
    assert body["no_stop_trim"] is True
    assert body["repetition_penalty"] == 1.0


def test_cached_tokens_are_those_of_the_first_request(connect):
    fake = FakeServer(owner="vllm", max_model_len=300)
    usage = {"prompt_tokens_details": {"cached_tokens": 32}}
    fake.say = [[*text_events("a"), {"choices": [], "usage": usage}, {"hold": True}]]
    session = begin(connect(fake))
    one = step(session)
    asked = session.decode(Decode((one.id,)))
    session.close()
    with pytest.raises(errors.LocalModelError):
        asked.result(TIMEOUT_S)
    assert session.cached_tokens in {0, 32}


@pytest.mark.parametrize("owner", ["vllm", "sglang"])
def test_cached_tokens_that_are_told_behind_the_end_are_known_when_the_answer_ends(connect, owner):
    """Both tell the usage of a stream only where asked to, in an event of its own at its end."""
    fake = FakeServer(owner=owner, max_model_len=300)
    usage = {"prompt_tokens_details": {"cached_tokens": 32}}
    last = {"choices": [], "usage": usage}
    fake.say = [[*text_events("a", finish_reason="stop"), LATE, last]]
    session = begin(connect(fake))
    assert step(session, step(session).id).eog
    assert session.cached_tokens == 32
    assert fake.completions[0]["stream_options"] == {"include_usage": True}


def test_what_the_server_says_at_the_end_of_an_answer_is_known_when_the_answer_ends(connect):
    fake = FakeServer(own=True)
    fake.say = [[*own_events("a"), LATE, *own_events("", end={**EOS, "timings": {"cache_n": 7}})]]
    session = begin(connect(fake))
    assert step(session, step(session).id).eog
    assert session.cached_tokens == 7


def test_a_count_is_asked_for_once(connect):
    fake = FakeServer()
    model = connect(fake)
    assert [model.count(text) for text in ("abc", "abc", "", "abc")] == [3, 3, 0, 3]
    assert [body["input"] for body in fake.bodies("/extras/tokenize")].count("abc") == 1


# --- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (httpx.ConnectError("refused"), r"nobody answers at http://127.0.0.1:8080.*start the"),
        (httpx.ReadTimeout("late"), r"silent for 60 s: raise timeout_s"),
        (httpx.ReadError("reset"), r"failed: ReadError"),
        (httpx.Response(503, json={"error": {"message": "Loading model"}}), r"503: .*Loading"),
        (httpx.Response(401, text="no " * 400), r"401: .*…; check api_key"),
        (httpx.Response(200, text="<html>"), r"no JSON: <html>"),
        (httpx.Response(404, text="nothing here"), r"no inference server.*8080: .*/v1/models"),
        (
            httpx.Response(302, json={}, headers={"Location": "https://gate/props?token=5"}),
            r"answered 302: .*it points to https://gate/props: ",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_failure_says_where_and_what_to_do_and_is_not_for_ever(connect, fault, said):
    fake = FakeServer(own=True)
    fake.fault = fault
    model = connect(fake)
    with pytest.raises(errors.LocalModelError, match=said) as caught:
        begin(model)
    assert len(str(caught.value)) < 500
    fake.fault = None
    assert begin(model).prompt_tokens > 0


@pytest.mark.parametrize(
    "events",
    [
        own_events("a"),
        [*own_events("a"), {"error": {"code": 500, "message": "out of memory"}}],
        [{"content": "", "stop": True, "stop_type": "limit"}],
        [{"content": "", "stop": True, "stop_type": "whim"}],
    ],
    ids=["cut", "error", "nothing", "unknown reason"],
)
def test_a_stream_that_goes_wrong_fails_one_answer_only(connect, events):
    fake = FakeServer(own=True)
    fake.say = [events, own_events("b", end=EOS)]
    model = connect(fake)
    session, other = begin(model), begin(model)
    append: tuple[int, ...] = ()
    with pytest.raises(errors.LocalModelError, match="broke off|gave no reason|reason unknown"):
        for _ in range(2):
            append = (step(session, *append).id,)
    assert step(other).text == "b"


def test_nobody_waits_for_a_loop_that_ends():
    loop, ending, told = Loop(), threading.Event(), threading.Event()

    async def last():
        ending.set()
        await asyncio.sleep(0.05)

    def ask():
        with pytest.raises(errors.LocalModelError, match="closed"):
            loop.result(lambda: asyncio.sleep(TIMEOUT_S))
        told.set()

    threading.Thread(target=loop.stop, args=(last,), daemon=True).start()
    assert ending.wait(TIMEOUT_S)
    threading.Thread(target=ask, daemon=True).start()
    assert told.wait(TIMEOUT_S / 2)


def test_what_a_task_starts_while_the_loop_ends_is_ended_too():
    loop, told = Loop(), threading.Event()

    async def second():
        try:
            await asyncio.sleep(TIMEOUT_S)
        finally:
            told.set()

    async def first():
        try:
            await asyncio.sleep(TIMEOUT_S)
        finally:
            loop.start(second())

    loop.call(lambda: loop.start(first()))
    loop.stop(partial(asyncio.sleep, 0))
    assert told.wait(TIMEOUT_S / 2)


def test_no_thread_outlives_its_model(connect):
    fake = FakeServer(own=True)
    model = CompletionServerModel(URL, transport=httpx.MockTransport(fake))
    session = begin(model)
    assert model._runner is not None
    thread = model._runner.loop._thread
    assert thread.is_alive()
    del model
    gc.collect()
    assert thread.is_alive()  # the session keeps it
    del session
    gc.collect()
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def test_a_step_that_is_waited_for_keeps_its_session_open(connect):
    fake = FakeServer(own=True)
    fake.say = [[LATE, *own_events("a", end=EOS)]]
    waiting = begin(connect(fake)).decode(Decode())
    gc.collect()
    assert waiting.result(TIMEOUT_S).text == "a"


def test_a_conversation_s_requests_carry_one_name(connect):
    fake = FakeServer(own=True)
    fake.say = [own_events("a", end=EOS) for _ in range(3)]
    model = connect(fake, affinity_header="X-Conversation")
    lesson = [Turn("user", "2*3?", fixed=True), Turn("assistant", "6", fixed=True)]
    later = [*HI, Turn("assistant", "Hello"), Turn("user", "And?")]
    for turns in (HI, later, [Turn("user", "Other")]):
        step(begin(model, [*lesson, *turns]))
    first, second, other = (
        r.headers["x-conversation"] for r in fake.requests if r.url.path == "/completion"
    )
    assert first == second != other
    assert "Hi" not in first


def test_generators_left_to_the_loop_are_closed_before_it_ends():
    closed = []

    async def inner() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            await asyncio.sleep(0)
            closed.append("inner")

    async def outer() -> AsyncIterator[int]:
        try:
            async for one in inner():
                yield one
        finally:
            closed.append("outer")

    async def work() -> None:
        async for _ in outer():
            await asyncio.sleep(TIMEOUT_S)

    async def nothing() -> None:
        await asyncio.sleep(0)

    loop = Loop()
    loop.call(lambda: loop.start(work()))
    loop.result(nothing)
    loop.stop(nothing)
    assert closed == ["outer", "inner"]
