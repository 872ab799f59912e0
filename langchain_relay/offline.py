"""`LANGCHAIN_RELAY_OFFLINE=1`: nothing leaves this machine.

Hand-overs to hosted models, probes, downloads and model servers elsewhere are refused. Models in
this process and servers at a loopback address are not: what a proxy there passes on is its own
affair. The switch is about what this package sends; tracing and other packages have their own.
"""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from langchain_relay.errors import Offline

__all__ = ["VARIABLE", "leaves_machine", "offline", "refuse_offline"]

VARIABLE = "LANGCHAIN_RELAY_OFFLINE"

_OFF = frozenset({"", "0", "false", "no", "off"})


def offline() -> bool:
    """Whether the switch is on; it is read anew each time."""
    return os.environ.get(VARIABLE, "").strip().lower() not in _OFF


def leaves_machine(address: str | None) -> bool:
    """Whether what is sent to `address` leaves this machine; an unknown address does."""
    host = urlsplit(address or "").hostname
    if host is None or host == "localhost":
        return host is None
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name may stand for anything
        return True


def refuse_offline(what: str, address: str | None = None) -> None:
    """Refuse what would leave this machine while the switch is on.

    Args:
        what: The refused thing, as the subject of a sentence.
        address: Where it would go; `None`: somewhere else.

    Raises:
        Offline: the switch is on.
    """
    if offline() and leaves_machine(address):
        raise Offline(
            f"offline: {what} would leave this machine, and {VARIABLE} is set; unset it, or use a "
            f"model on this machine",
            sent=False,
        )
