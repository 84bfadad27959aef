"""Whether Prometheus will be able to scrape a run, found out before anything starts."""

from __future__ import annotations

import importlib.util
import os
import socket
from typing import TYPE_CHECKING

from rtobs.demo.options import UsageError

if TYPE_CHECKING:
    from rtobs.demo.options import Options


def check_ports(options: Options) -> None:
    """Refuse ``--prometheus`` where it cannot work.

    Raises:
        UsageError: what is missing or which port is taken, and what to do.
    """
    if not options.prometheus:
        return
    if importlib.util.find_spec("prometheus_client") is None:
        raise UsageError(
            '--prometheus needs prometheus-client, which is not installed. Run: pip install "rtobs[prometheus]"'
        )
    for port in options.ports:
        try:
            with socket.socket() as one:
                if os.name == "posix":
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server will do
                one.bind(("127.0.0.1", port))
        except OSError as error:
            raise UsageError(
                f"--prometheus {options.prometheus}: port {port} cannot be used ({error.strerror}), and this run "
                f"takes {options.ports[0]} to {options.ports[-1]}, one for each process; give another."
            ) from None
