"""The kinds of hop a user opens: accept, publish, consume, deliver, receipt, job, and the stage inside them.

Each says what it opens, which open hop it joins, and which arguments are wrong. Must not know brokers or metrics.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, ParamSpec, Protocol, TypeVar, get_args, overload
from uuid import UUID

from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._hop import engine, leaf, plain
from rtobs._hop import stage as stages
from rtobs._hop.context import get_current
from rtobs._hop.finish import count_promises, delivered_later, promise_of
from rtobs._hop.handover import headers_of
from rtobs._hop.hop import Hop
from rtobs._hop.operation import Call, Opened, Operation
from rtobs._hop.runtime import runtime
from rtobs._journey.classify import judge_value
from rtobs._journey.journey import Key
from rtobs._journey.message import Headers, Message, Trust
from rtobs._journey.outcome import ErrorCategory, Outcome, Step
from rtobs._journey.record import HopRecord, StageRecord
from rtobs.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")

Judge = Callable[[Any], Outcome | ErrorCategory | None]


class JudgedOperation(Protocol[T]):
    """An ``Operation`` that decorates functions returning what its judge takes."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Callable[P, Coroutine[Any, Any, T]]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> Callable[P, T]: ...
    def __enter__(self) -> Hop: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


class _Missing:
    """No message was given: the decorated function's first argument is the message."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()


_new: Any = object.__new__
_MOST_NAMES = 1024
_names: dict[object, str] = {}


def _name(kind: str, argument: str, value: object) -> str:
    if type(value) is str:
        found = _names.get(value)
        if found is None:
            found = redaction.text(value, redaction.NAME_LIMIT)
            if len(_names) < _MOST_NAMES:
                _names[value] = found
        return found
    if not isinstance(value, str):
        raise ConfigError(f"rtobs.{kind}: {argument} must be a str; got {value!r} ({type(value).__name__})")
    return redaction.text(value, redaction.NAME_LIMIT)


def _one_of(kind: str, argument: str, value: object, allowed: Any) -> None:
    if value not in get_args(allowed):
        choices = ", ".join(repr(word) for word in get_args(allowed))
        raise ConfigError(f"rtobs.{kind}: {argument} must be one of {choices}; got {value!r}")


class Accept(Operation):
    """The API takes a message in."""

    __slots__ = ("_headers", "_route", "_trust")

    def __init__(self, route: str, headers: Headers | None, trust: Trust) -> None:
        super().__init__()
        self._route = _name("accept", "route", route)
        _one_of("accept", "trust", trust, Trust)
        self._headers = headers
        self._trust: Trust = trust

    def _open(self, call: Call | None) -> Opened:
        del call
        ambient = engine.current()
        if self._headers is None and _unnamed(ambient, "accept"):
            return _named(ambient, self._route)
        record = engine.start("accept", self._route, ambient, headers=self._headers, trust=self._trust)
        record.named = True
        engine.enter(record)
        return record, True


class Publish(Operation):
    """A message leaves for a broker."""

    __slots__ = ("_channel", "_destination", "_fills_headers", "_key")

    def __init__(self, destination: str, channel: str, key: Key | None) -> None:
        self._entered = None
        self._destination = _name("publish", "destination", destination)
        self._channel = _name("publish", "channel", channel) if channel != "" else ""
        if key is not None and not isinstance(key, str | bytes | int | UUID):
            raise ConfigError(f"rtobs.publish: key must be str, bytes, int or UUID; got {key!r} ({type(key).__name__})")
        self._key = key
        self._fills_headers = False

    def _inspect(self, function: Callable[..., Any]) -> None:
        parameter = inspect.signature(function).parameters.get("headers")
        self._fills_headers = parameter is not None and parameter.default is not inspect.Parameter.empty

    def _open(self, call: Call | None) -> Opened:
        del call
        context = get_current()
        if not context and not self._channel:
            record = plain.publish(self._destination, context)
            if record is not None:
                return record, True
        ambient = engine.current()
        if ambient is None:
            record = engine.start("publish", self._destination)
        elif ambient.kind == "publish" and not ambient.ended and not ambient.named and ambient.layer is None:
            return _named(ambient, self._destination)
        else:
            record = leaf.open_publish(self._destination, ambient)
        record.named = True
        if self._channel:
            promise_of(record, self._channel, self._key)
        engine.enter(record)
        return record, True

    def _arguments(self, record: HopRecord, call: Call) -> dict[str, Any]:
        if self._fills_headers and "headers" not in call[1]:
            return {**call[1], "headers": headers_of(record)}
        return call[1]

    def _close(self, record: HopRecord, error: BaseException | None) -> None:
        if record.rare is not None and record.send_error is not None:
            error, record.send_error = error or record.send_error, None
        if error is None and (record.rare is not None or record.parent is not None):
            count_promises(record)
        engine.close(record, error)


class Consume(Operation):
    """A message is handled."""

    __slots__ = ("_destination", "_headers", "_message", "_parameter", "_trust")

    def __init__(self, destination: str, message: object, headers: Headers | None, trust: Trust | None) -> None:
        self._entered = None
        self._destination = _name("consume", "destination", destination)
        if trust is not None:
            _one_of("consume", "trust", trust, Trust)
        self._message = message
        self._headers = headers
        self._trust = trust
        self._parameter: inspect.Signature | None = None

    def _inspect(self, function: Callable[..., Any]) -> None:
        if isinstance(self._message, str):
            signature = inspect.signature(function)
            if self._message not in signature.parameters:
                names = ", ".join(signature.parameters)
                raise ConfigError(
                    f"rtobs.consume: message={self._message!r} names no parameter of {function.__qualname__}; "
                    f"it has: {names}"
                )
            self._parameter = signature

    def _mark(self, wrapper: Any) -> None:
        wrapper.__rtobs_consume__ = True

    def _describe(self, call: Call) -> Message | None:
        if self._parameter is not None:
            bound = self._parameter.bind_partial(*call[0], **call[1])
            return runtime.describe(bound.arguments.get(str(self._message)))
        for value in (*call[0], *call[1].values()):  # a method's first argument is not the message
            found = runtime.describe(value)
            if found is not None:
                return found
        return None

    def _open(self, call: Call | None) -> Opened:
        message: Message | None
        if call is not None:
            message = self._describe(call)
        else:
            message = None if self._message is MISSING else runtime.describe(self._message)
        context = get_current()
        if not context and message is not None and self._headers is None and self._trust is None:
            record = plain.consume(self._destination, message, context)
            if record is not None:
                return record, True
        ambient = engine.current()
        if ambient is not None and not ambient.ended and ambient.kind == "consume":
            same = leaf.joins_consume(ambient, message)
            if (same or message is None) and ambient.auto and not ambient.named:
                return _named(ambient, self._destination)
            if same:
                return ambient, False
        headers: object = self._headers
        trust = self._trust
        if message is not None:
            headers = headers if headers is not None else message.headers
            trust = trust or message.trust
        record = leaf.open_consume(self._destination, ambient, message, headers, trust or "link")
        record.named = True
        engine.enter(record)
        return record, True


class Deliver(Operation):
    """One try to bring a message to its user."""

    __slots__ = ("_channel", "_judged_by", "_key", "_provider")

    generators = True

    def __init__(self, channel: str, provider: str, key: Any, judge: Judge | None) -> None:
        super().__init__()
        self._channel = _name("deliver", "channel", channel)
        self._provider = _name("deliver", "provider", provider)
        if key is not None and not callable(key) and not isinstance(key, str | bytes | int | UUID):
            raise ConfigError(
                "rtobs.deliver: key must be str, bytes, int, UUID or a function of the arguments; "
                f"got {key!r} ({type(key).__name__})"
            )
        if judge is not None and not callable(judge):
            raise ConfigError(f"rtobs.deliver: judge must be a function of the returned value; got {judge!r}")
        self._key = key
        self._judged_by = judge

    def _identity(self, call: Call | None) -> tuple[object, object]:
        """Return what tells this delivery from others of its scope, and what must stay alive meanwhile."""
        if callable(self._key):
            return (self._key(*call[0], **call[1]) if call is not None else None), None
        if self._key is not None or call is None:
            return self._key, None
        arguments = (*call[0], *call[1].values())
        return tuple(value if type(value) in (str, bytes, int, UUID) else id(value) for value in arguments), arguments

    def _open(self, call: Call | None) -> Opened:
        record = engine.start("deliver", self._channel, engine.current())
        record.named = True
        record.channel, record.provider = self._channel, self._provider
        record.key = (None, None)
        if record.scope is not None:
            record.attempt = record.scope.attempt
        engine.enter(record)
        try:
            record.key = self._identity(call)
        except Exception as error:  # noqa: BLE001  a key of the user's that raises: the delivery is told apart by channel only
            _guard.fault("deliver.key", error)
        return record, True

    def _returned(self, record: HopRecord, value: object) -> None:
        if record.explicit is not None:
            return
        if self._judged_by is None:
            verdict = judge_value(value)
            if verdict is not None and verdict.category is not None:
                record.category, record.reason, record.ambiguous = (
                    verdict.category,
                    record.reason or verdict.reason,
                    verdict.ambiguous,
                )
            return
        said = self._judged_by(value)
        if said is None:
            return
        if isinstance(said, ErrorCategory):
            record.category = said
        else:
            record.explicit = Outcome(said)


class Receipt(Operation):
    """A client or a provider reports how far a delivery got."""

    __slots__ = ("_step", "_token")

    def __init__(self, step: Step, token: object) -> None:
        super().__init__()
        _one_of("receipt", "step", step, Step)
        self._step: Step = step
        self._token = token

    def _open(self, call: Call | None) -> Opened:
        del call
        if not runtime.ready:
            runtime.prepare()
        found = runtime.redeem(self._token, self._step)
        if found is None:
            return None, False
        ambient = engine.current()
        record = engine.start("receipt", self._step, None, journey=found.journey)
        record.named = True
        if ambient is not None and not ambient.ended:
            record.link(ambient.trace_id, ambient.span_id, ambient.flags)
        record.step = self._step
        record.channel, record.provider = found.channel, found.provider
        record.link(found.trace_id, found.span_id)
        engine.enter(record)
        return record, True

    def _close(self, record: HopRecord, error: BaseException | None) -> None:
        if error is None and record.explicit in (None, Outcome.OK):
            delivered_later(record, record.channel, record.provider)
        engine.close(record, error)


class Job(Operation):
    """A scheduled run of a connector."""

    __slots__ = ("_connector", "_due", "_window")

    def __init__(self, connector: str, due: datetime, window: timedelta) -> None:
        super().__init__()
        self._connector = _name("job", "connector", connector)
        if not isinstance(due, datetime) or due.tzinfo is None:
            raise ConfigError(
                f"rtobs.job: due must be a datetime with a time zone; got {due!r}; use datetime.now(timezone.utc)"
            )
        if not isinstance(window, timedelta) or window <= timedelta(0):
            raise ConfigError(f"rtobs.job: window must be a positive timedelta; got {window!r}")
        self._due = due
        self._window = window

    def _open(self, call: Call | None) -> Opened:
        del call
        record = engine.start("job", self._connector, engine.current())
        record.named = True
        record.window = (int(self._due.timestamp() * 1e9), int(self._window.total_seconds() * 1e9))
        engine.enter(record)
        return record, True


class Stage(Operation):
    """A timed step inside a hop."""

    __slots__ = ("_name",)

    generators = True

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = _name("stage", "name", name)

    def _open(self, call: Call | None) -> Opened:
        del call
        stage = stages.open_stage(self._name)
        return stage, stage is not None

    def _close(self, record: StageRecord, error: BaseException | None) -> None:
        stages.close_stage(record, error)

    def _close_again(self, record: StageRecord, error: BaseException | None) -> None:
        try:
            stages.close_stage(record, error)
        except Exception as fault:  # noqa: BLE001  there is nothing more that could be done
            _guard.fault("stage.close", fault)


class Nothing(Operation):
    """What stands for an operation that could not be made: it opens no hop."""

    __slots__ = ()

    generators = True

    def _open(self, call: Call | None) -> Opened:
        del call
        return None, False


def _nothing(kind: str, error: Exception) -> Any:
    """Return an operation that does nothing in the place of one that could not be made; wrong arguments raise."""
    if isinstance(error, ConfigError):
        raise error
    _guard.fault(f"{kind}.make", error)
    return Nothing()


def _unnamed(ambient: HopRecord | None, kind: str) -> bool:
    return ambient is not None and ambient.kind == kind and ambient.auto and not ambient.named and not ambient.ended


def _named(ambient: HopRecord | None, name: str) -> Opened:
    if ambient is not None:
        ambient.name = name
        ambient.named = True
    return ambient, False


# The public functions ------------------------------------------------------------------------------------------------


def accept(route: str, *, headers: Headers | None = None, trust: Trust = "link") -> Operation:
    """Take one message in at the API: the journey begins here.

    Args:
        route: the route template, low-cardinality: a metric label.
        headers: where the caller's headers are, if no ASGI middleware opened the hop (a WebSocket frame, say).
        trust: what of them to believe: ``trusted`` continues the caller's journey, ``link`` only links its span,
            ``ignore`` reads nothing.

    Raises:
        ConfigError: an argument of the wrong type.
    """
    try:
        return Accept(route, headers, trust)
    except Exception as error:  # noqa: BLE001  see `_nothing`; so below
        return _nothing("accept", error)  # type: ignore[no-any-return]


def publish(destination: str, *, channel: str = "", key: Key | None = None) -> Operation:
    """Send one message to a broker. *channel* and *key* name the promise it stands for; they do not promise.

    As a decorator it fills a parameter ``headers`` that has a default; else the wrapped client writes them, or you
    put ``hop.headers`` where your transport has room.

    Raises:
        ConfigError: an argument of the wrong type.
    """
    try:
        if type(destination) is str and channel == "" and key is None and (name := _names.get(destination)) is not None:
            made: Publish = _new(Publish)  # as its constructor does it, without the calls
            made._destination = name  # noqa: SLF001  as above; so below
            made._channel, made._key = "", None  # noqa: SLF001
            made._entered, made._fills_headers = None, False  # noqa: SLF001
            return made
        return Publish(destination, channel, key)
    except Exception as error:  # noqa: BLE001
        return _nothing("publish", error)  # type: ignore[no-any-return]


def consume(
    destination: str, message: object = MISSING, *, headers: Headers | None = None, trust: Trust | None = None
) -> Operation:
    """Handle one message.

    Args:
        destination: low-cardinality name of where it came from; it replaces the client's.
        message: the native message (``with``), or the name of the parameter that takes it (decorator; without it the
            first argument that a wrapped client knows).
        headers: the carrier, where no wrapped client knows the message.
        trust: what of the headers to believe; without it what the client's leaf says, and ``link`` where none knows it.

    Raises:
        ConfigError: an argument of the wrong type, or a parameter name that the function does not have.
    """
    try:
        if type(destination) is str and trust is None and (name := _names.get(destination)) is not None:
            made: Consume = _new(Consume)  # as above
            made._destination = name  # noqa: SLF001
            made._message, made._headers = message, headers  # noqa: SLF001
            made._entered = made._trust = made._parameter = None  # noqa: SLF001
            return made
        return Consume(destination, message, headers, trust)
    except Exception as error:  # noqa: BLE001
        return _nothing("consume", error)  # type: ignore[no-any-return]


@overload
def deliver(channel: str, provider: str, *, key: Key | Callable[..., Key] | None = None) -> Operation: ...
@overload
def deliver(
    channel: str,
    provider: str,
    *,
    key: Key | Callable[..., Key] | None = None,
    judge: Callable[[T], Outcome | ErrorCategory | None],
) -> JudgedOperation[T]: ...
def deliver(
    channel: str, provider: str, *, key: Key | Callable[..., Key] | None = None, judge: Judge | None = None
) -> Any:
    """Try once to bring a message to its user over *channel*, carried by *provider*.

    Without *judge* a returned HTTP response counts by its status, any other value as success, an exception by what
    it is. *judge* gets the returned value and says an outcome, an error category, or None for success. Calls with the
    same *channel* and *key* in one handled message are attempts of one delivery; without *key* the call's arguments
    tell them apart, and a ``with`` takes the one of its channel.

    Raises:
        ConfigError: an argument of the wrong type.
    """
    try:
        return Deliver(channel, provider, key, judge)
    except Exception as error:  # noqa: BLE001
        return _nothing("deliver", error)


def receipt(step: Step, token: str) -> Operation:
    """Count that a delivery reached *step*, told by a client or provider with the *token* it was given.

    A token that is not valid is counted and does nothing else.

    Raises:
        ConfigError: a step that does not exist.
    """
    try:
        return Receipt(step, token)
    except Exception as error:  # noqa: BLE001
        return _nothing("receipt", error)  # type: ignore[no-any-return]


def job(connector: str, *, due: datetime, window: timedelta) -> Operation:
    """Run a connector that was due at *due* and should be done within *window*.

    Raises:
        ConfigError: *due* without a time zone, or a *window* that is not positive.
    """
    try:
        return Job(connector, due, window)
    except Exception as error:  # noqa: BLE001
        return _nothing("job", error)  # type: ignore[no-any-return]


def stage(name: str) -> Operation:
    """Time a step inside the current hop; outside a hop it does nothing. Keep *name* low-cardinality.

    Raises:
        ConfigError: a name that is not a str.
    """
    try:
        return Stage(name)
    except Exception as error:  # noqa: BLE001
        return _nothing("stage", error)  # type: ignore[no-any-return]
