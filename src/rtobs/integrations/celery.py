"""Celery: tasks that one wrapped application sends and runs, over whatever broker it has; see ``_celery_worker`` too.

A publish hop is round kombu's own send, its retries included, and begins after all receivers of
``before_task_publish``. Running is instrumented by Celery's signals. What else a producer of kombu's sends is no task.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (Celery has no annotations)

from __future__ import annotations

import functools
from contextvars import ContextVar, Token
from typing import Any, cast

from celery import Celery
from celery.app.amqp import AMQP
from celery.app.task import Context
from celery.loaders.base import BaseLoader
from kombu.messaging import Producer

from rtobs._hop import engine, leaf
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message as Facts
from rtobs.errors import UnsupportedError
from rtobs.integrations import _celery_facts, _celery_worker, _rabbitmq
from rtobs.integrations._celery_depths import depths, strains
from rtobs.integrations._celery_facts import describe
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._twin import Options, become, guarded, options_of, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "depths", "describe", "strains", "wrap"]

SYSTEM = "celery"
SUPPORTS = "celery>=5.6,<6"
FACTORIES = ("celery.Celery",)
COVERAGE = Coverage(
    client="Celery",
    produce="`send_task` and all that reaches it",
    consume="runs of tasks, by Celery's signals",
    carrier="headers of the task",
    attempt="`redelivered`; a `retry` by our header",
    lag="`eta`, `countdown`",
    depth="the broker's queues",
    missing="result backends; batches; pools that spawn unless the application is wrapped there",
)

_sending: ContextVar[Facts | None] = ContextVar("rtobs-celery-sending", default=None)


@overlay
class _Celery(Celery):
    __slots__ = ()

    @property
    def amqp(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]  Celery keeps it, we look at it
        return become(cast("Any", super()).amqp, _AMQP, options_of(self))


@overlay
class _AMQP(AMQP):
    __slots__ = ()

    @property
    def send_task_message(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]  as above
        plain = cast("Any", super()).send_task_message
        return guarded(functools.partial, plain, _send, self, plain)


def _send(amqp: Any, send: Any, producer: Any, name: Any, message: Any, **options: Any) -> Any:
    token = guarded(_begin, None, amqp.app, name, message)
    if token is None:
        return send(producer, name, message, **options)
    try:
        return send(become(producer, _Producer, options_of(amqp)), name, message, **options)
    finally:
        guarded(_sending.reset, None, token)


def _begin(app: Any, name: Any, message: Any) -> Token[Facts | None]:
    return _sending.set(_facts(app, name, message))


def _facts(app: Any, name: Any, message: Any) -> Facts:
    task_id = str(message.properties.get("correlation_id") or "")
    around = engine.current()
    running = around.message.id if around is not None and around.kind == "consume" and around.message else ""
    return _celery_facts.sent(app, str(name), task_id, message.headers.get("eta"), again=task_id == running)


@overlay
class _Producer(Producer):
    __slots__ = ()

    def publish(self, body: Any, *args: Any, **options: Any) -> Any:
        facts = guarded(_sent, None, options)
        if facts is None:  # not a task
            return cast("Any", super()).publish(body, *args, **options)
        with leaf.Send(facts) as send:
            headers = options["headers"] if "headers" in options else None  # noqa: SIM401  no call that could fail
            options["headers"] = guarded(_headers, headers, send, facts, headers)
            return cast("Any", super()).publish(body, *args, **options)


def _sent(options: dict[str, Any]) -> Facts | None:
    facts = _sending.get()
    if facts is not None:
        facts.address = str(options.get("routing_key") or "")
    return facts


def _headers(send: leaf.Send, facts: Facts, headers: dict[str, Any]) -> dict[str, Any]:
    room = None
    if facts.system == "rabbitmq":
        room = _rabbitmq.room(headers, _celery_facts.FRAME_MAX, lambda: _celery_facts.size(headers))
    return send.headers(headers, room)


@overlay
class _Loader(BaseLoader):
    __slots__ = ()

    def on_task_init(self, task_id: str, task: Any) -> Any:
        result = cast("Any", super()).on_task_init(task_id, task)
        guarded(_celery_worker.begin, None, self.app, task)
        return result


def wrap(client: Celery, options: Options) -> Celery:
    """Instrument one application: what it sends, and what its workers run."""
    if not isinstance(client, Celery):
        raise UnsupportedError(
            f"rtobs.wrap: a {type(client).__qualname__} cannot be wrapped; give the Celery application"
        )
    runtime.register(Context, leaf.known)
    _celery_worker.connect()
    become(client.loader, _Loader, options)
    return become(client, _Celery, options)
