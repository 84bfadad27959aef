"""A Mosquitto of a test's own, for tests that stop, start or configure it and must not disturb the shared one."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from pathlib import Path

from tests.support import brokers
from tests.support.timing import wait_until

PLACES = ("/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/opt/homebrew/sbin/mosquitto")

_START = 15.0  # seconds; a tenth of one on an idle machine
_STOP = 10.0


def binary() -> str | None:
    """Return the broker's program, or None where Mosquitto is not installed."""
    return shutil.which("mosquitto") or next((place for place in PLACES if os.access(place, os.X_OK)), None)


class OwnMosquitto:
    """One private broker; ``stop`` and ``start`` keep its port and what it stores."""

    def __init__(self, folder: Path) -> None:
        program = binary()
        if program is None:
            message = f"Mosquitto is not installed: no mosquitto on the path, none of {', '.join(PLACES)}"
            raise FileNotFoundError(message)
        self._program = program
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o777)  # as root it becomes a user of its own
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"mqtt://127.0.0.1:{self.port}"

    def start(self, configuration: str = "allow_anonymous true") -> None:
        """Start the broker with *configuration* and return when it answers; else show its log."""
        if self._process is not None:
            return
        settings = f"listener {self.port} 127.0.0.1\nuser root\n{configuration}\n"
        (self._folder / "mosquitto.conf").write_text(settings, encoding="utf-8")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "-c", str(self._folder / "mosquitto.conf")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C reaches the tests only
            )
        try:
            wait_until(self._answers_or_ended, _START)
            assert self._process.poll() is None, f"it ended with exit code {self._process.returncode}"
        except AssertionError as error:
            self.stop()
            message = f"Mosquitto did not start: {error}\n{(self._folder / 'log').read_text(errors='replace')[-3000:]}"
            raise AssertionError(message) from error
        except BaseException:  # Ctrl-C, a test's timeout
            self.stop()
            raise

    def stop(self) -> None:
        """Shut the broker down as its operator would; clients see their connections closed."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP)
        process.kill()
        process.wait()

    def _answers_or_ended(self) -> bool:
        ended = self._process is None or self._process.poll() is not None
        return ended or not brokers.silence(self.url, self.port, brokers.MQTT.hello)
