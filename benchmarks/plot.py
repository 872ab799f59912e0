"""One picture of a run: decode ratios, chats, resume, waits.

python -m benchmarks.plot picture.png bench-a.json bench-b.json    # of runs of single topics
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

JsonRow = dict[str, Any]


def draw(rows: Sequence[JsonRow], path: Path) -> bool:
    """Write a panel for each topic that has rows; `False` if none has."""
    panels: dict[str, Callable[[Any, Sequence[JsonRow]], None]] = {
        "decode": _decode,
        "chats": _chats,
        "resume": _resume,
        "waits": _waits,
    }
    mine = {
        topic: [row for row in rows if row["topic"] == topic and row["values"]] for topic in panels
    }
    drawn = [topic for topic in panels if mine[topic]]
    if not drawn:
        return False
    figure, axes = plt.subplots(
        len(drawn), 1, figsize=(9, 3.6 * len(drawn)), layout="constrained", squeeze=False
    )
    for topic, axis in zip(drawn, axes[:, 0], strict=True):
        panels[topic](axis, mine[topic])
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def _bars(axis: Any, rows: Sequence[JsonRow], labels: Sequence[str]) -> None:
    """Median ratios with their range."""
    ratios = [row["ratio"] for row in rows]
    below = [row["ratio"] - row["ratio_range"][0] for row in rows]
    above = [row["ratio_range"][1] - row["ratio"] for row in rows]
    bars = axis.barh(labels, ratios, xerr=(below, above), capsize=3)
    axis.bar_label(bars, [f"{ratio:.3f}" for ratio in ratios], label_type="center", color="white")
    axis.invert_yaxis()


def _decode(axis: Any, rows: Sequence[JsonRow]) -> None:
    compared = [row for row in rows if row["ratios"]]
    _bars(axis, compared, [row["name"] for row in compared])
    axis.axvline(1, color="black", linewidth=0.8)
    axis.axvline(0.97, color="tab:green", linewidth=0.8, linestyle="--", label="bound: 0.97")
    axis.set(title="Decode speed against the raw llama_decode loop", xlabel="ratio, with its range")
    axis.legend(loc="lower left")


def _chats(axis: Any, rows: Sequence[JsonRow]) -> None:
    for side in dict.fromkeys(row["side"] for row in rows):
        own = [row for row in rows if row["side"] == side]
        axis.plot([r["chats"] for r in own], [r["median"] for r in own], marker="o", label=side)
        axis.fill_between(
            [r["chats"] for r in own],
            [min(r["values"]) for r in own],
            [max(r["values"]) for r in own],
            alpha=0.2,
        )
    axis.set(title="Chats at once", xlabel="chats", ylabel="tokens/s together")
    axis.set_ylim(bottom=0)
    axis.legend()


def _resume(axis: Any, rows: Sequence[JsonRow]) -> None:
    whole = [row for row in rows if not row["streamed"]]
    for number, context in enumerate(dict.fromkeys(row["context_tokens"] for row in whole)):
        for side, style in (("session", "-"), ("raw", ":")):
            own = [r for r in whole if r["context_tokens"] == context and r["side"] == side]
            label = f"{context} tokens of context{', raw' if side == 'raw' else ''}"
            spans, ms = [r["span_tokens"] for r in own], [r["median"] for r in own]
            axis.plot(spans, ms, style, color=f"C{number}", marker=".", label=label)
    axis.set(title="Going on behind a hosted span", xlabel="tokens of the span", ylabel="ms")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize="small")


def _waits(axis: Any, rows: Sequence[JsonRow]) -> None:
    compared = [row for row in rows if row["ratios"]]
    labels = [
        f"{row['side']} / {row['against']}, {1000 * row['wait_s']:.0f} ms" for row in compared
    ]
    _bars(axis, compared, labels)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(title="Throughput of 8 chats with 2 hosted waits each", xlabel="ratio, with its range")


if __name__ == "__main__":
    picture, *reports = sys.argv[1:]
    draw(
        [row for name in reports for row in json.loads(Path(name).read_text())["rows"]],
        Path(picture),
    )
