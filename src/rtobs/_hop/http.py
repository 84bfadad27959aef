"""What HTTP leaves call: one request that a server takes in, one call that a client makes.

The first is an accept hop, opened before any code of the user has run. The second is detail of a deliver hop: it opens
nothing and decides nothing. Must not know ASGI, any framework or any client.
"""

from __future__ import annotations

from contextvars import ContextVar, Token
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._conventions import Attribute
from rtobs._hop import engine, leaf
from rtobs._hop.context import Context, attach, get_current
from rtobs._hop.hop import Hop
from rtobs._hop.runtime import runtime
from rtobs._journey.classify import by_status
from rtobs._journey.message import Trust
from rtobs._journey.outcome import ErrorCategory
from rtobs._journey.record import HopRecord

UNMATCHED = "unmatched"
"""Route of a request that nobody named; a raw path never becomes a name."""

_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_ERRORS_FROM = 400
_SERVER_ERRORS_FROM = 500
_LONGEST_WAIT = 10_000_000.0


def _method(name: str) -> str:
    return name if name in _METHODS else "_OTHER"  # as the semantic conventions have it: callers make words up


# A request comes in --------------------------------------------------------------------------------------------------


class Request:
    """One request on its way through a server: its accept hop, and how it is answered. Nothing here raises."""

    __slots__ = ("gone", "record", "status")

    def __init__(self, headers: object, trust: Trust, method: str, neighbours: tuple[str, ...]) -> None:
        """Open the hop and make it current; it waits for its name, which ``rtobs.accept`` inside may give it."""
        self.status = 0
        """HTTP status of the response; 0 = none has begun."""
        self.gone = False
        """The client has hung up."""
        self.record: HopRecord | None = None
        try:
            if runtime.off and not engine.is_on():
                return
            record = engine.start(
                "accept", UNMATCHED, engine.current(), headers=headers, trust=trust, neighbours=neighbours
            )
            record.auto = True
            record.note(Attribute.HTTP_METHOD, _method(method))
            engine.enter(record)
            self.record = record
        except Exception as error:  # noqa: BLE001  the request is served without a hop
            _guard.fault("http.request", error)

    def route(self) -> str:
        """Return the route template that the request has matched so far; a leaf knows."""
        return ""

    @property
    def is_open(self) -> bool:
        """Whether the hop is running."""
        return self.record is not None and not self.record.ended

    @property
    def is_adopted(self) -> bool:
        """Whether another tool's span stands for the hop; it may end with the last byte of the response."""
        record = self.record
        return record is not None and record.adopted is not None and record.told is None

    def begun(self, status: object) -> None:
        """Take the status of the response; by now the request has been routed."""
        self.status = status if isinstance(status, int) else 0
        self._name()

    def answered(self) -> None:
        """Take the response as complete.

        A server error stays open until the application returns: the exception behind it often comes right after.
        """
        if self.is_adopted or self.status < _SERVER_ERRORS_FROM:
            self.end()

    def end(self, error: BaseException | None = None) -> None:
        """End the hop; *error* is what left the application. Only the first call counts."""
        record = self.record
        if record is None or record.ended:
            return
        try:
            self._name()
            if self.status:
                record.note(Attribute.HTTP_STATUS, self.status)
            if self.gone:
                record.cancelled, record.reason = True, record.reason or "client_disconnected"
                error = None
            elif error is None:
                self._judge(record)
            engine.end(record, error)
        except Exception as fault:  # noqa: BLE001  the response goes on
            engine.end_again(record, error)
            _guard.fault("http.request", fault)

    def _name(self) -> None:
        record = self.record
        if record is None or record.named or record.ended or record.name != UNMATCHED:
            return
        try:
            record.name = redaction.text(self.route(), redaction.NAME_LIMIT) or UNMATCHED
        except Exception as error:  # noqa: BLE001  a framework's route may be anything
            _guard.fault("http.route", error)

    def _judge(self, record: HopRecord) -> None:
        if record.category is not None:
            return
        if not self.status:
            record.category, record.reason = ErrorCategory.INTERNAL, record.reason or "no_response"
        elif self.status >= _ERRORS_FROM:
            record.category, record.reason = by_status(self.status).category, record.reason or str(self.status)

    def leave(self) -> None:
        """Restore what was current before the request; call it where the request was made."""
        try:
            if self.record is not None:
                engine.leave(self.record)
        except Exception as fault:  # noqa: BLE001  the response goes on
            if self.record is not None:
                engine.close_again(self.record)
            _guard.fault("http.request", fault)

    def resumed(self) -> _Resumed:
        """Be the current hop further in, where a framework in between has begun a context without it."""
        return _Resumed(self)

    def resume(self) -> Context | None:
        """Make the hop the current one if there is none; return the context from before."""
        try:
            if self.record is None or engine.current() is not None:
                return None
            around = get_current()
            attach(Context({**around, engine.HOP_KEY: self.record}))
        except Exception as fault:  # noqa: BLE001  what is further in runs without a hop
            _guard.fault("http.request", fault)
            return None
        return around


