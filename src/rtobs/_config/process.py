"""What happens to the process: SIGTERM. Must not know what is flushed."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

_LOCKED = ("rtobs._telemetry.", "rtobs._export.", "rtobs._guard", "rtobs._hop.leaf", "rtobs._hop.hop",
           "rtobs._hop.slots", "rtobs._hop.watching")  # fmt: skip
"""Modules that hold locks of ours."""
_AGAIN_SECONDS = 0.01


def in_main_thread() -> bool:
    """Tell whether signal handlers can be set here."""
    return threading.current_thread() is threading.main_thread()


def chain_sigterm(flush: Callable[[], object], shutdown: Callable[[], object]) -> None:
    """Flush on SIGTERM, then do what would have happened without us. Setting it twice is setting it once."""
    before = signal.getsignal(signal.SIGTERM)
    if isinstance(before, _OnSigterm):
        before.flush, before.shutdown = flush, shutdown
    else:
        signal.signal(signal.SIGTERM, _OnSigterm(before, flush, shutdown))


class _OnSigterm:
    """The handler: the process may go on for a while if there was a handler before, and ends if there was none."""

    def __init__(self, before: object, flush: Callable[[], object], shutdown: Callable[[], object]) -> None:
        self._before = before
        self.flush = flush
        self.shutdown = shutdown

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _holds_a_lock(frame):  # waiting here for the export thread would wait for ourselves
            again = threading.Timer(_AGAIN_SECONDS, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
        elif callable(self._before):
            self.flush()
            self._before(number, frame)
        elif self._before is signal.SIG_IGN:
            self.flush()
        else:
            self.shutdown()
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


def _holds_a_lock(frame: FrameType | None) -> bool:
    """Tell whether the interrupted code may be inside a lock of ours."""
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_LOCKED):
            return True
        frame = frame.f_back
    return False
