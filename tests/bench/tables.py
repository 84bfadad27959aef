"""What was measured, as lines of text for a terminal and for a page: the same tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

VERDICTS = {"aim": "aim reached", "must": "reached", "missed": "MISSED", None: "not measured"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, page: bool = False) -> list[str]:
    """Return a table; the first column and one named `what` are text, the others stand to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    words = [column == 0 or head[column] in ("what", "against", "which") for column in range(len(head))]
    if page:
        rule = [["---" if word else "---:" for word in words]]
        return ["| " + " | ".join(line) + " |" for line in lines[:1] + rule + lines[1:]]
    return [
        "  ".join(
            cell.ljust(width) if word else cell.rjust(width)
            for cell, width, word in zip(line, widths, words, strict=True)
        ).rstrip()
        for line in lines
    ]


def claims(judged: Sequence[Mapping[str, Any]], *, page: bool = False) -> list[str]:
    """Return the claims beside what was measured."""
    rows = []
    for claim in judged:
        sign = "≥" if claim["at_least"] else "≤"
        limits = [f"{sign} {claim[limit]:,g}" for limit in ("must", "aim")]
        measured = "–" if claim["measured"] is None else f"{claim['measured']:,.3g}"
        if claim["measured"] is not None and claim["measured"] >= 1000:
            measured = f"{claim['measured']:,.0f}"
        rows.append([claim["claim"], *limits, measured, claim["unit"], VERDICTS[claim["reached"]]])
    return table(("claim", "must", "aim", "measured", "unit", "verdict"), rows, page=page)


def instructions(found: Sequence[Mapping[str, Any]], *, page: bool = False) -> list[str]:
    """Return instructions per hop and the price of each feature, in FLOORs."""
    rows = [
        [
            row["row"], f"{row['instructions']:,}", f"{row['of_floor']:.3f}",
            f"{row['ratio']:.3f} of {row['base']}" if row["base"] != "floor" else "",
            f"{row['adds']:+.3f} on {row['over']}" if "over" in row else "", row["what"],
        ]
        for row in found
    ]  # fmt: skip
    return table(("row", "instructions", "of FLOOR", "ratio", "adds", "what"), rows, page=page)


def paired(found: Sequence[Mapping[str, Any]], *, page: bool = False) -> list[str]:
    """Return CPU time as ratios to the reference of the same rounds."""
    rows = [
        [
            row["row"], f"{row['ratio']:.3f}", f"{row['quartiles'][0]:.3f} to {row['quartiles'][1]:.3f}", row["base"],
            f"{row['us']:.2f}", f"{row['base_us']:.2f}",
        ]
        for row in found
    ]  # fmt: skip
    return table(("row", "ratio", "quartiles", "against", "µs", "reference µs"), rows, page=page)


def throughput(found: Sequence[Mapping[str, Any]], *, page: bool = False) -> list[str]:
    """Return how many spans a second arrived whole."""
    rows = [[side["row"], f"{side['spans_per_second']:,}", side["limit"]] for side in found]
    return table(("row", "spans/s without a drop", "what stopped it"), rows, page=page)


def memory(found: Sequence[Mapping[str, Any]], *, page: bool = False) -> list[str]:
    """Return bytes of spans that wait."""
    return table(("row", "bytes per span"), [[row["row"], f"{row['bytes_per_span']:,}"] for row in found], page=page)


def loops(found: Sequence[Mapping[str, Any]], *, page: bool = False) -> list[str]:
    """Return what real loops take, and what is added."""
    rows = [
        [
            row["what"], f"{row['plain_us']:.1f}", f"{row['added_us']:+.1f}", f"{row['share']:+.1%}",
            f"{row['quartiles'][0]:+.1%} to {row['quartiles'][1]:+.1%}", f"{row['added_cpu_us']:+.1f}",
            f"{row['spans_dropped']:.1%}",
        ]
        for row in found
    ]  # fmt: skip
    head = ("loop", "µs a message", "added µs", "share", "quartiles", "added CPU µs", "spans dropped")
    return table(head, rows, page=page)


def ledger(found: Sequence[Mapping[str, Any]], *, page: bool = False) -> list[str]:
    """Return what the ledger adds to messages, and what of the rate it takes."""
    rows = [
        [
            row["what"],
            *(f"{more:+,} on {less:,}" for more, less in zip(row["bytes"], row["headers_bytes"], strict=True)),
            f"{row['per_second']:,}", f"{row['per_second_without']:,}", f"{row['lost']:.1%}",
            f"{row['quartiles'][0]:.1%} to {row['quartiles'][1]:.1%}",
        ]
        for row in found
    ]  # fmt: skip
    steps = ("bytes, step 1", "step 6", "step 12")
    return table(("loop", *steps, "messages/s", "without it", "lost", "quartiles"), rows, page=page)


def peers(found: Mapping[str, Any], *, page: bool = False) -> list[str]:
    """Return what peers take for a hop, each against FLOOR of its own environment."""
    rows = [
        [
            row["name"], f"{row['ratio']:.2f}", f"{row['quartiles'][0]:.2f} to {row['quartiles'][1]:.2f}",
            f"{row['us']:.1f}", f"{environment['floor_us']:.1f}", row["what"],
        ]
        for environment in found["environments"]
        for row in environment["rows"]
    ]  # fmt: skip
    return table(("peer", "of FLOOR", "quartiles", "µs", "FLOOR µs", "what"), rows, page=page)
