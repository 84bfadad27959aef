"""Pieces of PromQL: numbers, strings, selectors, windows; and rules as plain data.

Knows the language; must not know SLOs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

from rtobs.slo.durations import span

_BRACES: Final = '{{"{{"}}'
ALL: Final[Mapping[str, str]] = MappingProxyType({})
"""No further matchers."""
Rule = dict[str, Any]
"""One recording or alerting rule, as Prometheus' rule files have it."""


def text(value: str) -> str:
    """Return *value* as a string of PromQL."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def number(value: float) -> str:
    """Return *value* as a number of PromQL, without the noise of binary fractions."""
    return f"{value:.9g}"


def literal(value: str) -> str:
    """Return *value* as a label or annotation of an alert shows it: what looks like a template there is none."""
    return value.replace("{{", _BRACES)


def expanded(value: str) -> str:
    """Return what an alert shows of a value that ``literal`` has made."""
    return value.replace(_BRACES, "{{")


def one_of(names: Iterable[str]) -> str:
    """Return the rest of a matcher that accepts each of *names* and nothing else."""
    found = list(names)
    return f"={text(found[0])}" if len(found) == 1 else f"=~{text(_regex(found))}"


def none_of(names: Iterable[str]) -> str:
    """Return the rest of a matcher that accepts everything but *names*."""
    found = list(names)
    return f"!={text(found[0])}" if len(found) == 1 else f"!~{text(_regex(found))}"


def _regex(names: Iterable[str]) -> str:
    # RE2 knows no escape for what is not special, and re.escape does so for a few harmless characters.
    return "|".join(re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", name) for name in names)


def select(name: str, matchers: Mapping[str, str], window: str = "", offset: float = 0) -> str:
    """Return a selector: *matchers* are rests of matchers by label, *window* a range, *offset* seconds back."""
    inside = ",".join(f"{label}{rest}" for label, rest in matchers.items())
    braces = f"{{{inside}}}" if inside else ""
    back = f" offset {span(offset)}" if offset else ""
    return f"{name}{braces}{f'[{window}]' if window else ''}{back}"


def record(name: str, expression: str, labels: Mapping[str, str]) -> Rule:
    """Return a recording rule."""
    return {"record": name, "expr": expression, **({"labels": dict(labels)} if labels else {})}


def alert(
    name: str,
    expression: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
    *,
    wait: float = 0,
    keep: float = 0,
) -> Rule:
    """Return an alerting rule; it has to hold for *wait* seconds, and holds on for *keep* seconds."""
    rule: Rule = {"alert": name, "expr": expression}
    if wait:
        rule["for"] = span(wait)
    if keep:
        rule["keep_firing_for"] = span(keep)
    return {**rule, "labels": dict(labels), "annotations": dict(annotations)}
