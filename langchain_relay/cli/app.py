"""The commands; what they do, and what they can be given, stands in modules of their own."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated, Any

import typer

from langchain_relay.cli import options
from langchain_relay.errors import RelayError

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
    question: options.Asked = None,
    delegate: options.Hosted = None,
    model: options.LocalGguf = "smollm2-135m",
    budget_usd: options.BudgetUsd = "0.01",
    max_tokens: options.MaxTokens = 80,
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
    model: options.LocalOrServer = "smollm2-135m",
    delegate: options.Hosted = None,
    policy: options.WhoDecides = options.PolicyName.CALL_TOKENS,
    budget_usd: options.BudgetUsdIfPriced = None,
    max_tokens: options.MaxTokens = 512,
    temperature: options.Temperature = None,
    seed: options.Seed = None,
    system: options.System = None,
    n_ctx: options.ContextTokens = None,
    threads: options.Threads = None,
    tokenizer: options.Tokenizer = None,
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
    model: options.LocalGguf = "smollm2-135m",
    delegate: options.HostedToProbe = None,
    base_url: options.BaseUrl = None,
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
    ledger: options.LedgerPlace,
    *,
    by: options.TotalsBy = None,
    since: options.Since = None,
    until: options.Until = None,
    scope: options.OfScope = None,
    key: options.OfKey = None,
    timezone: options.DaysOf = "UTC",
    format: options.WrittenAs = options.Form.TABLE,
    plot: options.Plot = None,
    watch: options.Watch = None,
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

    groups: Any = tuple(
        group.value for group in by or (options.Grouping.DAY, options.Grouping.MODEL)
    )
    question = Question(ledger, groups, since, until, scope, key, timezone)
    try:
        run(question, format.value, plot, watch)
    except RelayError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        raise typer.Exit(1) from error