class _Resumed:
    """``with`` round what is further in; it raises nothing."""

    __slots__ = ("_around", "_request")

    def __init__(self, request: Request) -> None:
        self._request = request
        self._around: Context | None = None

    def __enter__(self) -> None:
        self._around = self._request.resume()

    def __exit__(self, *_: object) -> None:
        around = self._around
        if around is not None and not _restored(around):
            _restored(around)


def _restored(around: Context) -> bool:
    try:
        attach(around)
    except Exception as fault:  # noqa: BLE001  what was further in has ended
        _guard.fault("http.request", fault)
        return False
    return True


# A call goes out -----------------------------------------------------------------------------------------------------

_exchange: ContextVar[Exchange | None] = ContextVar("rtobs-http-exchange", default=None)


class Exchange:
    """``with Exchange() as call:`` round one call of a client, its redirects included. Nothing here raises."""

    __slots__ = ("_facts", "_record", "_requests", "_token", "redirect")

    def __init__(self) -> None:
        self.redirect: object = None
        """The request by which the client follows a redirect, where it makes a call of it; a leaf says so."""
        self._record: HopRecord | None = None
        self._requests = 0
        self._facts: dict[str, str | int | float] = {}
        self._token: Token[Exchange | None] | None = None

    def __enter__(self) -> Self:
        try:
            record = engine.current()
            if record is not None and record.kind == "deliver" and not record.ended:
                self._record = record
            self._token = _exchange.set(self)
        except Exception as fault:  # noqa: BLE001  the call is made without us
            _guard.fault("http.exchange", fault)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._token is not None:
                _exchange.reset(self._token)
            if self._record is None or not self._facts:
                return
            if self._requests > 1:
                self._facts[Attribute.HTTP_RESENDS] = self._requests - 1
            Hop(self._record).note(**self._facts)
        except Exception as fault:  # noqa: BLE001  the host's response or exception goes on
            _guard.fault("http.exchange", fault)

    def request(self, method: str, host: str, port: int | None, headers: object) -> dict[str, str]:
        """Note one request that is about to leave with *headers*; return those of ours that go with it, or replace its.

        None go to a host that ``configure(propagate_to=…)`` does not name; a host does not stand for its subdomains.
        """
        if self._record is None:
            return {}
        try:
            self._requests += 1
            self._facts = {Attribute.HTTP_METHOD: _method(method), Attribute.SERVER_ADDRESS: host}
            if port:
                self._facts[Attribute.SERVER_PORT] = port
            if host.lower() in runtime.propagate_to:
                own = Hop(self._record).headers
                leaf.keep_foreign_baggage(own, headers)
                return own
        except Exception as fault:  # noqa: BLE001  the request leaves as the caller made it
            _guard.fault("http.exchange", fault)
        return {}

    def answered(self, status: int, retry_after: str | None) -> None:
        """Note the response that the call brought, and for how long the server asks to be left alone."""
        if self._record is None:
            return
        try:
            self._facts[Attribute.HTTP_STATUS] = status
            seconds = _seconds(retry_after) if retry_after else None
            if seconds is not None:
                self._facts[Attribute.RETRY_AFTER] = seconds
        except Exception as fault:  # noqa: BLE001  the response goes on
            _guard.fault("http.exchange", fault)


def exchange() -> Exchange | None:
    """Return the call that is being made in this context."""
    return _exchange.get()


def _seconds(retry_after: str) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110 §10.2.3); None where it makes no sense."""
    value = retry_after.strip()
    if value.isascii() and value.isdigit():
        return min(float(value[:16]), _LONGEST_WAIT)
    try:
        moment = parsedate_to_datetime(value[:64])
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    now = datetime.fromtimestamp(runtime.wall_ns() / 1e9, UTC)
    return min(max((moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds(), 0.0), _LONGEST_WAIT)
