"""The probe: runs inside the application, meets its clients, and at the end writes down what it saw.

It changes nothing but what ``instrument`` does, constructors, and wraps no client. Must not judge; see ``advice``.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections import Counter
from functools import partial
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from opentelemetry import trace

from rtobs import _conventions as names
from rtobs import _guard, integrations
from rtobs._hop import leaf
from rtobs._hop.handed import Handed
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message
from rtobs.integrations import _constructors
from rtobs.integrations._twin import StandIn

FOLDER = "RTOBS_DOCTOR_FOLDER"
"""The environment variable that names where each process writes what it saw."""

_MOST_CLIENTS = 1000
_CONTRIB = "opentelemetry.instrumentation."
_OTHERS = ("ddtrace", "sentry_sdk", "newrelic", "elasticapm", "logfire")


class Probe:
    """What one process is seen to do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clients: list[tuple[str, Any]] = []
        """Kept alive, so that at the end each can be asked whether it was wrapped; a run under the doctor is short."""
        self.forks = 0
        self.given: Counter[str] = Counter()
        self.passed_by: Counter[str] = Counter()

    def start(self) -> None:
        """Begin to look on."""
        for name, packages in integrations.instrumentable().items():
            module = integrations.leaf_of(name)
            _constructors.meet(module, packages, partial(self.met, name))
        self._count_what_is_handed_out()
        os.register_at_fork(after_in_parent=self._forked, after_in_child=self._is_child)
        atexit.register(self.write)

    def met(self, name: str, client: Any) -> None:
        """Take one client that was made."""
        if len(self.clients) < _MOST_CLIENTS:
            self.clients.append((name, client))

    def _forked(self) -> None:
        self.forks += 1

    def _is_child(self) -> None:
        self.clients, self.forks = [], 0
        self.given.clear()
        self.passed_by.clear()

    def _count_what_is_handed_out(self) -> None:
        probe, passed_by = self, leaf.passed_by

        class Counted(Handed):
            __slots__ = ()

            def put(self, message: Message, now_ns: int) -> None:
                probe.given[f"{message.system} {message.destination}"] += 1
                super().put(message, now_ns)

        def counted(message: Message) -> None:
            if leaf.received.look(message.native) is not None:
                self.passed_by[f"{message.system} {message.destination}"] += 1
            passed_by(message)

        leaf.received.__class__ = Counted  # the one object: other modules know it by name
        leaf.passed_by = counted

    def seen(self) -> dict[str, Any]:
        """Return what was seen so far."""
        left = Counter(f"{one.system} {one.destination}" for one, _ in [*leaf.received.waiting.values()])
        return {
            "pid": os.getpid(),
            "clients": self._clients(),
            "versions": {name: self._version(name) for name in sorted({name for name, _ in self.clients})},
            "contrib": _contrib(),
            "others": [name for name in _OTHERS if name in sys.modules],
            "handed_out": dict(self.given),
            "unscoped": dict(left),
            "passed_by": dict(self.passed_by),
            "tallies": {
                name: sum(count for (at, _), count in _guard.tallies().items() if at == name)
                for name in (names.INTERNAL_ERRORS.name, names.PROPAGATION_MISSING.name)
            },
            "forks": self.forks,
            "scraped": "rtobs._export.prometheus" in sys.modules,
            "spans": {
                "ready": runtime.ready, "off": runtime.off, "exports": runtime.exports,
                "sdk_spans": runtime.starts_spans(), "provider": _name(type(trace.get_tracer_provider())),
            },
        }  # fmt: skip

    def _clients(self) -> list[dict[str, Any]]:
        found: Counter[tuple[str, str, bool]] = Counter()
        for name, client in self.clients:
            found[name, _name(client.__class__), _is_wrapped(name, client)] += 1
        return [
            {"leaf": name, "class": cls, "wrapped": wrapped, "number": number}
            for (name, cls, wrapped), number in sorted(found.items())
        ]

    def _version(self, name: str) -> dict[str, Any]:
        supports: str = getattr(import_module(integrations.leaf_of(name)), "SUPPORTS", "")
        found: dict[str, str] = {}
        for one in supports.split(";"):
            package = one.strip().partition(">=")[0].partition(" ")[0]
            try:
                found[package] = metadata.version(package)
            except (metadata.PackageNotFoundError, ValueError):
                continue
        return {"supports": supports, "installed": found}

    def write(self) -> None:
        """Write what was seen to a file of this process."""
        try:
            (self.folder / f"{os.getpid()}.json").write_text(json.dumps(self.seen()), encoding="utf-8")
        except Exception as error:  # noqa: BLE001  the application's end is its own
            sys.stderr.write(f"rtobs doctor: what was seen cannot be written: {type(error).__name__}: {error}\n")


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_wrapped(name: str, client: Any) -> bool:
    kind: type = type(client)  # pyright: ignore[reportUnknownVariableType]  it may be anything
    if name == "faststream":
        middlewares = getattr(getattr(client, "config", None), "broker_middlewares", ())
        return any(_name(one.__class__) == "rtobs.integrations.faststream.Middleware" for one in middlewares)
    if name == "django":
        settings: Any = import_module("django.conf").settings
        return "rtobs.integrations.django.Middleware" in settings.MIDDLEWARE
    middlewares = getattr(client, "user_middleware", ())
    return (
        "__rtobs_plain__" in vars(kind)
        or issubclass(kind, StandIn)
        or any(_name(one.cls) == "rtobs.integrations.asgi.Middleware" for one in middlewares)
    )


def _contrib() -> list[str]:
    """Return the instrumentations of OpenTelemetry's that are at work, by the last part of their module."""
    found: set[str] = set()
    for name, module in [*sys.modules.items()]:
        if name.startswith(_CONTRIB):
            for one in vars(module).values():
                instance = vars(one).get("_instance") if isinstance(one, type) else None
                if instance is not None and getattr(instance, "_is_instrumented_by_opentelemetry", False):
                    found.add(one.__module__.removeprefix(_CONTRIB).partition(".")[0])
    return sorted(found)


def start() -> None:
    """Start the probe where the doctor asked for it."""
    folder = os.environ.get(FOLDER)
    if folder and _running is None:
        _begin(Path(folder))


_running: Probe | None = None


def _begin(folder: Path) -> None:
    global _running  # noqa: PLW0603  one for each process
    _running = Probe(folder)
    _running.start()
