"""The chat over scripted models: commands, colors, Ctrl-C, errors, and who is asked."""

from __future__ import annotations

import asyncio
import io
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from rich.console import Console

from langchain_relay import Budget, RelayChatModel, policies, relay_report
from langchain_relay.cli import chat as chat_module
from langchain_relay.cli.chat import POLICIES, Chat, Face, Settings, history_file
from langchain_relay.cli.conversation import Conversation, Piece
from langchain_relay.cli.demo import Hosted
from langchain_relay.cli.options import PolicyName
from langchain_relay.engine.values import Attempt, Delta
from langchain_relay.errors import PriceUnknown, UnknownDelegate, UsageMistake
from langchain_relay.local import CompletionServerModel, models
from langchain_relay.testing import FailingDelegate, ScriptedDelegate, ScriptedLocal

PIECES = ("It is ", "<call>4</call>", " today.")
PRICES = {"scripted": ("1", "2")}


class Talk:
    """A chat whose lines are given, and all that it printed."""

    def __init__(self, *lines: str, person: bool = True, color: bool = False, **fields: Any):
        fields = {"model": ScriptedLocal(*PIECES), "prices": PRICES, **fields}
        fields.setdefault("delegate", ScriptedDelegate("3 degrees", usage=(30, 2)))
        self.relay = RelayChatModel(**fields)
        self.face = Face(_console(color), _console(color=False), lambda: iter(lines), person)
        self.chat = Chat(self.relay, self.face, Conversation())

    def run(self) -> int:
        return self.chat.run()

    @property
    def out(self) -> str:
        return printed(self.face.out)

    @property
    def aside(self) -> str:
        return printed(self.face.aside)


