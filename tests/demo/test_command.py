"""The command line: what it prints where, how it ends, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import rtobs.cli
from rtobs.demo import brokers
from rtobs.demo.options import UsageError
from tests.demo.support import children, command

RTOBS = [sys.executable, "-m", "rtobs.cli"]


@pytest.mark.parametrize(
    ("arguments", "seen", "advice"),
    [
        (["--fault", "fire"], "--fault 'fire'", "choose one of: none, schema-drift"),
        (["--target", "fax"], "--target 'fax'", "choose one of: push, sms, email, in_app, ticket"),
        (["--seconds", "0"], "--seconds 0", "give 1 to 3600"),
        (["--seconds", "nan"], "--seconds nan", "give 1 to 3600"),
        (["--rate", "1e9"], "--rate 1e+09", "give 1 to 500"),
        (["--broker", "rabbit"], "--broker 'rabbit'", "amqp://localhost"),
        (["--broker", "amqp://me:secret@:1"], "--broker 'amqp://:1'", "amqp://localhost"),
        (["--broker", "amqp://host:99999"], "--broker 'amqp://host:99999'", "amqp://localhost"),
        (["--otlp", "localhost:4317"], "--otlp 'localhost:4317'", "http://localhost:4318"),
        (["--seconds", "many"], "'many' is not a number", "give one such as 20"),
        (["--seed", "1.5"], "'1.5' is not a whole number", "give one such as 1"),
        (["--colour", "red"], "--colour", "--help"),
    ],
)
def test_wrong_arguments(arguments, seen, advice):
    """A wrong argument ends with 2 at once, and says what was seen and what to do; secrets are not repeated."""
    done = command("demo", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert seen in done.stderr
    assert advice in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr


def test_version():
    """--version prints name and version."""
    done = command("--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"rtobs \d+\.\d+\.\d+\n", done.stdout)


def test_help_names_the_faults():
    """--help says which faults and targets there are."""
    done = command("demo", "--help")
    assert done.returncode == 0
    assert "schema-drift" in done.stdout
    assert "ticket" in done.stdout


@pytest.mark.parametrize("extra", ["typer", "rich"])
def test_missing_extras(monkeypatch, capsys, extra):
    """Without the extra the command prints the line that installs it and ends with 2."""
    found = rtobs.cli.importlib.util.find_spec
    monkeypatch.setattr(rtobs.cli.importlib.util, "find_spec", lambda name: None if name == extra else found(name))
    with pytest.raises(SystemExit) as ended:
        rtobs.cli.main()
    assert ended.value.code == 2
    assert f"needs {extra}" in capsys.readouterr().err
    assert 'pip install "rtobs[tools]"' in rtobs.cli.INSTALL


def test_a_missing_client_library(monkeypatch):
    """Without aio-pika a run over RabbitMQ is refused with the line that installs it."""
    monkeypatch.setattr(brokers.importlib.util, "find_spec", lambda name: None)
    brokers.check_client("memory")
    with pytest.raises(UsageError, match="pip install aio-pika"):
        brokers.check_client("amqp://localhost")


@pytest.mark.slow
def test_quiet_without_a_terminal():
    """Into a pipe nothing is printed while it runs, and at the end a plain summary without control characters."""
    with subprocess.Popen(
        [*RTOBS, "demo", "--seconds", "3", "--fault", "none"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        ready, _, _ = select.select([running.stdout], [], [], 3.0)
        assert not ready, "something was printed while it ran"
        out, err = running.communicate(timeout=40)
    assert (running.returncode, err) == (0, "")
    assert "\x1b" not in out
    for expected in (
        "Are deliveries delayed?",
        "Which connector is failing?",
        "Is one tenant affected?",
        "A message that was delivered",
    ):
        assert expected in out


def in_a_terminal(*arguments: str, until: str = "", then: int = 0) -> tuple[int, str]:
    """Run the demo in a pseudo-terminal; when *until* was printed, send the signal *then*; return code and output."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen([*RTOBS, *arguments], stdout=theirs, stderr=theirs, stdin=theirs, env=environment) as running:
        os.close(theirs)
        out, deadline = b"", time.monotonic() + 45
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # the other end was closed
                if select.select([ours], [], [], 0.2)[0]:
                    out += os.read(ours, 65536)
                    if until and until.encode() in out:
                        until = ""
                        running.send_signal(then)
                    continue
            if running.poll() is not None:
                break
        os.close(ours)
        return running.wait(5), out.decode()


@pytest.mark.slow
def test_the_view_in_a_terminal():
    """In a terminal the view is drawn again and again, and the summary follows."""
    code, out = in_a_terminal("demo", "--seconds", "3", "--fault", "none")
    assert code == 0
    assert out.count("Are deliveries delayed?") > 5
    assert "A message that was delivered" in out


@pytest.mark.slow
def test_control_c_ends_in_order():
    """Ctrl-C ends the run early with the summary of what was seen so far."""
    code, out = in_a_terminal("demo", "--seconds", "60", until="2 of 60 s", then=signal.SIGINT)
    assert code == 0
    assert "messages accepted" in out
    assert "Traceback" not in out


def wait_for_children(pid: int) -> list[int]:
    """Wait until a process has children."""
    deadline = time.monotonic() + 20
    while not (found := children(pid)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_observer_leaves_nothing_behind():
    """If the command itself is killed, its processes end by themselves."""
    with subprocess.Popen([*RTOBS, "demo", "--seconds", "60"], stdout=subprocess.DEVNULL) as running:
        (child,) = wait_for_children(running.pid)
        time.sleep(2)
        running.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < deadline, "the platform outlived the observer"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_broken_run():
    """If the only process of the platform is killed, the run ends with 1 and says what happened and what to do."""
    with subprocess.Popen(
        [*RTOBS, "demo", "--json", "--seconds", "60"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        (child,) = wait_for_children(running.pid)
        time.sleep(2)
        os.kill(child, signal.SIGKILL)
        out, err = running.communicate(timeout=30)
    assert (running.returncode, out) == (1, "")
    assert "The platform process was killed by SIGKILL during the run." in err
    assert "Run the demo again" in err


def test_a_broker_that_is_down():
    """Where no broker answers, the run ends with 1 and names the address, without its password."""
    done = command("demo", "--json", "--broker", "amqp://me:secret@127.0.0.1:1/")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Check that a broker answers at amqp://127.0.0.1:1/" in done.stderr
    assert "secret" not in done.stderr
    assert json.dumps("Traceback") not in done.stderr
