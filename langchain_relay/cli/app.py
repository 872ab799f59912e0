"""Commands and their options; what they do stands in modules of their own."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from langchain_relay.errors import RelayError

app = typer.Typer(
    help="A small local model writes; where it asks, a hosted model writes a few tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def _options(
    *, show_version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False
) -> None:
    if show_version:
        typer.echo(version("langchain-relay"))
        raise typer.Exit


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
def doctor(
    model: Annotated[
        str, typer.Option(help="Local model: alias, path to a .gguf, or hf:org/repo/file.gguf.")
    ] = "smollm2-135m",
    delegate: Annotated[
        str | None,
        typer.Option(
            help="Hosted model, such as openai:gpt-5-mini: it is sent one request of some 60 "
            "tokens that says how it continues a begun answer. Without this nothing is sent."
        ),
    ] = None,
) -> None:
    """Look whether everything is there: compiler, llama.cpp, model, template, threads, speed.

    With --delegate also how the hosted model continues a begun answer; the verdict is kept on disk
    and decides how drafts are shown to it from then on.
    """
    from rich.console import Console

    from langchain_relay.cli.doctor import examine, report

    if not report(examine(model, delegate), Console()):
        raise typer.Exit(1)
