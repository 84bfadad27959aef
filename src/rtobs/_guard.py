"""Never hurt the host: every fault of ours ends here, is counted, and is told once a minute.

Also the tallies of counts made below the metrics room. Knows plain integers and one logger; must not know hops,
spans or metrics.
"""

from __future__ import annotations

import logging
import threading
import time

from rtobs import _conventions as names

log = logging.getLogger("rtobs")
log.addHandler(logging.NullHandler())

strict = False
"""Set by ``configure(strict=True)``: faults of ours are raised instead of swallowed; for tests only."""

_QUIET_SECONDS = 60.0
_MOST_TALLIES = 4096
_lock = threading.RLock()  # a signal handler or a finaliser of the host's may count something in the middle
_tallies: dict[tuple[str, tuple[str, ...]], int] = {}
_last_told: dict[str, float] = {}
_too_deep = 0
"""Faults at the limit of recursion."""


def tally(instrument: names.Instrument, *values: str, by: int = 1) -> None:
    """Add *by* to a counter of ours; *values* are the instrument's labels in their declared order."""
    key = (instrument.name, values)
    with _lock:
        if key not in _tallies and len(_tallies) >= _MOST_TALLIES:
            key = (instrument.name, (names.OTHER,) * len(values))
        _tallies[key] = _tallies.get(key, 0) + by


def tallies() -> dict[tuple[str, tuple[str, ...]], int]:
    """Return all counts since the start of the process."""
    with _lock:
        found = dict(_tallies)
    if _too_deep:
        found[names.INTERNAL_ERRORS.name, ("recursion",)] = _too_deep
    return found


def fault(site: str, error: Exception) -> None:
    """Count a fault of ours at *site* and go on; one log line per site and minute.

    Call it from ``except Exception`` only: a BaseException is never ours to keep.
    """
    global _too_deep  # noqa: PLW0603  one count per process
    try:
        tally(names.INTERNAL_ERRORS, site)
        if not strict:
            tell(site, "internal error at %s: %s; the message was handled without it", site, type(error).__name__)
    except RecursionError:  # the host is so deep that nothing can be called any more
        _too_deep += 1
    if strict:
        raise error


def tell(topic: str, text: str, *args: object) -> None:
    """Log one warning on *topic*, at most once a minute."""
    now = time.monotonic()
    with _lock:
        if now - _last_told.get(topic, -_QUIET_SECONDS) < _QUIET_SECONDS:
            return
        _last_told[topic] = now
    try:
        log.warning(text, *args)
    except Exception:  # noqa: BLE001  a host's log handler may be broken; it must not break the message
        tally(names.INTERNAL_ERRORS, "log")


def forget() -> None:
    """Count from zero again: what was counted belongs to series that have ended."""
    global _too_deep  # noqa: PLW0603  as above
    with _lock:
        _tallies.clear()
        _too_deep = 0


def reset_after_fork() -> None:
    """Give a forked child a lock of its own and tallies that start at zero."""
    global _lock, _too_deep  # noqa: PLW0603  a lock held by another thread at the fork can never be released in the child
    _lock = threading.RLock()
    _too_deep = 0
    _tallies.clear()
    _last_told.clear()
