"""Every call site made to fail, one at a time, while a host program runs; and what its host then saw."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rtobs import _conventions as names
from rtobs._hop import engine
from rtobs._hop.runtime import runtime
from rtobs._journey import journey
from tests.support import telemetry as support
from tests.unbreakable.drives import Drive, Saw
from tests.unbreakable.sites import ROOMS, Fault, Site, is_passage, recording
from tests.unbreakable.telling import Telling, Told

ERRORS: tuple[type[Exception], ...] = (ValueError, RecursionError, MemoryError)
_CACHES = ("_destinations", "_kept", "_names", "_quick")
"""Dictionaries and sets of modules that are caches, beside those of functools."""
_PATIENCE = 30
"""Seconds that a run may take before a program counts as hung; no machine is that slow, and no fault is waited for."""
Maker = Callable[[], Drive]


class Survey(NamedTuple):
    """The sites of one program, in the order they are reached."""

    cold: list[Site]
    """Those of its first run, when nothing is cached yet."""
    warm: list[Site]
    """Those that only later runs reach."""
    guards: set[Site]
    """Sites that only enter a guard: they are not made to fail."""


class Finding(NamedTuple):
    """One fault that did harm."""

    program: str
    site: Site
    error: type[Exception]
    harm: str

    def __str__(self) -> str:
        return f"{self.program}: {self.error.__name__} at {self.site}: {self.harm}"


_CACHED = type(functools.lru_cache(len))
"""Asked for by its class: a module's lazy objects, such as Django's settings, may not be asked for attributes."""


@functools.cache
def _caches(modules: int) -> list[Any]:
    """Return all caches of the rooms, as long as no more *modules* are imported."""
    rooms = tuple(f"rtobs.{room}" for room in ROOMS)
    found = [vars(module).items() for name, module in tuple(sys.modules.items()) if name.startswith(rooms)]
    return [
        value
        for name, value in itertools.chain(*found)
        if (name in _CACHES and isinstance(value, dict | set))
        or (type(value) is _CACHED and value.cache_info().maxsize is not None)
    ]


def forget_all() -> support.Telemetry:
    """Begin as a new process does: nothing counted, nothing cached."""
    found = support.start(strict=False)
    engine.is_on()  # binds the rooms: that is the process's start, not a message's way
    runtime._ways.clear()
    journey.forget_drawn()
    for cache in _caches(len(sys.modules)):
        if isinstance(cache, dict | set):
            cache.clear()
        else:
            cache.cache_clear()
    return found


async def survey(make: Maker) -> Survey:
    """Run a program and find its sites."""
    program = make()
    await program.open()
    await program.run()
    gc.collect()
    await asyncio.sleep(0.01)  # generators that nobody holds any more are closed
    gc.disable()  # what it calls is no call of ours
    try:
        forget_all()
        with recording() as first:
            await program.run()
        with recording() as second:
            await program.run()
    finally:
        gc.enable()
    await program.close()
    guards = first.guards() | second.guards()
    beside = guards | first.releases() | second.releases()
    cold = [site for site in first.sites if site not in beside]
    known = set(cold)
    return Survey(cold, [site for site in second.sites if site not in beside and site not in known], guards)


class Trial:
    """Makes sites of one program fail."""

    def __init__(self, name: str, make: Maker) -> None:
        self._name, self._make = name, make
        self._program: Drive | None = None
        self.findings: list[Finding] = []
        self.tried = 0

    async def _reopen(self) -> Drive:
        if self._program is not None:
            await self._program.close()
        program = self._program = self._make()
        await program.open()
        await program.run()
        return program

    async def _learn(self) -> None:
        """Find out what a run that nothing disturbs shows."""
        telemetry = forget_all()
        program = self._program or await self._reopen()
        self._saw = await program.run()
        with Telling(telemetry) as telling:
            assert await program.run() == self._saw
        self._told: Told = telling.told

    async def run(self, work: Iterable[tuple[Site, type[Exception], bool]]) -> None:
        """Raise each error at each site, and look; the third says whether the site is one of a first run."""
        await self._reopen()
        try:
            await self._learn()
            for site, error, cold in work:
                await self._one(site, error, cold=cold)
        finally:
            assert self._program is not None
            await self._program.close()

    async def _one(self, site: Site, kind: type[Exception], *, cold: bool) -> None:
        assert self._program is not None
        telemetry = forget_all()
        if not cold:
            await self._program.run()
        self.tried += 1
        saw: Saw | None = None
        raised: BaseException | None = None
        with Fault(site, kind("injected")) as fault:
            try:
                async with asyncio.timeout(_PATIENCE):
                    saw = await self._program.run()
            except BaseException as error:  # noqa: BLE001  whatever it is, it reached the host
                raised = error
        harm = self._harm(fault, saw, raised, telemetry)
        if harm and not (is_passage(site) and fault.raised):
            self.findings.append(Finding(self._name, site, kind, harm))
        left = engine.current()
        if left is not None:
            self.findings.append(Finding(self._name, site, kind, f"{left} stayed current"))
            support.attach(support.Context())
        if harm:  # what the program left behind in the broker is not what the next one expects
            await self._reopen()
        again = await self._next(telemetry)
        if again:
            self.findings.append(Finding(self._name, site, kind, f"after it: {again}"))
            await self._reopen()

    def _harm(self, fault: Fault, saw: Saw | None, raised: BaseException | None, telemetry: support.Telemetry) -> str:
        if not fault.raised:
            return "was not reached"
        if raised is not None:
            return f"reached the host: {raised!r}"
        if saw != self._saw:
            changed = [pair for pair in itertools.zip_longest(self._saw, saw or []) if pair[0] != pair[1]]
            return f"the host saw {changed[:2]}"
        if not telemetry.by(names.INTERNAL_ERRORS, "site"):
            return "was not counted"
        return ""

    async def _next(self, telemetry: support.Telemetry) -> str:
        """Run once more, undisturbed; return what is wrong with that."""
        assert self._program is not None
        with Telling(telemetry) as telling:
            try:
                async with asyncio.timeout(_PATIENCE):
                    saw = await self._program.run()
            except BaseException as error:  # noqa: BLE001  as above
                return repr(error)
        if saw != self._saw:
            return "the host saw something else"
        if telling.told != self._told:
            return f"telemetry differs: {_difference(self._told, telling.told)}"
        return ""


def _difference(expected: Told, found: Told) -> str:
    spans = [("-", *span[:2]) for span in expected.spans - found.spans]
    spans += [("+", *span[:2]) for span in found.spans - expected.spans]
    keys = expected.counts.keys() | found.counts.keys()
    counts = [
        (key, expected.counts.get(key, 0), found.counts.get(key, 0))
        for key in keys
        if expected.counts.get(key, 0) != found.counts.get(key, 0)
    ]
    return f"{spans[:4]} {counts[:4]}"
