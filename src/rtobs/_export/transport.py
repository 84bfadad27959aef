"""What the pipeline sees of a way out: queued items become units, units are sent together, an answer comes back.

Must not know protocols or queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple


class Answer(NamedTuple):
    """What became of one request."""

    state: Literal["taken", "refused", "failed"]
    """``refused``: something in it is wrong, and it is useless to send it again as it is."""
    cause: str = ""
    """Why not, in a few words of a closed set."""
    detail: str = ""
    """What the collector said, or the error's name."""
    rejected: int = 0
    """Items of a taken request that the collector did not take."""
    soon: bool = False
    """Whether a failed one may be sent again after a short wait."""
    wait: float | None = None
    """Seconds that the collector asks to wait before."""
    final: bool = False
    """Whether a failed one has had all its tries already."""
    unanswered: bool = False
    """Whether a failed one may have arrived all the same."""


Unit = tuple[int, int, Any]
"""One queued item, ready to be sent: how many spans or log records it is, its bytes (0 = not known before it is sent),
and its content. A plain tuple, for there is one for every span."""


@dataclass(frozen=True)
class Transport:
    """The way out of one signal. Used by the export thread only, but for ``shutdown``."""

    unit: Callable[[Any], Unit]
    """Makes a queued item ready; raises where it cannot be sent."""
    send: Callable[[Sequence[Unit], float], Answer]
    """Tries once, until a deadline by ``time.monotonic``; raises where these units cannot be sent together."""
    shutdown: Callable[[], object]
    """Lets go of connections; from any thread."""
    timeout: float = 10.0
    """Seconds for one export, all tries and the waits between them included."""
    where: str = ""
    """The address, without secrets, for people to read."""
