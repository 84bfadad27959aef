"""Text from outside as it may stand in a page: values of labels are whatever somebody sent.

Knows Markdown and characters only.
"""

from __future__ import annotations

import re
from typing import Final

from rtobs import _redaction as redaction

_LONGEST: Final = 120
_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP: Final = re.compile(r"[\\`*\[\]~$|]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
_LINKS: Final = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)", re.IGNORECASE)
"""Where an address begins that a page would make a link of."""


def literal(text: str) -> str:
    """Return *text* as one short line that a Markdown page shows as it is: no markup, no HTML, no links."""
    line = redaction.text(" ".join(text.split()), _LONGEST)
    line = _LINKS.sub(r"\\", _MARKUP.sub(r"\\\g<0>", line))
    return re.sub("[&<>]", lambda found: _ENTITIES[found[0]], line)
