"""The command line: `langchain-relay demo`, `chat`, `doctor` and `spend`."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of `langchain-relay`."""
    try:
        from langchain_relay.cli.app import app
    except ImportError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(f'the command line needs {error.name}: pip install "langchain-relay[cli]"')
    app()
