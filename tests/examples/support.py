"""An example as its reader has it: the commands of its README, its processes, what they print and what they emit."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rtobs.demo.telemetry import Span
from tests.support import pages
from tests.support.timing import wait_until

EXAMPLES = pages.ROOT / "examples"
FOLDERS = sorted(file.parent for file in EXAMPLES.glob("*/requirements.txt"))
PATIENCE = 30
"""Seconds that anything an example does may take on a busy machine."""


class Command(NamedTuple):
    """One command of a README."""

    environment: dict[str, str]
    """What stands in front of it: ``PORT=8001 python …``."""
    words: list[str]

    @property
    def program(self) -> str:
        """The example's program that it runs; empty for any other command."""
        return self.words[1] if self.words[0] == "python" and self.words[1] != "-m" else ""


def commands(readme: Path) -> list[Command]:
    """Return the commands of *readme*, one a line, in order."""
    found = []
    for block in pages.blocks(readme):
        for line in block.text.splitlines() if block.language == "sh" else ():
            words = shlex.split(line)
            settings = [word.partition("=") for word in words if re.match(r"[A-Z_]+=", word)]
            found.append(Command({name: value for name, _, value in settings}, words[len(settings) :]))
    return found


class Example:
    """The processes of one example, and what they print."""

    def __init__(self, name: str, logs: Path, **settings: str) -> None:
        self.folder = EXAMPLES / name
        self.commands = commands(self.folder / "README.md")
        self._logs = logs
        plain = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
        self._environment = {**plain, **settings}
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, program: str, *arguments: str, log: str = "", **environment: str) -> subprocess.Popen[bytes]:
        """Run one of its programs, which prints into *log*, by default a file of the program's name."""
        with (self._logs / (log or program)).open("ab") as output:
            started = subprocess.Popen(
                [sys.executable, "-W", "error::ResourceWarning", program, *arguments], cwd=self.folder,
                env={**self._environment, **environment}, stdin=subprocess.PIPE, stdout=output,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.running.append(started)
        return started

    def written(self, *words: str) -> Command:
        """Return the one command of the README that has these words."""
        [found] = [command for command in self.commands if command.words == [*words]]
        return found

    def run(self, program: str, *arguments: str) -> None:
        """Run a program that ends by itself, and well."""
        assert self.start(program, *arguments).wait(PATIENCE) == 0, self.printed(program)

    @staticmethod
    def end(process: subprocess.Popen[bytes]) -> None:
        """Stop one process as its supervisor would."""
        process.terminate()
        process.wait(PATIENCE)
        process.stdin.close()

    def stop(self) -> None:
        """End whatever is still there."""
        for process in self.running:
            process.terminate()
            process.send_signal(signal.SIGCONT)  # one that a test has suspended would not end
        for process in self.running:
            try:
                process.wait(PATIENCE)
            finally:
                process.kill()
                process.stdin.close()

    def printed(self, log: str) -> str:
        """Return what a program has printed so far."""
        return (self._logs / log).read_text(encoding="utf-8")

    def shown(self, language: str, containing: str) -> str:
        """Return the one block of the README in *language* that contains a text."""
        found = [block.text for block in pages.blocks(self.folder / "README.md") if block.language == language]
        [block] = [text for text in found if containing in text]
        return block

    def told(self, *logs: str) -> list[dict[str, Any]]:
        """Return the log events in *logs*, oldest first; any other line there is an error."""
        # A program that is just writing has half of its last line in the file.
        lines = [line for log in logs for line in self.printed(log).rpartition("\n")[0].splitlines()]
        return sorted(map(json.loads, lines), key=lambda event: event["timestamp"])

    def told_until(self, logs: Iterable[str], count: int, **facts: Any) -> list[dict[str, Any]]:
        """Return the events with these *facts* once there are *count* of them."""

        def found() -> list[dict[str, Any]]:
            events = [event for event in self.told(*logs) if facts.items() <= event.items()]
            return events if len(events) >= count else []

        return wait_until(found, PATIENCE)


# What a README shows -------------------------------------------------------------------------------------------------

_DIFFERENT = re.compile(r"timestamp|(?!tenant).*_id|.*_s|server\.port")
"""Keys of a log event whose values differ from run to run."""


def alike(shown: Mapping[str, Any], event: Mapping[str, Any]) -> bool:
    """Tell whether a README shows *event*, apart from ids, times and ports."""
    same = {key for key in shown if not _DIFFERENT.fullmatch(key)}
    return shown.keys() == event.keys() and all(shown[key] == event[key] for key in same)


def metrics(shown: str) -> list[str]:
    """Return the lines of *shown* that are series, as a scrape prints them."""
    return [line for line in shown.splitlines() if line.startswith("rtobs_")]


def tree(spans: Iterable[Span], *notes: str) -> str:
    """Draw hops and stages under what caused them, with results and those *notes*.

    In order of attempts; stages go first, hops of several at once by alphabet.
    A hop in a trace of its own, linked only, is marked.
    """
    below: defaultdict[str, list[Span]] = defaultdict(list)
    hops = {span.span_id: span for span in spans}
    for span in hops.values():
        below[span.parent_id if span.parent_id in hops else ""].append(span)

    def lines(span: Span, depth: int) -> list[str]:
        around = hops.get(span.parent_id)
        facts = ("rtobs.outcome", "rtobs.error_category", "rtobs.reason", *notes)
        words = [span.name, *filter(None, map(span.text, facts))]
        if around is not None and around.trace_id != span.trace_id:
            words.append("(linked)")
        inner = sorted(
            (each.number("rtobs.attempt") or 1, bool(each.hop), lines(each, depth + 1)) for each in below[span.span_id]
        )
        return ["  " * depth + "  ".join(words), *(line for *_, each in inner for line in each)]

    return "\n".join(line for span in below[""] for line in lines(span, 0))
