"""Advice: what follows from what the probe saw; each finding has its one-line fix.

Pure: from facts to findings. A finding is something to do, a note is only worth knowing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple


class Finding(NamedTuple):
    """Something to do: what about, what was seen, what to do."""

    about: str
    saw: str
    do: str


_LEAF_OF_CONTRIB = {
    "aiohttp_client": "aiohttp", "boto3sqs": "botocore", "fastapi": "asgi", "flask": "wsgi", "starlette": "asgi",
    "kafka_python": "kafka",
}  # fmt: skip
"""Contrib's name of what a leaf instruments, where it is another."""


def findings(processes: Sequence[Mapping[str, Any]], unreachable: str, endpoint: str) -> list[Finding]:
    """Return what is to be done, each once.

    Args:
        processes: what the probe saw, for each process.
        unreachable: why the collector cannot be reached; empty: it can, or there is none.
        endpoint: where telemetry goes; empty: nowhere.
    """
    found = [one for process in processes for one in _of(process)]
    used = any(process["clients"] for process in processes)
    if unreachable:
        do = "start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT"
        found.append(Finding("exporter", f"{endpoint}: {unreachable}", do))
    elif not endpoint and used and not any(process["scraped"] for process in processes):
        do = "set OTEL_EXPORTER_OTLP_ENDPOINT=http://your-collector:4318"
        found.append(Finding("exporter", "no endpoint is set, so nothing leaves the process", do))
    return list(dict.fromkeys(found))


def _of(process: Mapping[str, Any]) -> Iterator[Finding]:
    for client in process["clients"]:
        if not client["wrapped"]:
            do = f"client = rtobs.wrap(client), or before it is made rtobs.integrations.instrument({client['leaf']!r})"
            yield Finding("client", f"{client['class']} is made and not wrapped (x{client['number']})", do)
    for leaf, version in process["versions"].items():
        for package, installed in version["installed"].items():
            if not is_tested(installed, package, version["supports"]):
                saw = f"{package} {installed} is outside the tested range ({version['supports']})"
                yield Finding(
                    "version", saw, f"install a tested version, or run the tests of the leaf {leaf} with yours"
                )
    yield from _of_hops(process)


def _of_hops(process: Mapping[str, Any]) -> Iterator[Finding]:
    for where, number in process["passed_by"].items():
        do = "in the loop: with rtobs.consume(name, message): …, or message.process() where the client has it"
        yield Finding("iterator", f"{number} messages of {where} were iterated over without a hop", do)
    for where, number in process["unscoped"].items():
        do = "handle each in a hop: with rtobs.consume(name, message): …"
        yield Finding("scope", f"{number} messages of {where} were received and no hop took them", do)
    if missing := process["tallies"]["rtobs.propagation.missing"]:
        do = "wrap the client that sends them, or publish with headers=rtobs.current().headers"
        yield Finding("context", f"{missing} messages brought no journey", do)
    if errors := process["tallies"]["rtobs.internal.errors"]:
        yield Finding(
            "internal", f"{errors} internal errors of rtobs", "look for 'internal error' in the log and report it"
        )
    if process["forks"] and process["scraped"]:
        do = "let the workers push: OTEL_METRICS_EXPORTER=otlp"
        yield Finding("prefork", f"{process['forks']} forks, and Prometheus scrapes one process of them", do)


def notes(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what is only worth knowing: the span path and why, and neighbours."""
    found: list[str] = []
    for process in processes:
        found.append(f"spans: {_path(process['spans'])}")
        leaves = {client["leaf"] for client in process["clients"]}
        found += [
            f"contrib instruments {name} too: its span becomes the hop's, there is no second; to have ours alone set "
            f"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS={name}"
            for name in process["contrib"]
            if _LEAF_OF_CONTRIB.get(name, name) in leaves
        ]
        found += [f"{name} is loaded too: its spans are its own, rtobs adds none to them" for name in process["others"]]
    return list(dict.fromkeys(found))


def _path(spans: Mapping[str, Any]) -> str:
    if not spans["ready"]:
        return "none was made, since no hop was opened"
    if spans["off"]:
        return "none, rtobs is switched off (OTEL_SDK_DISABLED, or no sink)"
    if spans["sdk_spans"]:
        return f"SDK spans, since {spans['provider']} has a processor with on_start, or is not OpenTelemetry's SDK"
    return f"own records, given to the processors of {spans['provider']} at their end: the quick path"


def is_tested(installed: str, package: str, supports: str) -> bool:
    """Tell whether a version lies in what a leaf was tested with: ``name>=1.2,<3``, several of them by semicolons."""
    for one in supports.split(";"):
        name, _, rest = one.strip().partition(">=")
        if name == package and rest:
            least, _, below = rest.partition(",<")
            return _number(least) <= _number(installed) and (not below or _number(installed) < _number(below))
    return True


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", version.partition("+")[0])[:4])
