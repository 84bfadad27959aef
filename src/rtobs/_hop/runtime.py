"""Slots that ``configure`` fills, so that hops reach the rooms above without importing them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rtobs._hop.clock import LATE_SECONDS

if TYPE_CHECKING:
    from rtobs._conventions import Instrument, Label
    from rtobs._journey.journey import Journey
    from rtobs._journey.message import Message
    from rtobs._journey.outcome import Step
    from rtobs._journey.record import HopRecord, Sink


class Redeemed(NamedTuple):
    """What a receipt token says about the delivery it was minted for."""

    journey: Journey
    trace_id: int
    span_id: int
    channel: str
    provider: str


N = TypeVar("N")

Describe = Callable[[object], "Message | None"]


class Reading(NamedTuple):
    """One value that is asked for whenever telemetry is collected."""

    instrument: Instrument
    labels: Mapping[Label, str]
    value: float


Read = Callable[[], Iterable[Reading]]


def _nothing(*_: object) -> None:
    """Do nothing until somebody fills the slot."""


class Runtime:
    """The process's one set of slots."""

    __slots__ = (
        "_ways",
        "admit_tenant",
        "at_collection",
        "begin",
        "declares",
        "describers",
        "exports",
        "finish",
        "hold",
        "id_generator",
        "keep",
        "mint",
        "monotonic_ns",
        "observe",
        "off",
        "on_shutdown",
        "open_hops",
        "prepare",
        "promise",
        "promises",
        "propagate_to",
        "quiet", "quiet_of",
        "ready",
        "redeem",
        "release",
        "segmented",
        "service",
        "shared",
        "sinks", "slow_lag", "slow_ns", "starts_spans",
        "wall_ns",
        "wire_key",
    )  # fmt: skip

    def __init__(self) -> None:  # noqa: PLR0915  a slot each
        self.wall_ns: Callable[[], int] = time.time_ns
        self.monotonic_ns: Callable[[], int] = time.perf_counter_ns
        self.ready = False
        self.off = True
        """No hops are opened: the process is not ready yet, or has switched us off. Ask ``engine.is_on``."""
        self.prepare: Callable[[], None] = _nothing
        """Called before the first hop: finds the providers that the process has by then."""
        self.begin: Callable[[HopRecord], bool] = lambda _: True
        """Decides at a hop's start whether it is sampled; may give it an SDK span to stand for it."""
        self.starts_spans: Callable[[], bool] = lambda: False
        """Tells whether ``begin`` gives hops an SDK span, whose ids and parent are fixed from then on."""
        self.exports = False
        """Whether the spans of sampled hops leave this process at all."""
        self.service = ""
        """What other processes call this one."""
        self.keep: Callable[[HopRecord, str], None] = _nothing
        """Keeps an open hop and all that follows in its journey, for a reason."""
        self.segmented: Callable[[HopRecord], None] = _nothing
        """Told of each hop whose tenant has just been named."""
        self.sinks: tuple[Sink, ...] = ()
        self.quiet: tuple[Sink, ...] = ()
        """Those among ``quiet_of`` that look at hops of which there is nothing to tell: see ``choose_quiet``."""
        self.quiet_of: tuple[Sink, ...] = ()
        self.slow_ns = sys.maxsize
        """Duration up to which no hop counts as slow, whatever it is called."""
        self.slow_lag = LATE_SECONDS
        """How long a message may wait so that nobody calls its handling late or slow, seconds."""
        self.observe: Callable[[Instrument, float, Mapping[Label, str]], None] = _nothing
        """Records one measurement of an instrument that no hop carries."""
        self.at_collection: dict[str, Read] = {}
        """Asked for what is true now whenever telemetry is collected; by topic."""
        self.on_shutdown: list[Callable[[], None]] = []
        """What runs beside the message path and ends with ``shutdown``."""
        self.finish: Callable[[], object] = _nothing
        """Exports what is finished; for processes that end without Python's own end."""
        self.promise: Callable[[Journey, str, int, int], None] = _nothing
        """Counts promised deliveries: journey, channel, how many, and when their message is released (0 = at once)."""
        self.admit_tenant: Callable[[str], bool] = lambda _: True
        """Tells whether a tenant gets a label of its own."""
        self.declares: Callable[[str], bool] = lambda _: False
        """Tells whether a tenant was named in ``configure``."""
        self.mint: Callable[[HopRecord], str] = lambda _: ""
        """Signs a receipt token for a deliver hop."""
        self.redeem: Callable[[object, Step], Redeemed | None] = lambda _token, _step: None
        """Verifies a receipt token; None where it is not valid for the step, counted."""
        self.id_generator: Callable[[], int] | None = None
        """The trace ids of a provider that insists on its own."""
        self.promises: dict[str, Step] = {}
        self.propagate_to: frozenset[str] = frozenset()
        self.wire_key: bytes | None = None
        self.describers: dict[type, Describe] = {}
        """Native message class -> the leaf's describe; filled when a client is wrapped: see ``register``."""
        self.shared: dict[type, tuple[Describe, ...]] = {}
        """The same for classes that messages of several leaves have, a tuple or a dict: each is tried."""
        self._ways: dict[type, tuple[Describe, ...]] = {}
        self.open_hops: set[HopRecord] = set()
        """Hops that have begun and not ended."""
        self.hold: Callable[[HopRecord], None] = _nothing
        """Told of each consume hop that begins while the slots of any worker are known."""
        self.release: Callable[[HopRecord], None] = _nothing
        """Told of the end of each hop that ``hold`` has marked as held."""

    def use_slow(self, slow: Mapping[str, float]) -> None:
        """Let hops that are slower than the least of *slow*, seconds by name, be looked at by all sinks."""
        least = min(slow.values(), default=float("inf"))
        self.slow_ns = int(least * 1e9) if least < _LONGEST_SECONDS else sys.maxsize
        self.slow_lag = min(least, LATE_SECONDS)

    def choose_quiet(self) -> tuple[Sink, ...]:
        """Return the sinks that look at every hop; others leave out what is healthy, punctual and not sampled."""
        sinks = self.sinks
        self.quiet = tuple(sink for sink in sinks if getattr(sink, "sees_quiet", True))
        self.quiet_of = sinks
        return self.quiet

    def register(self, cls: type[N], describe: Callable[[N], Message | None]) -> None:
        """Let *describe* say what a message of the leaf's own class *cls* is."""
        known: dict[type, Any] = self.describers
        if known.get(cls) is not describe:
            known[cls] = describe
            self._ways.clear()

    def share(self, cls: type, describe: Describe) -> None:
        """Let *describe* be tried for a class that is not its leaf's own."""
        others = self.shared.get(cls, ())
        if describe not in others:
            self.shared[cls] = (*others, describe)
            self._ways.clear()

    def describe(self, native: object) -> Message | None:
        """Return a leaf's description of a native message; None where no leaf knows it."""
        ways = self._ways.get(type(native)) or self._ways_of(type(native))
        if len(ways) == 1:
            return ways[0](native)
        for describe in ways:
            found = describe(native)
            if found is not None:
                return found
        return None

    def _ways_of(self, cls: type) -> tuple[Describe, ...]:
        """Return who may know objects of *cls*, nearest class first, and remember it if there is somebody."""
        found: list[Describe] = []
        for base in cls.__mro__:
            if base in self.describers:
                found.append(self.describers[base])
                break
            found += self.shared.get(base, ())
        if found:
            if len(self._ways) >= _MOST_CLASSES:
                self._ways.clear()
            self._ways[cls] = tuple(found)
        return tuple(found)


_LONGEST_SECONDS = 1e9
_MOST_CLASSES = 256
runtime = Runtime()
