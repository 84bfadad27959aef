"""Slots that ``configure`` fills, so that hops reach the rooms above without importing them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
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


def _nothing(*_: object) -> None:
    """Do nothing until somebody fills the slot."""


class Runtime:
    """The process's one set of slots."""

    __slots__ = (
        "admit_tenant", "begin", "describers", "id_generator", "mint", "monotonic_ns", "observe", "prepare", "promise",
        "promises", "propagate_to", "ready", "redeem", "sinks", "wall_ns", "wire_key",
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

    def describe(self, native: object) -> Message | None:
        """Return a leaf's description of a native message; None where no leaf knows it."""
        describers = self.describers
        if native is None or not describers:
            return None
        for cls in type(native).__mro__:
            describe = describers.get(cls)
            if describe is not None:
                return describe(native)
        return None


runtime = Runtime()
