"""What the parts of a declaration must not say together.

Takes what the grammar has read, with wrong values left out; notes mistakes and returns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rtobs._conventions import OTHER, UNKNOWN
from rtobs.slo.grammar import BAD
from rtobs.slo.mistakes import Mistakes, Path, items, listed, shown, table

_WHERE: Final = {"accept": "route", "consume": "destination", "job": "connector", "deadline": "channel"}
"""By what the hops of a kind can be told apart."""
_GROUPS: Final = {"channel": "deadline", "connector": "job"}
"""What an SLO has to be about to be grouped."""
_RESERVED: Final = (OTHER, UNKNOWN)


def check(data: Mapping[str, Any], mistakes: Mistakes) -> None:
    """Note what is wrong between the parts of a declaration."""
    for path in mistakes.source.repeated:
        mistakes.add(path, f"saw the key {shown(path[-1])} a second time in one table", "keep one of them")
    reserved(data.get("tenants", ()), ("tenants",), mistakes)
    _policy(data.get("policy", ()), ("policy",), mistakes)
    names: dict[str, int] = {}
    for index, slo in enumerate(items(mistakes.source.data.get("slos")) or ()):
        name = (table(slo) or {}).get("name")
        if isinstance(name, str) and names.setdefault(name, index) != index:
            first = mistakes.source.line(("slos", names[name]))
            mistakes.add(
                ("slos", index, "name"),
                f"saw {shown(name)} a second time" + (f"; the first is on line {first}" if first else ""),
                "give each SLO a name of its own",
            )


def check_slo(data: Mapping[str, Any], path: Path, mistakes: Mistakes, owner: str = "") -> None:
    """Note what is wrong between the parts of one SLO; *owner* is who owns it if it does not say."""
    if "owner" not in data and not owner:
        mistakes.add(path, "saw no owner", "name who acts, here or for the whole declaration")
    about = _sli(data.get("sli", {}), (*path, "sli"), mistakes)
    reserved(data.get("tenants", ()), (*path, "tenants"), mistakes)
    _policy(data.get("policy", ()), (*path, "policy"), mistakes)
    for key in data.get("where", {}):
        if about and key != _WHERE.get(about):
            wanted = f"use where: {_WHERE[about]}" if about in _WHERE else "leave it out"
            saw = f"saw {key}, by which an SLO about {about} cannot be told apart"
            mistakes.add((*path, "where", key), saw, wanted)
    group = data.get("group_by")
    if group and about and about != _GROUPS[group]:
        wanted = next((name for name, kind in _GROUPS.items() if kind == about), "")
        advice = f"use group_by: {wanted}" if wanted else "leave it out"
        mistakes.add((*path, "group_by"), f"saw {group}, and an SLO about {about} has none", advice)
    for name in _GROUPS:
        if f"{name}s" in data and group != name:
            advice = f"add group_by: {name}, or leave the objectives out"
            mistakes.add((*path, f"{name}s"), f"saw objectives by {name} without group_by: {name}", advice)
        for one in data.get(f"{name}s", ()):
            if one not in data.get("where", {}).get(name, (one,)):
                advice = f"add it to where.{name}, or leave its objective out"
                mistakes.add(
                    (*path, f"{name}s", one), f"saw an objective for {shown(one)}, which is not counted", advice
                )
    if "every" in data and about and about != "job":
        mistakes.add((*path, "every"), f"saw every for an SLO about {about}", "leave it out; it is for hop: job")


def _sli(sli: Mapping[str, Any], path: Path, mistakes: Mistakes) -> str:
    """Return what the SLO is about: a kind of hop, "stage" or "deadline"; empty where that is not known."""
    kind, hop = sli.get("kind", ""), str(sli.get("hop", ""))
    if kind == "latency" and ("hop" in sli) == ("stage" in sli):
        saw = "saw both hop and stage" if hop else "saw neither hop nor stage"
        mistakes.add(path, saw, "name one: hop: accept, say, or stage: enrich")
        return ""
    if kind == "ratio" and hop:
        for index, word in enumerate(sli.get("bad", ())):
            if word not in BAD[hop]:
                saw = f"saw {shown(word)}, which is no bad end of {hop}"
                mistakes.add((*path, "bad", index), saw, f"use {listed(BAD[hop])}")
    return "deadline" if kind == "deadline" else "stage" if "stage" in sli else hop


def reserved(names: Any, path: Path, mistakes: Mistakes) -> None:
    """Note which of *names* stand for tenants without a name."""
    for index, name in enumerate(names):
        if name in _RESERVED:
            at = (*path, name if isinstance(names, Mapping) else index)
            mistakes.add(at, f"saw {shown(name)}, which stands for tenants without a name", "name a tenant")


def _policy(steps: Any, path: Path, mistakes: Mistakes) -> None:
    seen: set[float] = set()
    for index, step in enumerate(steps):
        left = step.get("budget_left")
        if left in seen:
            mistakes.add((*path, index, "budget_left"), f"saw {shown(left)} a second time", "keep one step for each")
        elif left is not None:
            seen.add(left)
