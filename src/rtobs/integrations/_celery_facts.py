"""Celery: what a task's message says about itself, where it is sent and where it is run."""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (Celery has no annotations)

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from amqp.serialization import dumps

from rtobs._journey.message import Message as Facts
from rtobs.integrations._twin import Options, options_of

NEIGHBOUR = "opentelemetry.instrumentation.celery"
FRAME_MAX = 131_072
"""What RabbitMQ and its client agree on if nobody says otherwise, bytes."""
_SYSTEM = "_rtobs_system"
_SYSTEMS = {"amqp": "rabbitmq", "sqs": "aws_sqs"}
_OTHER_PROPERTIES = 2048  # bytes


def system(app: Any) -> str:
    """Return the ``messaging.system`` of an application's broker: what is under Celery, not Celery."""
    known: dict[str, Any] = app.__dict__
    if _SYSTEM not in known:
        driver = str(app.connection_for_write().transport.driver_type).lower()
        known[_SYSTEM] = _SYSTEMS.get(driver, driver)
    return str(known[_SYSTEM])


def describe(native: Any, app: Any) -> Facts:
    """Return what one task's request says about its message; the task's name is the destination."""
    options: Options = options_of(app)
    delivery: dict[str, Any] = native.delivery_info or {}
    return Facts(
        system(app), str(native.task), vars(native), address=str(delivery.get("routing_key") or ""),
        id=str(native.id or ""), native=native, trust=options.trust, carrier=options.carrier,
        adopt_correlation=options.correlation, delivery_count=2 if delivery.get("redelivered") else 1,
        release_ns=_moment(native.eta), dead_letter=None if options.dead_letter is None else bool(options.dead_letter),
        max_deliveries=options.max_deliveries, neighbour=NEIGHBOUR,
    )  # fmt: skip


def _moment(eta: Any) -> int:
    """Return when a task was due, nanoseconds since the epoch; 0 = at once. A text, as it is on the wire."""
    found = datetime.fromisoformat(eta) if isinstance(eta, str) and eta else eta
    if not isinstance(found, datetime):
        return 0
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1e9)


def sent(app: Any, name: str, task_id: str, eta: Any, *, again: bool) -> Facts:
    """Return what is known of a task that is being sent; *again*: it is the running one, tried once more."""
    return Facts(
        system(app), name, id=task_id, carrier=options_of(app).carrier, neighbour=NEIGHBOUR, again=again,
        release_ns=_moment(eta),
    )  # fmt: skip


def size(headers: dict[str, Any]) -> int:
    """Return how many bytes AMQP needs for these headers and a message's other properties."""
    write: Any = dumps
    return len(write("F", (headers,))) + _OTHER_PROPERTIES
