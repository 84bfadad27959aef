"""NATS: what subjects say, for every client of it: whose they are, where a message came from, how often it was tried.

Must not know any client. Subjects and headers may be forged: nothing here raises.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from rtobs.integrations._places import template

RESERVED = ("$", "_INBOX.", "_R_.", "_GR_.")
"""What the server's own subjects begin with, and those of inboxes, also in other accounts and clusters."""
STORES = ("KV_", "OBJ_")
"""What the names of streams behind key-value and object stores begin with."""
UNSETTLED = ("none", "flow_control")
"""Acknowledgement policies under which a handler settles nothing."""

_HEADER_FRAME = len("NATS/1.0\r\n\r\n")
_ACKNOWLEDGE = re.compile(
    r"\$JS\.ACK\.(?:[^.]+\.[^.]+\.)?"  # newer servers put domain and account in front
    r"([^.]+)\.([^.]+)\.(\d{1,19})\.(\d{1,19})\.\d{1,19}\.(\d{1,19})\.(\d{1,19})(?:\..*)?",
    re.ASCII,
)


class Delivery(NamedTuple):
    """What JetStream says of one delivery in the subject that it is to be acknowledged to."""

    stream: str
    consumer: str
    number: int
    """How often the message has been delivered to this consumer, this time included."""
    sequence: int
    stored_ns: int
    """When the stream took it, nanoseconds since the epoch."""
    pending: int
    """Messages that waited for this consumer behind it."""


def delivery(reply: str) -> Delivery | None:
    """Read a message's reply subject; None for one that did not come from a stream."""
    found = _ACKNOWLEDGE.fullmatch(reply)
    if found is None:
        return None
    stream, consumer, *numbers = found.groups()
    return Delivery(stream, consumer, *map(int, numbers))


def place(subject: str) -> str:
    """Return a subject as a low-cardinality destination: tokens that are identifiers become ``*``."""
    return template(subject, ".", "*")


def size(headers: Mapping[str, object]) -> int:
    """Return the bytes that headers, any or none, take in a message that carries ours besides."""
    return _HEADER_FRAME + sum(len(f"{name}{value}".encode("utf-8", "replace")) + 4 for name, value in headers.items())
