"""`langchain-relay chat` as a user runs it: in a pseudo-terminal, over a pipe, on a server."""

from __future__ import annotations

import codecs
import json
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from langchain_core.messages import messages_from_dict

from langchain_relay import relay_report
from tests.servers import completion_servers

pytestmark = [pytest.mark.gguf, pytest.mark.xdist_group("gguf"), pytest.mark.timeout(300)]

TIMEOUT_S = 90
RUN = "from langchain_relay.cli import main; main()"
RUN_IN_TERMINAL = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {RUN}"
PROMPT = r"\x1b\[\?2004h"  # a line editor asks the terminal to mark what is pasted
ENTERED = r"\x1b\[\?2004l"
HOSTED = r"\x1b\[1;35m[^\x1b]+\x1b\[0m"
KEYED = ("--delegate", "openai:gpt-5-mini")  # never asked
CTRL_C, CTRL_D, UP = "\x03", "\x04", "\x1b[A"


def environment(state: Path, arguments: tuple[str, ...]) -> dict[str, str]:
    own = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "XDG_STATE_HOME": str(state)}
    key = {"OPENAI_API_KEY": "none"} if "--delegate" in arguments else {}
    return {**os.environ, **own, **key}


class Terminal:
    """The program in a terminal of its own, and somebody who reads and types."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._ours = ours
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._unread = ""

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def expect(self, pattern: str) -> str:
        """Read up to the end of what `pattern` matches."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := re.search(pattern, self._unread)):
            ready, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come, but {self._unread!r}"
            self._unread += self._read(pattern)
        self._unread = self._unread[found.end() :]
        return found[0]

    def ended(self) -> int:
        """The exit status; what is still written is read, since the program would wait."""
        try:
            while True:
                self._read("the end")
        except AssertionError:
            return self.process.wait(TIMEOUT_S)

    def _read(self, awaited: str) -> str:
        try:
            data = os.read(self._ours, 4096)
        except OSError:  # how Linux says that the other side is closed
            data = b""
        assert data, f"the program ended before {awaited!r}; unread: {self._unread!r}"
        return self._decoder.decode(data)


@contextmanager
def terminal(state: Path, *arguments: str) -> Iterator[Terminal]:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (40, 120))
    command = [sys.executable, "-c", RUN_IN_TERMINAL, "chat", "--threads", "1", *arguments]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(state, arguments),
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(ours, process)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def piped(state: Path, *arguments: str, lines: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUN, "chat", *arguments]
    return subprocess.run(
        command,
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        env={**environment(state, arguments), "FORCE_COLOR": "1"},
        timeout=TIMEOUT_S,
        check=False,
    )


def test_in_a_terminal_ctrl_c_stops_the_answer_and_not_the_program(tmp_path: Path):
    file = tmp_path / "talk.json"
    with terminal(tmp_path, "--temperature", "0", "--seed", "1", "--max-tokens", "400") as user:
        user.expect(r"stands in for one")
        user.expect(PROMPT)
        user.type("What is 23*17?\r")
        user.expect(r"\d calls?.* · [\d.]+% delegated · cost .*USD.* · 0 of \d+ prompt tokens")
        user.expect(PROMPT)

        user.type("/delegation never\r")
        user.expect(PROMPT)
        user.type("Write a long story about a cat and a lighthouse.\r")
        user.expect(ENTERED)
        user.expect(r"\w+ \w+ \w+ \w+")
        user.type(CTRL_C)
        user.expect(r"stopped · 0 calls · 0.0% delegated")
        user.expect(PROMPT)

        user.type("/delegation always\r")
        user.expect(PROMPT)
        user.type("Write a long story about a cat and a lighthouse.\r")
        user.expect(HOSTED)
        user.type(CTRL_C)
        user.expect(r"stopped · 1 call \(1 failed\) · 100.0% delegated")
        user.expect(PROMPT)

        # The stand-in, a child of the program, was not stopped along with the answer.
        user.type("Name a color.\r")
        user.expect(HOSTED)
        user.expect(r"1 call · 100.0% delegated")
        user.expect(PROMPT)

        user.type("/report\r")
        user.expect(r"delegated tokens +\d+ \(100.0%\)")
        user.expect(PROMPT)
        user.type(f"/save {file}\r")
        user.expect("saved 8 messages")
        user.expect(PROMPT)
        user.type("/quit\r")
        assert user.ended() == 0

    _, first, _, local, _, stopped, _, last = messages_from_dict(json.loads(file.read_text()))
    assert first.response_metadata["finish_reason"] in {"stop", "length"}
    assert stopped.response_metadata["finish_reason"] == "interrupted"
    assert local.response_metadata["finish_reason"] == "interrupted"
    assert {span.author for span in relay_report(local).spans} == {"local"}
    assert stopped.text
    assert {span.author for span in relay_report(stopped).spans} == {"delegate"}
    assert relay_report(stopped).cost_nanousd
    assert last.text


def test_what_was_typed_is_there_in_the_next_session(tmp_path: Path):
    with terminal(tmp_path, *KEYED) as user:
        user.expect(PROMPT)
        user.type("/delegation always\r")
        user.expect("delegation: always")
        user.expect(PROMPT)
        user.type(CTRL_D)
        assert user.ended() == 0
    with terminal(tmp_path, *KEYED) as user:
        user.expect(PROMPT)
        user.type("half a line" + CTRL_C)
        user.expect(PROMPT)
        user.type(UP + "\r")
        user.expect("delegation: always")
        user.expect(PROMPT)
        user.type(CTRL_C)
        assert user.ended() == 0


def test_over_a_pipe_answers_come_without_escape_codes_and_the_cache_is_reused(tmp_path: Path):
    file = tmp_path / "talk.md"
    lines = ("What is 23*17?", "And 24*17?", f"/save {file}", "/report", "/quit", "Not asked.")
    options = ("--temperature", "0", "--seed", "1", "--max-tokens", "40", "--threads", "1")
    done = piped(tmp_path, *options, lines=lines)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert "stands in for one" in done.stderr
    counts = re.findall(r"(\d+) of (\d+) prompt tokens cached", done.stderr)
    (nothing, _), (cached, prompt) = [(int(n), int(of)) for n, of in counts]
    assert nothing == 0
    assert prompt - cached < 40  # the second question, and the template around it
    report = done.stdout[done.stdout.index("spans: ") :]
    assert re.search(r"^delegated tokens: \d+", report, re.MULTILINE)
    assert file.read_text().count("**relay:**") == 2


def test_on_a_completion_server(tmp_path: Path):
    with completion_servers.llama_cpp_server() as url:
        options = ("--model", url, "--tokenizer", "smollm2-135m", "--n-ctx", "1024", *KEYED)
        done = piped(
            tmp_path, *options, "--max-tokens", "8", lines=("/delegation never", "Say hello.")
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "0 calls · 0.0% delegated · cost 0 USD" in done.stderr


def test_help_teaches():
    done = subprocess.run(
        [sys.executable, "-c", RUN, "chat", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    said = " ".join(done.stdout.split())
    for word in (
        "--delegate",
        "OPENAI_API_KEY",
        "--budget-usd",
        "/report",
        "Ctrl-C",
        "| langchain",
    ):
        assert word in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "smolm"), "smollm2-135m"),
        (("--delegate", "gpt-5-mini"), '"openai:gpt-5-mini"'),
        (("--model", "http://127.0.0.1:9", *KEYED), "127.0.0.1:9"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    tmp_path: Path, options: tuple[str, ...], said: str
):
    done = piped(tmp_path, *options, lines=("Hello",))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert said in done.stderr
    assert done.stdout == ""
