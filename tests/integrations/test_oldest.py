"""The oldest supported version of each client: its leaf's own tests in an environment that has it (`make soak`)."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.integrations import index
from tests.support.pages import ROOT
from tests.support.scripts import environment

TESTS = {
    "aio_pika": "test_conformance_aio_pika.py", "aiohttp": "test_http_clients.py",
    "aiokafka": "test_conformance_aiokafka.py", "aiomqtt": "test_aiomqtt.py", "botocore": "test_conformance_sqs.py",
    "celery": "test_celery.py", "confluent_kafka": "test_conformance_confluent_kafka.py", "django": "test_django.py",
    "faststream": "test_faststream.py", "httpx": "test_httpx.py", "kafka": "test_conformance_kafka.py",
    "nats": "test_conformance_nats.py", "paho": "test_paho.py", "pika": "test_conformance_pika.py",
    "redis": "test_conformance_redis.py", "requests": "test_http_clients.py",
    "websockets": "test_conformance_websockets.py", "wsgi": "test_wsgi.py",
}  # fmt: skip
"""Leaf -> what shows that it works; asgi names no range, and aiobotocore says itself which botocore it wants."""

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("name", TESTS)
def test_a_leaf_works_with_the_oldest_version_that_it_supports(name, tmp_path):
    """The lowest version in `SUPPORTS`, before everything else that this environment has, passes the leaf's tests."""
    oldest = index.leaves()[name].SUPPORTS.rpartition(";")[2].strip()
    uv = str(Path(sys.executable).with_name("uv"))
    python = tmp_path / "env" / "bin" / "python"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "env")],
        [uv, "pip", "install", "--quiet", "--python", str(python), "--resolution", "lowest-direct", oldest],
    ):
        subprocess.run(command, env=environment(UV_LINK_MODE="copy"), check=True, timeout=300)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "rest.pth").write_text(sysconfig.get_path("purelib"))  # on the path behind what was just installed
    (site / "ours.pth").write_text(f"{ROOT / 'src'}\n")
    client = oldest.partition(">=")[0]
    version = "import importlib.metadata, sys; print(importlib.metadata.version(sys.argv[1]))"
    seen = subprocess.run(
        [python, "-c", version, client], env=environment(), capture_output=True, text=True, check=True
    )
    assert f"{seen.stdout.strip()}.".startswith(f"{oldest.partition('>=')[2].partition(',')[0]}.")
    print(client, seen.stdout.strip())
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/integrations/{TESTS[name]}"],
        cwd=ROOT, env=environment(PYTHONWARNINGS="default"), capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    print("\n".join(done.stdout.splitlines()[-5:]))
    assert done.returncode == 0, done.stdout[-4000:]
