"""A RabbitMQ of a test's own, for tests that stop, start or kill the broker and must not disturb the shared one.

It runs the installed server as the current user, beside any other node: own ports, name, cookie, data and logs, and
nothing listens outside the loopback interface. The wrapper that Debian puts on the path would change the user and
write to the system's folders, so the script behind it is started instead.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.support import brokers
from tests.support.timing import wait_until

PLACES = (
    "/usr/lib/rabbitmq/bin/rabbitmq-server",  # Debian, Ubuntu, Fedora
    "/opt/homebrew/sbin/rabbitmq-server",
    "/usr/local/sbin/rabbitmq-server",
)

_START = 50.0  # seconds; four on an idle machine
_STOP = 20.0


def binary() -> str | None:
    """Return the server's own start script, or None where RabbitMQ is not installed."""
    return next((place for place in PLACES if os.access(place, os.X_OK)), None)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class OwnRabbitMQ:
    """One private broker; ``stop`` and ``start`` keep its ports and its durable queues."""

    def __init__(self, folder: Path) -> None:
        script = binary()
        if script is None:
            message = f"RabbitMQ is not installed: none of {', '.join(PLACES)}"
            raise FileNotFoundError(message)
        self._script = script
        self._folder = folder
        self.port, distribution, epmd = _free_ports(3)
        self.inner_ports = (distribution, epmd)
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("home", "data", "log"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        # Empty files in place of the system's, so that the machine's own settings and plugins stay out.
        for name in ("env.conf", "rabbitmq.conf", "plugins"):
            (folder / name).touch()
        (folder / "plugins").write_text("[].\n", encoding="utf-8")
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))},
            "HOME": str(folder / "home"),  # the node's cookie is made here
            "RABBITMQ_CONF_ENV_FILE": str(folder / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_NODENAME": f"rtobs-test-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # Erlang's name server too is our own, so that it ends with the broker.
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Start the broker and return when it answers; an AssertionError shows its log if it does not."""
        if self._process is not None:
            return
        with (self._folder / "log" / "console").open("ab") as console:
            self._process = subprocess.Popen(
                [self._script],
                env=self._environment,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches the tests only, and `kill` every process of the broker
            )
        try:
            wait_until(self._answers_or_ended, _START)
            if self._process.poll() is not None:
                message = f"it ended with exit code {self._process.returncode}"
                raise AssertionError(message)  # noqa: TRY301 - told like the other way not to start
        except AssertionError as error:
            self.kill()
            message = f"RabbitMQ did not start: {error}\n{self._log()}"
            raise AssertionError(message) from error
        except BaseException:  # Ctrl-C, a test's timeout
            self.kill()
            raise

    def stop(self) -> None:
        """Shut the broker down as its operator would; clients see their connections closed."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP)
        self.kill()

    def kill(self) -> None:
        """End every process of the broker at once, as a crash would."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._process = None
        self._stop_name_server()

    def _answers_or_ended(self) -> bool:
        ended = self._process is None or self._process.poll() is not None
        return ended or not brokers.silence(self.url, self.port, brokers.AMQP.hello)

    def _stop_name_server(self) -> None:
        epmd = shutil.which("epmd") or "/usr/bin/epmd"
        # It refuses for a moment, until it has noticed that the node is gone.
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            done = subprocess.run(
                [epmd, "-kill"], env=self._environment, capture_output=True, text=True, timeout=10, check=False
            )
            if "Killed" in done.stdout or "Cannot connect" in done.stdout + done.stderr:
                return
            time.sleep(0.1)

    def _log(self) -> str:
        files = sorted((self._folder / "log").iterdir())
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)
