"""What a prompt finds in the KV cache: its own conversation, a system prompt, a file."""

from __future__ import annotations

import subprocess
import sys

import pytest
from langchain_core.messages import AIMessage, HumanMessage

from langchain_relay import RelayChatModel, relay_report
from langchain_relay.engine.events import Decode, Feed
from langchain_relay.engine.policy import Handoff, Keep
from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.local import LlamaCppModel
from langchain_relay.policies.watch import LocalWatch
from langchain_relay.testing import ScriptedDelegate

pytestmark = [pytest.mark.gguf, pytest.mark.xdist_group("gguf")]

TIMEOUT_S = 60
QUESTION = "What is 23*17?"
LONG_SYSTEM = "You are a helpful guide to an old city. " * 12
MARKS = 4
"""`<|im_end|>` and a newline close an answer; the issue allows for four such tokens."""


@pytest.fixture(scope="module")
def local():
    with LlamaCppModel(n_threads=2, n_ctx=2048, max_concurrency=3) as model:
        yield model


class Watched:
    """Passes everything on and remembers the sessions."""

    def __init__(self, model):
        self._model = model
        self.name, self.fingerprint = model.name, model.fingerprint
        self.count = model.count
        self.sessions = []

    def open(self, *args, **kwargs):
        future = self._model.open(*args, **kwargs)
        future.add_done_callback(lambda done: self.sessions.append(done.result()))
        return future


def relay(local, *replies, **fields):
    settings = {"temperature": 0.0, "max_tokens": 60, **fields}
    return RelayChatModel(model=local, delegate=ScriptedDelegate(*replies), **settings)


def open_on(model, *turns, **sampling):
    settings = Sampling(**{"temperature": 0.0, **sampling})
    return model.open(turns, settings).result(TIMEOUT_S)


def write(session, n):
    text = ""
    append: tuple[int, ...] = ()
    for _ in range(n):
        got = session.decode(Decode(append)).result(TIMEOUT_S)
        if got.eog:
            break
        text, append = text + got.text, (got.id,)
    session.feed(Feed(append))
    return text


def test_the_second_turn_evaluates_what_is_new_though_commands_were_hidden(local):
    """The answer has calls, its text was sent without them, and the ids were sampled."""
    watched = Watched(local)
    model = relay(watched, "391", "Paris, on the Seine")
    history = [HumanMessage(QUESTION)]
    for question in ("And the capital of France?", "Thank you. And of Italy?"):
        answer = model.invoke(history)
        history += [answer, HumanMessage(question)]
    first = history[1]
    assert first.response_metadata["relay"]["commands"], "no call, so this test shows nothing"
    answer = model.invoke(history)
    _, *later = watched.sessions
    for session in later:
        assert 0 < session.prompt_tokens - session.cached_tokens <= 30
    details = answer.usage_metadata["input_token_details"]
    assert details == {"cache_read": later[-1].cached_tokens}
    new = local.count("Thank you. And of Italy?<|im_start|>user\n<|im_start|>assistant\n")
    assert later[-1].prompt_tokens - later[-1].cached_tokens <= new + MARKS


class TwoCommands(LocalWatch):
    """Takes the 20th and the 40th token for a command that is hidden, and has 8 tokens written."""

    max_span_tokens = max_calls = None
    taught = False

    def __init__(self):
        self.seen = 0

    def watch(self, context):
        return TwoCommands()

    def step(self, step, held):
        self.seen += 1
        return Handoff(8, cause="test", held="hide") if self.seen in (20, 40) else Keep()


def test_a_long_conversation_with_two_calls_evaluates_its_new_tokens_only():
    """1,500 tokens, two hand-overs in the first turn, and the exact count in the second."""
    story = " The river rises in the hills and runs through seven towns." * 100
    with LlamaCppModel(n_threads=2, n_ctx=2560, max_concurrency=2) as local:
        watched = Watched(local)
        model = relay(watched, " over the old stone bridge", policy=TwoCommands())
        long = [HumanMessage(f"Go on with this story for long:{story}")]
        answer = model.invoke(long, max_tokens=300)
        assert relay_report(answer).calls == 2
        assert len(answer.response_metadata["relay"]["commands"]) == 2
        first = watched.sessions[0]
        assert local._runner is not None
        local._runner.leave(object())  # behind close(), which takes back what was decoded ahead
        conversation = first.prompt_tokens + len(first._lease.sequence.written)
        assert conversation >= 1500
        second = model.invoke([*long, answer, HumanMessage("And then?")], max_tokens=5)
        session = watched.sessions[-1]
        new = session.prompt_tokens - conversation
        assert 0 < new < 20
        assert session.prompt_tokens - session.cached_tokens <= new + MARKS
        assert second.usage_metadata["input_token_details"]["cache_read"] == session.cached_tokens
        assert second.usage_metadata["input_tokens"] == session.prompt_tokens
        assert session.evaluated_tokens <= session.prompt_tokens - session.cached_tokens + 5 + 8


def test_the_text_of_a_later_turn_does_not_depend_on_what_is_reused(local):
    history = [HumanMessage(QUESTION), AIMessage("It is 391."), HumanMessage("And 23*18?")]
    model = relay(local, "391")
    model.invoke(history[:1])
    warm = model.invoke(history).text
    warmer = model.invoke(history).text
    with LlamaCppModel(n_threads=2, n_ctx=2048, max_concurrency=3, share=False) as fresh:
        assert relay(fresh, "391").invoke(history).text == warm == warmer


