"""What the tests of all leaves share."""

from __future__ import annotations

import sys
from collections.abc import Generator

import pytest

from rtobs.slo import SLO, Deadline, Declaration
from tests.support import telemetry as support
from tests.support.telemetry import Telemetry, clock, telemetry

__all__ = ["clock", "forget_trust", "telemetry"]


@pytest.fixture(autouse=True)
def forget_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each test's wraps were the process's first: the least trust of earlier ones holds for none of them."""
    for name, leaf in list(sys.modules.items()):
        if name.startswith("rtobs.integrations.") and hasattr(leaf, "_elsewhere"):
            monkeypatch.setattr(leaf, "_elsewhere", type(leaf._elsewhere)())


@pytest.fixture
def promised() -> Generator[Telemetry, None, None]:
    """Telemetry of a process that promises deliveries within five seconds of their creation, or of their release."""
    arrives = SLO("arrives", 99, Deadline("promise", "5s"), "A promise.", "what-to-do", "the-owner")
    yield support.start(slos=Declaration("test", (arrives,)))
    support.stop()
