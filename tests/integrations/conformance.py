"""The conformance suite: what every leaf must do, written once and inherited by each leaf's tests.

A leaf's test file has a class that inherits ``Conformance`` and a fixture ``adapter`` that drives its client; see
``test_conformance_memory.py``.
"""

from __future__ import annotations

from tests.integrations.conformance_facts import Facts
from tests.integrations.conformance_hops import Contexts
from tests.integrations.conformance_sends import Sends
from tests.integrations.conformance_unchanged import Unchanged


class Conformance(Contexts, Sends, Unchanged, Facts):
    """Inherit it, and give it a fixture ``adapter``."""
