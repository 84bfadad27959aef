"""docs/contracts.md is what others build against: it and the code must say the same."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import rtobs

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "contracts.md").read_text()
STUB = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
PROGRAMS = ("notification_service.py", "webhook_connector.py", "websocket_chat.py")


@pytest.fixture(scope="module")
def stub() -> dict[str, Any]:
    """The stub on the page, executed."""
    namespace: dict[str, Any] = {}
    exec(compile(STUB, "docs/contracts.md", "exec"), namespace)  # noqa: S102  our own page
    return namespace


def shape(function: Any) -> list[tuple[str, Any, bool]]:
    """Names, kinds and presence of defaults of a function's parameters."""
    return [(p.name, p.kind, p.default is not p.empty) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize(
    "name",
    ["accept", "configure", "consume", "current", "deliver", "job", "publish", "receipt", "shutdown", "stage", "wrap"],
)
def test_functions_have_the_signature_on_the_page(stub: dict[str, Any], name: str) -> None:
    """A public function takes what the contract says, by the same names."""
    assert shape(getattr(rtobs, name)) == shape(stub[name])


def test_the_page_names_every_public_function_and_class(stub: dict[str, Any]) -> None:
    """Nothing public is missing from the contract."""
    assert set(rtobs.__all__) - {"integrations"} <= set(stub)


@pytest.mark.parametrize("name", ["Outcome", "ErrorCategory"])
def test_closed_sets_are_the_ones_on_the_page(stub: dict[str, Any], name: str) -> None:
    """Outcomes and error categories are exactly the words of the contract."""
    assert {m.name: m.value for m in getattr(rtobs, name)} == {m.name: m.value for m in stub[name]}


def test_hop_has_the_methods_on_the_page(stub: dict[str, Any]) -> None:
    """The handle offers what the contract says, and nothing else."""
    public = {name for name in vars(rtobs.Hop) if not name.startswith("_")}
    assert public == {name for name in vars(stub["Hop"]) if not name.startswith("_")}
    for name in public - {"correlation_id", "headers"}:
        assert shape(getattr(rtobs.Hop, name)) == shape(getattr(stub["Hop"], name)), name


@pytest.mark.slow
def test_programs_type_check_against_the_stub_alone(tmp_path: Path) -> None:
    """Three realistic programs need nothing but the contract's signatures."""
    package = tmp_path / "rtobs"
    (package / "integrations").mkdir(parents=True)
    signatures = re.sub(r"def deliver\(.*judge: Any = None\) -> Any: \.\.\.\n", "", STUB)  # a stub has overloads only
    (package / "__init__.pyi").write_text(signatures + "\nfrom rtobs import integrations as integrations\n")
    (package / "integrations" / "__init__.pyi").write_text("def unwrap(client: T) -> T: ...\n".replace("T", "object"))
    (package / "integrations" / "asgi.pyi").write_text(
        "from typing import Any\nclass Middleware:\n    def __init__(self, app: Any) -> None: ...\n"
        "    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...\n"
    )
    programs = [str(ROOT / "tests" / "typing" / name) for name in PROGRAMS]
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--cache-dir",
        str(tmp_path / "cache"),
        "--config-file",
        os.devnull,
    ]
    checked = subprocess.run(
        [*command, *programs],
        capture_output=True,
        text=True,
        env={**os.environ, "MYPYPATH": str(tmp_path)},
        cwd=tmp_path,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_schemas_named_on_the_page_are_schemas() -> None:
    """Every JSON Schema that the contract names exists and is one."""
    found = re.findall(r"`([\w/.]+schema\.json)`", PAGE)
    assert len(found) == 8
    for name in found:
        assert json.loads((ROOT / name).read_text())["$schema"].endswith("2020-12/schema")
