"""Celery: what becomes of a task in a worker, from the signals that Celery sends.

A hop begins after all receivers of ``task_prerun`` and ends as the first of ``task_postrun``, so that it lies inside a
span of OpenTelemetry's instrumentation if that is active. Its end follows from the state of the task. What never runs
in a process that could tell (revoked, expired, unknown, its process lost) is told by the worker's main process.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportMissingTypeStubs=false
# (Celery has no annotations)

from __future__ import annotations

import sys
from typing import Any, cast

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from billiard.process import current_process
from celery import signals, states
from celery.app.task import Context
from celery.exceptions import NotRegistered, Reject

from rtobs._hop import engine, leaf
from rtobs._hop.runtime import runtime
from rtobs._journey.message import Message as Facts
from rtobs._journey.outcome import Outcome
from rtobs._journey.record import Settlement
from rtobs.integrations import _celery_facts
from rtobs.integrations._twin import guarded

_SCOPE = "_rtobs_scope"
_MAIN = "MainProcess"
"""What billiard calls a process that is none of its children."""
_WRAPPED = "__rtobs_plain__"


def begin(app: Any, task: Any) -> None:
    """Open the hop of the task that is about to run; not where it runs in its caller's own process (eager)."""
    request = task.request
    if not request.is_eager:
        scope = leaf.Process(_celery_facts.describe(request, app))
        setattr(request, _SCOPE, scope)
        scope.__enter__()


def _postrun(task: Any, retval: Any = None, state: str | None = None, **_: Any) -> None:
    # Twice, for a hop that is not ended would be the next task's.
    scope = guarded(_taken, None, task) or guarded(_taken, None, task)
    if scope is None:
        return
    if state is None and guarded(_is_child, False):  # noqa: FBT003  "not that we know"
        scope.abandon()  # a child that is made to end: its parent tells why, or the message comes back
        return
    scope.__exit__(None, guarded(_judge, None, scope, task, retval, state), None)


def _taken(task: Any) -> leaf.Process | None:
    return vars(task.request).pop(_SCOPE, None)  # type: ignore[no-any-return]


def _is_child() -> bool:
    return bool(cast("Any", current_process)().name != _MAIN)


def _judge(scope: leaf.Process, task: Any, value: Any, state: str | None) -> Any:
    """Note on a hop what became of its task; return the exception that it ends with."""
    raised = sys.exc_info()[1] if state is None else None
    error: Any = value if state in (states.RETRY, states.FAILURE, states.REJECTED) else raised
    record = scope.record
    if record is not None:
        record.settlement = record.settlement or _settlement(task, state, error)
        if state == states.IGNORED:
            record.explicit, record.reason = record.explicit or Outcome.DROPPED, record.reason or "ignored"
    if state == states.RETRY:
        error = _behind(error, "exc")  # why it is tried again
    elif isinstance(error, Reject):
        error = _behind(error, "reason")
    return error


def _behind(error: Any, name: str) -> Any:
    """Return the exception that Celery's own was made from; it may be a text, or nothing."""
    found = getattr(error, name, None)
    return found if isinstance(found, BaseException) else error


def _settlement(task: Any, state: str | None, error: object) -> Settlement:
    """Return what the broker is told of a message, or was told before its task ran."""
    if state == states.RETRY:
        return "retried"
    if not task.acks_late:
        return "acked"
    if isinstance(error, Reject):
        return "requeued" if cast("Any", error).requeue else "rejected"
    if state is None:
        return "requeued"  # the process ends, and the message comes back
    if state == states.FAILURE:
        said = [task.acks_on_failure_or_timeout] if hasattr(task, "acks_on_failure_or_timeout") else []
        said.insert(0, getattr(task, "acks_on_failure", None))
        return "acked" if next((each for each in said if each is not None), True) else "rejected"
    return "acked"


# In the worker's main process ----------------------------------------------------------------------------------------


def _revoked(sender: Any, request: Any, terminated: bool = False, expired: bool = False, **_: Any) -> None:  # noqa: FBT001, FBT002  as Celery sends it
    reason = "expired" if expired else "terminated" if terminated else "revoked"
    guarded(_told, None, sender.app, request, Outcome.EXPIRED if expired else Outcome.DROPPED, reason)


def _lost(sender: Any, task_id: str, exception: Any = None, **_: Any) -> None:
    guarded(_lost_with, None, sender, task_id, exception)


def _lost_with(task: Any, task_id: str, error: Any) -> None:
    if not isinstance(error, WorkerLostError | TimeLimitExceeded):
        return
    request = task.request
    if request.id == task_id and _SCOPE not in vars(request):
        _told(task.app, request, None, "", error)


def _unknown(sender: Any, message: Any, exc: Any = None, name: str = "", **_: Any) -> None:
    guarded(_refused, None, sender.app, message, NotRegistered(name) if name else exc)


def _refused(app: Any, message: Any, error: BaseException | None) -> None:
    """Tell of a message that no task is known for, or that is none."""
    request = cast("Any", Context)(
        message.headers,
        delivery_info={**(message.delivery_info or {})},
        task=message.headers.get("task") or "(unknown)",
    )
    _told(app, request, None, "unknown_task", error or ValueError("not a task"), settlement="rejected")


def _told(
    app: Any, request: Any, outcome: Outcome | None, reason: str, error: BaseException | None = None, *,
    settlement: Settlement = "acked",
) -> None:  # fmt: skip
    """Record the handling of a message that no hop could be open for; how long it took is not known."""
    if _WRAPPED not in type(app).__dict__ or request is None or (runtime.off and not engine.is_on()):
        return
    message: Facts = _celery_facts.describe(request, app)
    record = leaf.open_consume(message.destination, None, message, message.headers, message.trust)
    record.lag, record.explicit, record.reason, record.settlement = None, outcome, reason, settlement
    engine.end(record, error)


def _process_ends(**_: Any) -> None:
    guarded(_flush, None)


def _flush() -> None:
    runtime.finish()


_CONNECTED: dict[str, Any] = {
    "task_postrun": _postrun, "task_revoked": _revoked, "task_failure": _lost, "task_unknown": _unknown,
    "task_rejected": _unknown, "worker_process_shutdown": _process_ends,
}  # fmt: skip


def connect() -> None:
    """Listen to Celery's signals, before all others, for every wrapped application; twice is once."""
    for name, receiver in _CONNECTED.items():
        signal: Any = getattr(signals, name)
        if not any(known is receiver for _, known in signal.receivers):
            signal.connect(receiver, weak=False)
            signal.receivers.insert(0, signal.receivers.pop())
