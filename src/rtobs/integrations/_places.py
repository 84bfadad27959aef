"""Places: the low-cardinality name of a subject or topic, for every client whose names have levels.

Must not know any client. Names may be forged: nothing here raises.
"""

from __future__ import annotations

import re

_IDENTIFIER = re.compile(r"\d+|.*@.*|(?=.*\d)(?:[0-9a-f-]{16,}|[0-9a-z]{20,})", re.ASCII | re.IGNORECASE)


def template(name: str, separator: str, wildcard: str) -> str:
    """Return a name whose levels that are identifiers (numbers, UUIDs, addresses, long ids) became *wildcard*."""
    return separator.join(wildcard if _IDENTIFIER.fullmatch(level) else level for level in name.split(separator))
