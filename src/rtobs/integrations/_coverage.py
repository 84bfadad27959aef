"""Coverage: what a leaf says about itself, once; ``docs/integrations/index.md`` is written from it.

Words for people; nothing here is read on a message's way.
"""

from __future__ import annotations

from typing import NamedTuple


class Coverage(NamedTuple):
    """What one leaf covers; versions are its ``SUPPORTS`` and its default trust is its ``TRUST``."""

    client: str
    produce: str
    """Ways to send that are hops, or details of one."""
    consume: str
    carrier: str
    """Where the journey travels."""
    attempt: str
    """What the number of an attempt is taken from, beside our header."""
    lag: str
    """Whose clock lag begins with, where our header is missing."""
    depth: str
    """How ``watch`` learns how many messages wait."""
    missing: str
    """What is not covered."""
