"""``docs/integrations/index.md``, written from what the leaves say of themselves: never by hand (a test compares them).

``python -m tests.integrations.index`` writes it again.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rtobs import integrations
from rtobs.integrations._coverage import Coverage
from tests.support.pages import ROOT

PAGE = ROOT / "docs" / "integrations" / "index.md"
TEXT = """\
# What each leaf covers

Written by `python -m tests.integrations.index` from the leaves. Versions are those that the tests of the leaf run with,
the first one is the oldest supported; `rtobs doctor` tells about others. Trust is the default: `trusted` continues the
sender's journey, `link` begins a new one that is linked to it.

{table}
"""
_PAGES = {"botocore": "sqs", "aiobotocore": "sqs"}
_HEADS = ("client", "versions", "produce", "consume", "carrier", "attempt", "lag", "depth", "trust", "not covered")


def leaves() -> dict[str, Any]:
    """Return the leaf modules of the package, by name."""
    names = [name for name in integrations.instrumentable() if integrations.leaf_of(name).startswith("rtobs.")]
    return {name: import_module(f"rtobs.integrations.{name}") for name in sorted([*names, "memory"])}


def page() -> str:
    """Return the page."""
    rows = [_HEADS, ("---",) * len(_HEADS), *(_row(name, leaf) for name, leaf in leaves().items())]
    return TEXT.format(table="\n".join(f"| {' | '.join(row)} |" for row in rows))


def _row(name: str, leaf: Any) -> tuple[str, ...]:
    said: Coverage = leaf.COVERAGE
    link = f"[{said.client}](../leaves/{_PAGES.get(name, name)}.md)"
    trust = getattr(leaf, "TRUST", "trusted") if said.consume != "none" else "none"
    return (
        link, leaf.SUPPORTS, said.produce, said.consume, said.carrier, said.attempt, said.lag, said.depth, trust,
        said.missing,
    )  # fmt: skip


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
