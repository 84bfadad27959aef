"""Instrumentors: what ``opentelemetry-instrument`` starts, one for each leaf, by the entry points of this package.

They follow the protocol of OpenTelemetry's ``BaseInstrumentor`` without needing its package:
https://opentelemetry-python-contrib.readthedocs.io/en/latest/instrumentation/base/instrumentor.html.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any, ClassVar

from rtobs import integrations


class Instrumentor:
    """Instruments the clients of one leaf; each call of ``instrument`` without arguments does the same as the CLI."""

    _active: ClassVar[set[str]] = set()

    def __init__(self, client: str) -> None:
        """Make one for *client*, a leaf's name."""
        self._client = client

    @property
    def is_instrumented_by_opentelemetry(self) -> bool:
        """Whether it is at work."""
        return self._client in self._active

    def instrumentation_dependencies(self) -> Collection[str]:
        """Return nothing: a library that is not installed is never imported, and is waited for at no cost."""
        return ()

    def instrument(self, **_options: Any) -> None:
        """Wrap every client of the library that is made from now on; options of the caller's tool are not ours."""
        self._active.add(self._client)
        integrations.instrument(self._client)

    def uninstrument(self, **_options: Any) -> None:
        """Give the library its constructors back."""
        self._active.discard(self._client)
        integrations.uninstrument(self._client)


def __getattr__(name: str) -> partial[Instrumentor]:
    """Return the instrumentor of the leaf *name*."""
    if name not in integrations.instrumentable():
        raise AttributeError(name)
    return partial(Instrumentor, name)
