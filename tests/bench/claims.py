"""What is claimed of the cost of rtobs, what must be reached and what is aimed at, and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Results = Mapping[str, Any]
"""What ``run`` measured, by part; ``peers`` from the last ``make bench-peers``."""


class Claim(NamedTuple):
    """One line of the table."""

    what: str
    unit: str
    must: float
    aim: float
    read: Callable[[Results], float]
    """Raises KeyError where it was not measured."""
    at_least: bool = False


def _instructions(row: str) -> Callable[[Results], float]:
    return lambda results: _find(results["instructions"], "row", row)["ratio"]


def _cpu(row: str) -> Callable[[Results], float]:
    return lambda results: _find(results["paired"], "row", row)["ratio"]


def _find(rows: list[Any], key: str, wanted: str) -> Any:
    for row in rows:
        if row[key] == wanted:
            return row
    raise KeyError(wanted)


def _throughput(results: Results) -> float:
    by_row = {side["row"]: side["spans_per_second"] for side in results["throughput"]}
    return float(by_row["exported"] / by_row["floor_exported"])


def _buffered(results: Results) -> float:
    return float(_find(results["memory"], "row", "sampled")["bytes_per_span"])


def _peer(results: Results) -> float:
    rows = _find(results["peers"]["environments"], "environment", "aio_pika")["rows"]
    return float(_find(rows, "row", "contrib_metrics")["ratio"] / _find(rows, "row", "rtobs")["ratio"])


CLAIMS = (
    Claim("full hop, sampled, our pipeline", "FLOOR", 0.45, 0.30, _instructions("sampled")),
    Claim("full hop, sampled, on the user's SDK TracerProvider", "FLOOR", 0.60, 0.40, _instructions("users_provider")),
    Claim("the same through the SDK-span fallback", "FLOOR", 1.40, 1.20, _instructions("fallback")),
    Claim("full hop, unsampled", "FLOOR", 0.25, 0.16, _instructions("unsampled")),
    Claim("metrics of a full hop, against four SDK calls", "×", 0.06, 0.04, _instructions("metrics")),
    Claim(
        "CPU of a full hop with OTLP export, against two bare SDK spans with the SDK's OTLP exporter", "×", 0.25, 0.18,
        _cpu("exported"),
    ),
    Claim("spans/s without a drop, against the SDK", "×", 2.5, 5.0, _throughput, at_least=True),
    Claim("a buffered span", "B", 1024, 800, _buffered),
    Claim("contrib aio-pika + 4 hand-made SDK metrics, against us", "×", 6.0, 9.0, _peer, at_least=True),
    Claim("switched off, per call site", "no-op API spans", 3.0, 1.5, _instructions("disabled")),
)  # fmt: skip


def judge(results: Results) -> list[dict[str, Any]]:
    """Return every claim with what was measured: ``aim``, ``must`` or ``missed``; None where it was not measured."""
    found = []
    for claim in CLAIMS:
        try:
            measured = claim.read(results)
        except KeyError:
            measured = None
        found.append(
            {
                "claim": claim.what, "unit": claim.unit, "must": claim.must, "aim": claim.aim,
                "at_least": claim.at_least, "measured": None if measured is None else round(measured, 3),
                "reached": None if measured is None else _reached(claim, measured),
            }
        )  # fmt: skip
    return found


def _reached(claim: Claim, measured: float) -> str:
    for word, limit in (("aim", claim.aim), ("must", claim.must)):
        if measured >= limit if claim.at_least else measured <= limit:
            return word
    return "missed"
