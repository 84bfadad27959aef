"""The front door: what `import rtobs` offers, and what it costs."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
import types
from pathlib import Path

import rtobs

# What only a leaf, a tool or a test may load: an app that does not use it must not pay for it.
NOT_LOADED = {
    "aio_pika",
    "aiomqtt",
    "aiobotocore",
    "aiohttp",
    "aiormq",
    "boto3",
    "botocore",
    "fastapi",
    "grpc",
    "httpx",
    "nats",
    "opentelemetry.exporter",
    "paho",
    "prometheus_client",
    "pytest",
    "redis",
    "rich",
    "starlette",
    "typer",
    "websockets",
    "yaml",
}


def _order(name: str) -> tuple[int, str]:
    # As the linter sorts it (RUF022): CONSTANTS, then Classes, then functions.
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def test_the_front_door_is_a_static_sorted_list():
    """`__all__` is written once, as a sorted list of at most 16 strings that any tool can read without running it."""
    tree = ast.parse(Path(rtobs.__file__).read_text(encoding="utf-8"))
    written = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and target.id == "__all__"
    ]
    assert len(written) == 1
    names = list(ast.literal_eval(written[0]))
    assert names == list(rtobs.__all__)
    assert names == sorted(set(names), key=_order)
    assert 1 <= len(names) <= 16


def test_every_public_name_is_there_and_says_what_it_is():
    """Each public name resolves and has a docstring of its own."""
    silent = []
    for name in rtobs.__all__:
        value = getattr(rtobs, name)
        doc = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
        if not (doc and doc.strip()):
            silent.append(name)
    assert silent == []


def test_nothing_else_is_in_the_doorway():
    """Whatever is not private and not a module of ours is listed, so that completion shows the surface and no more."""
    extra = {
        name
        for name, value in vars(rtobs).items()
        if not name.startswith("_") and name not in rtobs.__all__ and name != "annotations"
        if not (isinstance(value, types.ModuleType) and value.__name__.startswith("rtobs."))
    }
    assert extra == set()


def test_import_loads_no_client_and_no_tool():
    """`import rtobs` loads no client library, exporter, command line or test tool, and warns about nothing."""
    code = "import json, sys, rtobs; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    loaded = set(json.loads(done.stdout))
    assert "rtobs" in loaded
    assert loaded & NOT_LOADED == set()
    assert done.stderr == ""
