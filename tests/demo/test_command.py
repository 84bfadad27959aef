"""The command line: what it prints where, how it ends, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import rtobs.cli
from rtobs.demo import brokers, ports
from rtobs.demo.options import Options, UsageError
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
        (["--broker", "rabbit"], "--broker 'rabbit'", "amqp://localhost, redis://localhost or nats://localhost"),
        (["--broker", "kafka://localhost"], "--broker 'kafka://localhost'", "amqp://localhost, redis://localhost"),
        (["--broker", "amqp://me:secret@:1"], "--broker 'amqp://:1'", "amqp://localhost"),
        (["--broker", "amqp://host:99999"], "--broker 'amqp://host:99999'", "amqp://localhost"),
        (["--otlp", "localhost:4317"], "--otlp 'localhost:4317'", "http://localhost:4318"),
        (["--seconds", "many"], "'many' is not a number", "give one such as 20"),
        (["--prometheus", "65536"], "--prometheus 65536", "give a port from 1 to 65535"),
        (
            ["--prometheus", "65532", "--broker", "nats://localhost"],
            "--prometheus 65532",
            "give a port from 1 to 65531",
        ),
        (["--fault-after", "20"], "--fault-after 20", "give 0 or more, and less than the 20 seconds of the run"),
        (["--slo", "nowhere.yaml"], "--slo nowhere.yaml", "give the path of a declaration"),
        (["--prometheus", "metrics"], "'metrics' is not a whole number", "give one such as"),
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


@pytest.mark.parametrize(
    ("address", "install"),
    [
        ("amqp://localhost", "pip install aio-pika"),
        ("rediss://localhost", "pip install redis"),
        ("NATS://localhost", "pip install nats-py"),
    ],
)
def test_a_missing_client_library(monkeypatch, address, install):
    """Without its client library a run over a broker is refused with the line that installs it."""
    monkeypatch.setattr(brokers.importlib.util, "find_spec", lambda name: None)
    brokers.check_client("memory")
    with pytest.raises(UsageError, match=install):
        brokers.check_client(address)


def test_prometheus_that_cannot_work(monkeypatch):
    """--prometheus is refused where a port is taken or the extra is missing, and says which and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("demo", "--prometheus", str(port))
        assert (done.returncode, done.stdout) == (2, "")
        assert f"port {port} cannot be used (Address already in use)" in done.stderr
        assert "give another" in done.stderr
        with pytest.raises(UsageError, match=rf"port [0-9]+ cannot .* takes {port - 2} to {port + 2}, one for each"):
            ports.check_ports(Options(broker="redis://localhost", prometheus=port - 2))
    monkeypatch.setattr(ports.importlib.util, "find_spec", lambda name: None)
    ports.check_ports(Options())
    with pytest.raises(UsageError, match=r'pip install "rtobs\[prometheus\]"'):
        ports.check_ports(Options(prometheus=port))


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


@pytest.fixture(scope="module")
def unusable():
    """What is said of addresses where no such broker is, all asked side by side: (scheme, what is there) -> output."""

    def hang_up(listener):
        while True:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()
                continue
            return

    with socket.create_server(("127.0.0.1", 0)) as mute, socket.create_server(("127.0.0.1", 0)) as other:
        threading.Thread(target=hang_up, args=(other,), daemon=True).start()
        there = {"nobody": 1, "mute": mute.getsockname()[1], "other": other.getsockname()[1]}
        asked = [(scheme, what) for scheme in ("amqp", "redis", "nats") for what in there]
        with ThreadPoolExecutor(len(asked)) as pool:
            yield dict(
                zip(
                    asked,
                    pool.map(
                        lambda one: command(
                            "demo", "--json", "--broker", f"{one[0]}://me:secret@127.0.0.1:{there[one[1]]}"
                        ),
                        asked,
                    ),
                    strict=True,
                )
            )
        other.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "name"), [("amqp", "RabbitMQ"), ("redis", "Redis"), ("nats", "NATS")], ids=lambda one: one
)
@pytest.mark.parametrize("what", ["nobody", "mute", "other"])
def test_a_broker_that_is_not_there(unusable, scheme, name, what):
    """Where nobody listens, nobody answers or another server does, the run ends with 1 and names the address."""
    done = unusable[scheme, what]
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Check that {name} answers at {scheme}://127.0.0.1:" in done.stderr
    assert "secret" not in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) < 6, done.stderr


@pytest.mark.slow
def test_nats_without_jetstream(own_nats):
    """A NATS server without JetStream is told apart, with the option that switches it on."""
    own_nats.stop()
    own_nats.start("jetstream: disabled")
    done = command("demo", "--json", "--broker", own_nats.url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "start nats-server with --jetstream" in done.stderr
