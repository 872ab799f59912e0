"""What the commands can be given, each with its line of `--help`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class PolicyName(StrEnum):
    """Who writes next; see `langchain_relay.policies`."""

    CALL_TOKENS = "call-tokens"
    SWITCH_CUES = "switch-cues"
    FIXED_LENGTH = "fixed-length"
    SINGLE_HANDOFF = "single-handoff"
    ALWAYS = "always"
    NEVER = "never"


class Grouping(StrEnum):
    """What totals are by."""

    DAY = "day"
    MODEL = "model"
    SCOPE = "scope"
    KEY = "key"


class Form(StrEnum):
    """How totals are written."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


# --- models -------------------------------------------------------------------------------------

LocalGguf = Annotated[
    str, typer.Option(help="Local model: alias, path to a .gguf, or hf:org/repo/file.gguf.")
]
LocalOrServer = Annotated[
    str,
    typer.Option(
        help="Local model: alias, path to a .gguf, hf:org/repo/file.gguf, or the URL of a "
        "completion server (llama-server, vLLM, SGLang)."
    ),
]
Hosted = Annotated[
    str | None,
    typer.Option(
        help="Hosted model, such as openai:gpt-5-mini or anthropic:claude-haiku-4-5. Default: "
        "one whose key is set (OPENAI_API_KEY, ANTHROPIC_API_KEY), else a stand-in: a second "
        "SmolLM2 behind a real server on loopback."
    ),
]
HostedToProbe = Annotated[
    str | None,
    typer.Option(
        help="Hosted model, such as openai:gpt-5-mini: it is sent one request of some 60 "
        "tokens that says how it continues a begun answer. Without this nothing is sent, and "
        "the verdicts of earlier probes are listed."
    ),
]
BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Where that model is, if it is a server of your own that speaks OpenAI's "
        "protocol, such as http://127.0.0.1:8080/v1; with --delegate openai:MODEL."
    ),
]

# --- answers ------------------------------------------------------------------------------------

Asked = Annotated[
    str | None, typer.Argument(help="What to ask; by default two questions with answers known.")
]
WhoDecides = Annotated[PolicyName, typer.Option(help="Who decides that the hosted model writes.")]
BudgetUsd = Annotated[str, typer.Option(help="US dollars one answer may cost.")]
BudgetUsdIfPriced = Annotated[
    str | None,
    typer.Option(
        help="US dollars one answer may cost. Default: 0.01, or no limit where no price of "
        "the hosted model is known."
    ),
]
MaxTokens = Annotated[int, typer.Option(help="Tokens of one answer.", min=1)]
Temperature = Annotated[
    float | None, typer.Option(help="Of the local model; 0 takes the likeliest.", min=0)
]
Seed = Annotated[
    int | None, typer.Option(help="Of the local model; the same seed, the same answers.")
]
System = Annotated[str | None, typer.Option(help="System prompt for both models.")]
ContextTokens = Annotated[
    int | None,
    typer.Option(help="Context of the conversation in tokens; a server may not tell.", min=1),
]
Threads = Annotated[
    int | None, typer.Option(help="Decode threads; by default one per core.", min=1)
]
Tokenizer = Annotated[
    str | None,
    typer.Option(
        help="For a server that does not tell its chat template (all but llama-server): a GGUF "
        "with the vocabulary and template of its model, named as for --model."
    ),
]

# --- spending -----------------------------------------------------------------------------------

LedgerPlace = Annotated[
    str,
    typer.Argument(
        envvar="LANGCHAIN_RELAY_LEDGER",
        help="The path of a ledger in SQLite, or a URL: redis://..., postgresql://...",
    ),
]
TotalsBy = Annotated[
    list[Grouping] | None, typer.Option(help="Totals by this; give it again for more.")
]
Since = Annotated[str | None, typer.Option(help="First day, such as 2026-11-01.")]
Until = Annotated[str | None, typer.Option(help="Last day.")]
OfScope = Annotated[str | None, typer.Option(help="Of this scope alone: global, thread, user, ...")]
OfKey = Annotated[str | None, typer.Option(help="Of this thread, user, ... alone.")]
DaysOf = Annotated[str, typer.Option(help="Whose days: an IANA name.")]
WrittenAs = Annotated[Form, typer.Option(help="How it is written.")]
Plot = Annotated[Path | None, typer.Option(help="Draw it too, into this PNG.")]
Watch = Annotated[
    float | None,
    typer.Option(help="Look again every so many seconds, until Ctrl-C.", min=0.1),
]
