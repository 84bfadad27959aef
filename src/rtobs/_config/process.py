"""What happens to the process: SIGTERM, and ends without ``atexit``. Must not know what is flushed."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from rtobs import _guard

_LOCKED = ("rtobs._telemetry.", "rtobs._export.", "rtobs._guard", "rtobs._hop.leaf", "rtobs._hop.handed",
           "rtobs._hop.hop", "rtobs._hop.slots", "rtobs._hop.watching", "rtobs._journey.span")  # fmt: skip
"""Modules that hold locks of ours."""
_AGAIN_SECONDS = 0.01
_LAST = -100
"""Of what multiprocessing does at the end of a process."""


def in_main_thread() -> bool:
    """Tell whether signal handlers can be set here."""
    return threading.current_thread() is threading.main_thread()


def chain_sigterm(flush: Callable[[], object], shutdown: Callable[[], object]) -> None:
    """Flush on SIGTERM, then do what would have happened without us. Setting it twice is setting it once."""
    before = signal.getsignal(signal.SIGTERM)
    if before is None:
        _guard.tell("sigterm", "SIGTERM is handled below Python and is left alone; call rtobs.shutdown() at the end")
    elif isinstance(before, _OnSigterm):
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
        if holds_a_lock(frame):  # waiting here for the export thread would wait for ourselves
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


def holds_a_lock(frame: FrameType | None) -> bool:
    """Tell whether the code of *frame*, which a signal handler has interrupted, may be inside a lock of ours."""
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith(_LOCKED):
            return True
        frame = frame.f_back
    return False


def at_end_of_pool_worker(shutdown: Callable[[], object]) -> None:
    """Have *shutdown* called at the end of a process of ``multiprocessing``, which knows no ``atexit``."""
    if "multiprocessing.util" not in sys.modules:
        return
    from multiprocessing import parent_process, util

    if parent_process() is not None:
        util.Finalize(None, shutdown, exitpriority=_LAST)