def printed(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _console(color: bool) -> Console:
    system = "standard" if color else None
    return Console(
        file=io.StringIO(),
        color_system=system,  # type: ignore[arg-type]
        force_terminal=color,
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


class PressesCtrlC(ScriptedDelegate):
    """Two words, then Ctrl-C while the third is awaited; from the second call on it answers."""

    async def astream(self, attempt: Attempt) -> AsyncIterator[Delta]:
        if self.attempts:
            async for delta in super().astream(attempt):
                yield delta
            return
        self.attempts.append(attempt)
        yield Delta(text="3")
        yield Delta(text=" deg")
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(60)


# --- answers ------------------------------------------------------------------------------------


def test_an_answer_is_streamed_with_its_status_behind_it():
    talk = Talk("How cold?")
    assert talk.run() == 0
    assert talk.out == "It is 3 degrees today.\n"
    assert talk.aside.startswith("1 call · ")
    assert "prompt tokens cached" in talk.aside


def test_hosted_words_are_colored_and_local_ones_are_not():
    talk = Talk("How cold?", color=True)
    talk.run()
    assert "It is " in talk.out.split("\x1b")[0]
    assert "\x1b[1;35m3\x1b[0m\x1b[1;35m degrees\x1b[0m today." in talk.out


def test_without_colors_there_are_no_escape_codes_whatever_a_model_writes():
    talk = Talk("How cold?", "/report", model=ScriptedLocal("It\x1b[2J is\r\x07", "\x9b1m."))
    talk.run()
    assert "It\ufffd[2J is\ufffd\ufffd1m.\n" in talk.out
    assert not {"\x1b", "\x9b", "\x07", "\r"} & set(talk.out + talk.aside)


def test_later_questions_go_with_the_earlier_answers_commands_included():
    local = ScriptedLocal(*PIECES)
    talk = Talk("How cold?", "", "And now?", model=local)
    talk.run()
    first, second = local.prompts
    assert [turn.content for turn in second[len(first) :]] == [
        "It is <call>4</call>3 degrees today.",
        "And now?",
    ]


def test_an_error_is_one_line_and_the_chat_goes_on():
    local = ScriptedLocal("Fine.", n_ctx=6)
    talk = Talk("one two three four five six seven", "How?", model=local, teach="none")
    assert talk.run() == 0
    assert talk.out == "Fine.\n"
    (line,) = [line for line in talk.aside.splitlines() if "ContextOverflowError" in line]
    assert "/new" in line
    assert "nothing was written; the question is not kept" in talk.aside
    assert [turn.content for turn in local.prompts[-1]] == ["How?"]


def test_an_error_in_the_middle_keeps_what_was_written():
    talk = Talk(
        "How cold?",
        "And now?",
        delegate=FailingDelegate(OSError("gone"), after="3 deg", then="nice", times=1),
        max_retries=0,
        on_delegate_error="raise",
    )
    talk.run()
    first = talk.chat.conversation.messages[1]
    assert first.text == "It is 3 deg"
    assert "DelegateError: OSError: gone" in talk.aside
    assert talk.chat.conversation.messages[3].text == "It is nice today."


def test_over_a_pipe_an_error_makes_the_exit_status_1():
    assert Talk("How cold?", person=False).run() == 0
    assert Talk("/nonsense", "How cold?", person=False).run() == 1
    assert Talk("/nonsense", "How cold?", person=True).run() == 0


# --- Ctrl-C -------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_answer_keeps_and_charges_it_and_the_chat_goes_on():
    local, delegate = ScriptedLocal(*PIECES), PressesCtrlC("4 degrees")
    talk = Talk("How cold?", "And now?", model=local, delegate=delegate)
    assert talk.run() == 0
    assert talk.out == "It is 3 deg\nIt is 4 degrees today.\n"
    stopped, after = talk.aside.splitlines()
    assert stopped.startswith("stopped · 1 call (1 failed) · ")
    assert " at most" in stopped
    assert after.startswith("1 call · ")
    assert local.open_sessions == 0
    _, first, _, second = talk.chat.conversation.messages
    report = relay_report(first)
    assert [(s.author, s.text) for s in report.spans] == [
        ("local", "It is "),
        ("delegate", "3 deg"),
    ]
    costs = report.cost_nanousd, relay_report(second).cost_nanousd
    assert talk.chat.conversation.spent_nanousd == sum(cost or 0 for cost in costs)
    assert report.cost_nanousd


def test_ctrl_c_over_a_pipe_ends_the_program():
    talk = Talk("How cold?", "And now?", person=False, delegate=PressesCtrlC("4 degrees"))
    with pytest.raises(KeyboardInterrupt):
        talk.run()
    assert talk.out == "It is 3 deg\n"


def test_afterwards_ctrl_c_is_what_it_was_before():
    before = signal.getsignal(signal.SIGINT)
    Talk("How cold?").run()
    assert signal.getsignal(signal.SIGINT) is before


# --- commands -----------------------------------------------------------------------------------


def test_delegation_holds_from_then_on():
    local = ScriptedLocal("It is ", "cold.")
    talk = Talk("/delegation", "/delegation always", "a", "/delegation never", "b", model=local)
    talk.run()
    assert talk.out == "3 degrees\nIt is cold.\n"
    told = [line for line in talk.aside.splitlines() if line.startswith("delegation:")]
    assert told == ["delegation: auto", "delegation: always", "delegation: never"]


def test_report_shows_the_last_answer():
    talk = Talk("/report", "How cold?", "/report")
    talk.run()
    assert talk.aside.startswith("there is no answer yet to report on\n")
    assert "It is [3 degrees] today.\nspans: 3\ncalls: 1 (0 denied, 0 failed)\n" in talk.out


def test_new_forgets_what_was_said():
    local = ScriptedLocal("Fine.")
    talk = Talk("a", "/new", "b", model=local, teach="none")
    talk.run()
    assert [turn.content for turn in local.prompts[-1]] == ["b"]


def test_save_writes_again_only_what_it_wrote_itself(tmp_path: Path):
    mine, other, nowhere = tmp_path / "t.md", tmp_path / "o.md", tmp_path / "no" / "t.md"
    other.write_text("dear diary")
    talk = Talk("a", f"/save {mine}", "b", f"/save {mine}", f"/save {other}", f"/save {nowhere}")
    talk.run()
    assert mine.read_text().count("**you:**") == 2
    assert other.read_text() == "dear diary"
    assert "saved 2 messages" in talk.aside
    assert "saved 4 messages" in talk.aside
    assert "exists and was not saved by this chat" in talk.aside
    assert "cannot save" in talk.aside


def test_quit_ends_it_and_help_lists_the_commands():
    talk = Talk("/help", "/quit", "a")
    assert talk.run() == 0
    assert "/delegation never|auto|always" in talk.aside
    assert talk.out == ""


# --- the prompt ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "lines"),
    [
        ("one\rtwo\r\x04", ["one", "two"]),
        ("one\r\x03", ["one"]),
        ("half\x03whole\r\x04", ["whole"]),
    ],
    ids=["ctrl-d ends", "ctrl-c ends", "ctrl-c clears a line"],
)
def test_keys_at_the_prompt(keys, lines):
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        typed.send_text(keys)
        assert list(chat_module._prompted(PromptSession())) == lines


def test_history_is_kept_where_state_belongs_and_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        typed.send_text("my secret\r\x04")
        list(chat_module._prompted(chat_module._session()))
        later = chat_module._session()
    assert list(later.history.load_history_strings()) == ["my secret"]
    assert tmp_path in history_file().parents
    assert history_file().stat().st_mode & 0o077 == 0


def test_a_home_that_cannot_be_written_costs_the_history_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    with create_pipe_input() as typed, create_app_session(input=typed, output=DummyOutput()):
        typed.send_text("one\r\x04")
        assert list(chat_module._prompted(chat_module._session())) == ["one"]


# --- who writes ---------------------------------------------------------------------------------


def settings(**fields: Any) -> Settings:
    given = {"delegate": None, "policy": "never", "budget_usd": None, "max_tokens": 9, **fields}
    return Settings(**{"model": "smollm2-135m", **given})


def test_every_policy_has_a_name_on_the_command_line():
    assert {name.value for name in PolicyName} == set(POLICIES)
    assert {type(make()).__name__ for make in POLICIES.values()} == set(policies.__all__)


def test_the_default_budget_holds_where_a_price_is_known_and_an_asked_one_always():
    local: Any = ScriptedLocal("x")
    priced = Hosted(ScriptedDelegate("x"), {"scripted": ("1", "2")}, "")
    unpriced = Hosted(ScriptedDelegate("x"), {}, "")
    assert chat_module._relay(settings(), local, priced).budget == Budget(usd="0.01")
    assert chat_module._relay(settings(), local, unpriced).budget is None
    with pytest.raises(PriceUnknown):
        chat_module._relay(settings(budget_usd="0.02"), local, unpriced)
    with pytest.raises(UsageMistake, match="temperature"):
        chat_module._relay(settings(temperature=-1.0), local, unpriced)


def test_a_url_is_a_completion_server_which_has_its_own_threads():
    hosted = Hosted("openai:gpt-5-mini", {}, "")
    url = "http://127.0.0.1:9"
    assert isinstance(chat_module._local(settings(model=url), hosted), CompletionServerModel)
    with pytest.raises(UsageMistake, match="--threads"):
        chat_module._local(settings(model=url, n_threads=1), hosted)
    with pytest.raises(UsageMistake, match="--tokenizer"):
        chat_module._local(settings(tokenizer="smollm2-135m"), hosted)


def test_without_key_and_stand_in_the_message_says_what_to_give(monkeypatch: pytest.MonkeyPatch):
    gone = models.PackagedModel(package="no_such_package", file="x.gguf", install="x")
    monkeypatch.setattr(models, "ALIASES", {"smollm2-135m": gone})
    says = pytest.raises(UnknownDelegate, match="--delegate openai:.*OPENAI_API_KEY")
    with says, chat_module._hosted(settings()):
        pass


def test_a_piece_that_ends_a_line_needs_no_further_end():
    face = Face(_console(color=False), _console(color=False), lambda: iter(()), person=True)
    face.show(Piece("one\n", "local"))
    face.end_line()
    face.show(Piece("two", "local"))
    face.end_line()
    face.end_line()
    assert printed(face.out) == "one\ntwo\n"
