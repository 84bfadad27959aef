"""Slots that ``configure`` fills, so that hops reach the rooms above without importing them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

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
        "admit_tenant", "at_collection", "begin", "describers", "id_generator", "mint", "monotonic_ns", "observe",
        "on_shutdown", "prepare", "promise", "promises", "propagate_to", "ready", "redeem", "shared", "sinks",
        "wall_ns", "wire_key",
    )  # fmt: skip

    def __init__(self) -> None:
        self.wall_ns: Callable[[], int] = time.time_ns
        self.monotonic_ns: Callable[[], int] = time.perf_counter_ns
        self.ready = False
        self.prepare: Callable[[], None] = _nothing
        """Called before the first hop: finds the providers that the process has by then."""
        self.begin: Callable[[HopRecord], bool] = lambda _: True
        """Decides at a hop's start whether it is sampled; may give it an SDK span to stand for it."""
        self.sinks: tuple[Sink, ...] = ()
        self.observe: Callable[[Instrument, float, Mapping[Label, str]], None] = _nothing
        """Records one measurement of an instrument that no hop carries."""
        self.at_collection: dict[str, Read] = {}
        """Asked for what is true now whenever telemetry is collected; by topic."""
        self.on_shutdown: list[Callable[[], None]] = []
        """What runs beside the message path and ends with ``shutdown``."""
        self.promise: Callable[[Journey, str, int], None] = _nothing
        """Counts promised deliveries: journey, channel, how many."""
        self.admit_tenant: Callable[[str], bool] = lambda _: True
        """Tells whether a tenant gets a label of its own."""
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
        """Native message class -> the leaf's describe; filled when a client is wrapped."""
        self.shared: dict[type, tuple[Describe, ...]] = {}
        """The same for classes that messages of several leaves have, a tuple or a dict: each is tried."""

    def share(self, cls: type, describe: Describe) -> None:
        """Let *describe* be tried for a class that is not its leaf's own."""
        others = self.shared.get(cls, ())
        if describe not in others:
            self.shared[cls] = (*others, describe)

    def describe(self, native: object) -> Message | None:
        """Return a leaf's description of a native message; None where no leaf knows it."""
        describers, shared = self.describers, self.shared
        if native is None or not (describers or shared):
            return None
        for cls in type(native).__mro__:
            own = describers.get(cls)
            if own is not None:
                return own(native)
            for describe in shared.get(cls, ()):
                found = describe(native)
                if found is not None:
                    return found
        return None


runtime = Runtime()
