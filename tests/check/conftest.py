"""Fixtures of the tests of checks."""

from __future__ import annotations

import itertools
import json
import sys

import pytest

from tests.check import support
from tests.incident.support import rtobs

_COUNT = itertools.count()


@pytest.fixture
def check(tmp_path):
    """Run ``rtobs check`` on source, or on files; returns exit code, what was printed (plain data) and errors."""
    before = set(sys.modules)

    def run(source=support.READY, *arguments, files=None, modules=None, form="--json"):
        name = f"checked_{next(_COUNT)}"
        support.write(tmp_path, {f"{name}.py": source, **(files or {})})
        code, out, errors = rtobs("check", *(modules or [name]), *([form] if form else []), *arguments, cwd=tmp_path)
        return code, json.loads(out) if form and out else out.replace(name, "shop"), errors.replace(name, "shop")

    yield run
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