def test_a_system_prompt_is_copied_from_a_chat_that_still_writes(local):
    system = Turn("system", LONG_SYSTEM)
    first = open_on(local, system, Turn("user", "Where is the market?"))
    alone = write(first, 8)
    second = open_on(local, system, Turn("user", "Is there a cathedral?"))
    assert second.cached_tokens >= local.count(LONG_SYSTEM)
    beside = write(second, 8)
    alone += write(first, 8)  # the donor lost nothing
    first.close()
    second.close()
    with LlamaCppModel(n_threads=2, n_ctx=2048, max_concurrency=3, share=False) as fresh:
        for question, text in (("Where is the market?", alone), ("Is there a cathedral?", beside)):
            session = open_on(fresh, system, Turn("user", question))
            assert (write(session, 8) + write(session, 8)).startswith(text)
            session.close()


def test_three_conversations_in_turn_each_find_their_own(local):
    chats = [[Turn("user", f"Tell me about the number {n}.")] for n in (3, 5, 7)]
    for turns in chats:
        session = open_on(local, *turns)
        text = write(session, 10)
        session.close()
        turns += [Turn("assistant", text), Turn("user", "Go on.")]
    for turns in chats:
        session = open_on(local, *turns)
        assert session.prompt_tokens - session.cached_tokens <= 16
        session.close()


def test_an_edited_answer_is_evaluated_from_the_edit_on(local):
    question = Turn("user", "Tell me about lighthouses in Brittany.")
    session = open_on(local, question)
    text = write(session, 20)
    session.close()
    edited = text.replace(text.split()[5], "seventeen")
    again = open_on(local, question, Turn("assistant", edited), Turn("user", "Go on."))
    shown = b"".join(map(again._vocab.piece, again._lease.sequence.tokens)).decode()
    again.close()
    assert edited in shown
    assert text not in shown


OTHER_PROCESS = """
import sys
from langchain_relay.engine.events import Decode
from langchain_relay.engine.values import Sampling, Turn
from langchain_relay.local import LlamaCppModel
with LlamaCppModel(n_threads=2, n_ctx=2048, max_concurrency=1, state_dir=sys.argv[1]) as model:
    turns = [Turn("system", sys.argv[2]), Turn("user", sys.argv[3])]
    session = model.open(turns, Sampling(temperature=0.0)).result(60)
    text, append = "", ()
    for _ in range(8):
        got = session.decode(Decode(append)).result(60)
        text, append = text + got.text, (got.id,)
    print(session.cached_tokens, repr(text))
"""


def in_another_process(folder, question):
    command = [sys.executable, "-c", OTHER_PROCESS, str(folder), LONG_SYSTEM, question]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    cached, _, text = done.stdout.strip().partition(" ")
    return int(cached), text


def test_the_next_process_finds_the_system_prompt_on_disk(local, tmp_path):
    folder = tmp_path / "states"
    assert in_another_process(folder, "Where is the market?")[0] == 0
    (file,) = folder.iterdir()
    cached, text = in_another_process(folder, "Is there a cathedral?")
    assert cached >= local.count(LONG_SYSTEM)
    assert len(list(folder.iterdir())) == 1
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(damaged)
    assert in_another_process(folder, "Is there a cathedral?") == (0, text)
    assert in_another_process(folder, "Is there a cathedral?") == (cached, text)


def test_the_lesson_is_kept_on_disk_with_the_system_prompt(tmp_path):
    reads = []
    for question in ("Where is the market?", "Is there a cathedral?"):
        with LlamaCppModel(n_threads=2, n_ctx=1024, state_dir=tmp_path, share=False) as model:
            relay = RelayChatModel(model=model, delegate=ScriptedDelegate(""), max_tokens=1)
            usage = relay.invoke(question).usage_metadata
        assert usage is not None
        reads.append((usage["input_tokens"], usage["input_token_details"]["cache_read"]))
    (_, cold), (prompt_tokens, warm) = reads
    assert cold == 0
    assert prompt_tokens - warm < 20  # the question and what the template puts around it
    assert len(list(tmp_path.iterdir())) == 1


def test_conversations_that_change_places_lose_nothing(local):
    """Two chats that lie apart go on side by side, as they would have gone on alone."""
    questions = [f"Tell me a fact about the number {n}." for n in (11, 12, 13)]
    chats = [open_on(local, Turn("user", question)) for question in questions]
    firsts = [write(session, 10) for session in chats]
    alone = [write(session, 6) for session in chats]
    ids = [session._lease.sequence.id for session in chats]
    for session in chats:
        session.close()
    moved = []
    for number in (0, 2):
        turns = [Turn("user", questions[number]), Turn("assistant", firsts[number] + alone[number])]
        session = open_on(local, *turns, Turn("user", "Another one."))
        assert session.prompt_tokens - session.cached_tokens <= 17
        moved.append(session)
    places = [session._lease.sequence.id for session in moved]
    assert abs(places[0] - places[1]) == 1
    assert places != [ids[0], ids[2]]
    texts = [write(session, 8) for session in moved]
    for session in moved:
        session.close()
    with LlamaCppModel(n_threads=2, n_ctx=2048, max_concurrency=3, share=False) as fresh:
        for number, text in zip((0, 2), texts, strict=True):
            question = Turn("user", questions[number])
            first = open_on(fresh, question)
            assert write(first, 10) + write(first, 6) == firsts[number] + alone[number]
            first.close()
            said = Turn("assistant", firsts[number] + alone[number])
            session = open_on(fresh, question, said, Turn("user", "Another one."))
            assert write(session, 8) == text
            session.close()
