"""What it costs to have it: import time, peak memory, time to the first token."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

from benchmarks.chat import (
    Messages,
    as_turns,
    fresh_messages,
    local_model,
    relay_model,
    relayed,
    roomy,
)
from benchmarks.measure import Bound, Row, Told, interleaved, ratios
from benchmarks.plan import Plan
from benchmarks.raw import Raw
from benchmarks.worker import Worker

ROOT = Path(__file__).resolve().parent.parent
IMPORT_BOUND = Bound(1.1, at="most")
N_CTX = 2048

IMPORTS = {
    "import langchain_core.language_models": None,
    "import langchain_relay": IMPORT_BOUND,
    "from langchain_relay import RelayChatModel": None,
}
RELAY = """
    from benchmarks.chat import fresh_messages, local_model, relay_model, relayed
    from benchmarks.plan import Plan
    plan = Plan(model={model!r}, threads={threads})
    local = local_model(plan, n_ctx={n_ctx}, max_concurrency={n})
    relayed(relay_model(local), fresh_messages(), 16)
"""
PROGRAMS = {
    "Python with langchain_core.language_models": "import langchain_core.language_models",
    "raw context": """
        from benchmarks.raw import Raw
        raw = Raw({model!r}, n_ctx={n_ctx}, n_threads={threads})
        raw.generate(raw.prefill([1] * 50), 50, 16)
    """,
    "Llama.create_chat_completion": """
        from llama_cpp import Llama
        from langchain_relay.local import models
        llama = Llama(str(models.resolve({model!r})), n_ctx={n_ctx}, n_threads={threads},
            n_threads_batch={threads}, flash_attn=True, verbose=False)
        llama.create_chat_completion([dict(role="user", content="Hello")], max_tokens=16)
    """,
    "RelayChatModel, max_concurrency=1": RELAY.replace("{n}", "1"),
    "RelayChatModel, max_concurrency=4": RELAY.replace("{n}", "4"),
}
# A child's ru_maxrss begins at its parent's; VmHWM, where there is one, is its own.
PEAK_MB = """
import re, resource, sys
try:
    kb = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
except OSError:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kb = peak / 1024 if sys.platform == "darwin" else peak
print("measured", kb / 1024)
"""


def measure(plan: Plan, told: Told) -> list[Row]:
    """All three."""
    return [*import_time(plan, told), *memory(plan, told), *first_token(plan, told)]


def import_time(plan: Plan, told: Told) -> list[Row]:
    """Each in a fresh interpreter, byte code already compiled."""

    def side(statement: str) -> Callable[[], float]:
        timed = (
            "from time import perf_counter as now; start = now()\n"
            f"{statement}\nprint('measured', 1000 * (now() - start))"
        )
        return lambda: _measured(timed)

    sides = {statement: side(statement) for statement in IMPORTS}
    for warm_up in sides.values():
        warm_up()  # compiles
    ms = interleaved(sides, plan.rounds, told)
    base = next(iter(IMPORTS))
    return [
        Row(
            "footprint",
            statement,
            "ms",
            ms[statement],
            against="" if statement == base else base,
            ratios=() if statement == base else ratios(ms[statement], ms[base]),
            bound=bound,
        )
        for statement, bound in IMPORTS.items()
    ]


def memory(plan: Plan, told: Told) -> list[Row]:
    """Peak resident memory of fresh processes that wrote 16 tokens, n_ctx 2048 per chat."""
    facts = {"model": plan.model, "threads": plan.threads, "n_ctx": N_CTX}

    def side(program: str) -> Callable[[], float]:
        return lambda: _measured(dedent(program).format(**facts) + PEAK_MB)

    sides = {name: side(program) for name, program in PROGRAMS.items()}
    # Memory does not drift: three rounds say as much as seven.
    found = interleaved(sides, min(plan.rounds, 3), told)
    return [
        Row("footprint", f"peak memory: {name}", "MB", values, facts={"n_ctx": N_CTX})
        for name, values in found.items()
    ]


def first_token(plan: Plan, told: Told) -> list[Row]:
    """From the call to the first text, for a prompt nobody has a cache of."""
    raw_name, relay_name = (
        f"first token behind {plan.prompt_tokens} tokens: {who}"
        for who in ("raw", "RelayChatModel.stream")
    )
    with Worker(raw_first, plan) as raw, Worker(relay_first, plan) as relay:
        raw()
        relay()
        ms = interleaved({raw_name: raw, relay_name: relay}, plan.rounds, told)
    against = ratios(ms[relay_name], ms[raw_name])
    return [
        Row("footprint", raw_name, "ms", ms[raw_name]),
        Row("footprint", relay_name, "ms", ms[relay_name], against=raw_name, ratios=against),
    ]


def _conversation(plan: Plan) -> Messages:
    return fresh_messages(plan.prompt_tokens - 40)


@contextmanager
def raw_first(plan: Plan) -> Iterator[Callable[[], float]]:
    """Milliseconds of one prefill and argmax."""
    with Raw(plan.model, n_ctx=roomy(plan.prompt_tokens), n_threads=plan.threads) as raw:

        def turn() -> float:
            ids = raw.prompt(as_turns(_conversation(plan)))
            started = time.perf_counter()
            raw.prefill(ids)
            return 1000 * (time.perf_counter() - started)

        yield turn


@contextmanager
def relay_first(plan: Plan) -> Iterator[Callable[[], float]]:
    """Milliseconds until a reader of `RelayChatModel.stream` has the first text."""
    with local_model(plan, n_ctx=roomy(plan.prompt_tokens), max_concurrency=1) as local:
        model = relay_model(local)
        yield lambda: 1000 * relayed(model, _conversation(plan), 2).first_s


def _measured(program: str) -> float:
    """What `program` prints last, run by a fresh interpreter from the repository's root."""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"a fresh interpreter failed:\n{done.stderr}")
    return float(done.stdout.split()[-1])
