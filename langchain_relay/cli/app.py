"""Commands and their options; what they do stands in modules of their own."""

from __future__ import annotations

from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from langchain_relay.errors import RelayError


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


app = typer.Typer(
    help="A small local model writes; where it asks, a hosted model writes a few tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(version("langchain-relay"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool,
        # Eager: read before a missing command is complained of.
        typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    question: Annotated[
        str | None, typer.Argument(help="What to ask; by default two questions with answers known.")
    ] = None,
    delegate: Annotated[
        str | None,
        typer.Option(
            help="Hosted model, such as openai:gpt-5-mini or anthropic:claude-haiku-4-5. Default: "
            "one whose key is set (OPENAI_API_KEY, ANTHROPIC_API_KEY), else a stand-in: a second "
            "SmolLM2 behind a real server on loopback."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(help="Local model: alias, path to a .gguf, or hf:org/repo/file.gguf.")
    ] = "smollm2-135m",
    budget_usd: Annotated[str, typer.Option(help="US dollars one answer may cost.")] = "0.01",
    max_tokens: Annotated[int, typer.Option(help="Tokens of one answer.", min=1)] = 80,
) -> None:
    """Run the whole relay once: events as they happen, colors for delegated text, the price.

    Delegated text is colored. The last answer runs under a budget that is too small, so that its
    call is refused and the local model answers alone.
    """
    from langchain_relay.cli.demo import Demo

    try:
        Demo(model, delegate, budget_usd, max_tokens).run(question)
    except RelayError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from error


@app.command()
def chat(
    *,
    model: Annotated[
        str,
        typer.Option(
            help="Local model: alias, path to a .gguf, hf:org/repo/file.gguf, or the URL of a "
            "completion server (llama-server, vLLM, SGLang)."
        ),
    ] = "smollm2-135m",
    delegate: Annotated[
        str | None,
        typer.Option(
            help="Hosted model, such as openai:gpt-5-mini or anthropic:claude-haiku-4-5. Default: "
            "one whose key is set (OPENAI_API_KEY, ANTHROPIC_API_KEY), else a stand-in: a second "
            "SmolLM2 behind a real server on loopback."
        ),
    ] = None,
    policy: Annotated[
        PolicyName, typer.Option(help="Who decides that the hosted model writes.")
    ] = PolicyName.CALL_TOKENS,
    budget_usd: Annotated[
        str | None,
        typer.Option(
            help="US dollars one answer may cost. Default: 0.01, or no limit where no price of "
            "the hosted model is known."
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(help="Tokens of one answer.", min=1)] = 512,
    temperature: Annotated[
        float | None, typer.Option(help="Of the local model; 0 takes the likeliest.", min=0)
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of the local model; the same seed, the same answers.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt for both models.")] = None,
    n_ctx: Annotated[
        int | None,
        typer.Option(help="Context of the conversation in tokens; a server may not tell.", min=1),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Decode threads; by default one per core.", min=1)
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="For a server that does not tell its chat template (all but llama-server): a GGUF "
            "with the vocabulary and template of its model, named as for --model."
        ),
    ] = None,
) -> None:
    """Talk to a local model that asks a hosted one for help.

    Words of the hosted model are colored. Below each answer: hand-overs, the share of hosted
    tokens, what they cost, and how many tokens of the prompt were in the local cache already.

    Type a question, or a command: /report, /delegation never (or auto, always), /save FILE, /new,
    /help, /quit. Ctrl-C stops an answer and keeps what was written; at an empty prompt it ends
    the program, as Ctrl-D does. Up and down bring back what was typed, in earlier sessions too.

    Lines may come from a pipe: answers go to standard output, all else to standard error.

    Try:

    langchain-relay chat --delegate openai:gpt-5-mini --budget-usd 0.02

    langchain-relay chat --model ./qwen.gguf --policy switch-cues --n-ctx 8192

    langchain-relay chat --model http://127.0.0.1:8080

    echo "What is 23*17?" | langchain-relay chat --temperature 0
    """
    from langchain_relay.cli.chat import Settings
    from langchain_relay.cli.chat import chat as run

    settings = Settings(
        model=model,
        delegate=delegate,
        policy=policy.value,
        budget_usd=budget_usd,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        system=system,
        n_ctx=n_ctx,
        n_threads=threads,
        tokenizer=tokenizer,
    )
    try:
        status = run(settings)
    except RelayError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from error
    raise typer.Exit(status)


@app.command()
def doctor(
    model: Annotated[
        str, typer.Option(help="Local model: alias, path to a .gguf, or hf:org/repo/file.gguf.")
    ] = "smollm2-135m",
    delegate: Annotated[
        str | None,
        typer.Option(
            help="Hosted model, such as openai:gpt-5-mini: it is sent one request of some 60 "
            "tokens that says how it continues a begun answer. Without this nothing is sent, and "
            "the verdicts of earlier probes are listed."
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(
            help="Where that model is, if it is a server of your own that speaks OpenAI's "
            "protocol, such as http://127.0.0.1:8080/v1; with --delegate openai:MODEL."
        ),
    ] = None,
) -> None:
    """Look whether everything is there: compiler, llama.cpp, model, template, threads, speed.

    With --delegate also what the hosted model costs and how it continues a begun answer; the
    verdict is kept on disk and decides how drafts are shown to that model from then on, by
    whatever LangChain class of the same provider.

    Try:

    langchain-relay doctor --delegate anthropic:claude-haiku-4-5

    langchain-relay doctor --delegate openai:qwen --base-url http://127.0.0.1:8080/v1
    """
    from rich.console import Console

    from langchain_relay.cli.doctor import examine, report

    if base_url is not None and delegate is None:
        raise typer.BadParameter("--base-url goes with --delegate openai:MODEL")
    if not report(examine(model, delegate, base_url), Console()):
        raise typer.Exit(1)


@app.command()
def spend(
    ledger: Annotated[
        str,
        typer.Argument(
            envvar="LANGCHAIN_RELAY_LEDGER",
            help="The path of a ledger in SQLite, or a URL: redis://..., postgresql://...",
        ),
    ],
    *,
    by: Annotated[
        list[Grouping] | None, typer.Option(help="Totals by this; give it again for more.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="First day, such as 2026-11-01.")] = None,
    until: Annotated[str | None, typer.Option(help="Last day.")] = None,
    scope: Annotated[
        str | None, typer.Option(help="Of this scope alone: global, thread, user, ...")
    ] = None,
    key: Annotated[str | None, typer.Option(help="Of this thread, user, ... alone.")] = None,
    timezone: Annotated[str, typer.Option(help="Whose days: an IANA name.")] = "UTC",
    format: Annotated[Form, typer.Option(help="How it is written.")] = Form.TABLE,
    plot: Annotated[Path | None, typer.Option(help="Draw it too, into this PNG.")] = None,
    watch: Annotated[
        float | None,
        typer.Option(help="Look again every so many seconds, until Ctrl-C.", min=0.1),
    ] = None,
) -> None:
    """Show what was spent on hosted models: totals by day, model, scope and key.

    Reads the ledger of RelayChatModel(ledger=...), also while services write to it. An attempt
    that several budgets count stands in each of their scopes and keys. "Estimated" is the part
    that no provider reported: it is booked at its worst case.

    Try:

    langchain-relay spend spending.db

    langchain-relay spend redis://localhost:6379/0 --by key --scope user --since 2026-11-01

    langchain-relay spend spending.db --by model --format csv

    langchain-relay spend spending.db --plot spending.png

    langchain-relay spend spending.db --watch 2
    """
    from langchain_relay.cli.spend import Question
    from langchain_relay.cli.spend import spend as run

    groups: Any = tuple(group.value for group in by or (Grouping.DAY, Grouping.MODEL))
    question = Question(ledger, groups, since, until, scope, key, timezone)
    try:
        run(question, format.value, plot, watch)
    except RelayError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from error
