"""What an exception, an HTTP status or a returned value says about an attempt: the tables that judge them.

Exceptions are told apart by the qualified names of their classes, most derived class first, so that this module needs
no client library and must not import one. It must not know hops, retries or metrics: whether another try helps follows
from ``outcome.PERMANENT``. What it judges belongs to strangers: it never runs their ``__getattr__``,
``__getattribute__``, ``__bool__`` or ``__str__``, and keeps no message, which may hold a secret.
"""

from __future__ import annotations

from functools import lru_cache
from http import HTTPStatus
from types import GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rtobs import _guard
from rtobs._conventions import INTERNAL_ERRORS
from rtobs._journey.outcome import ErrorCategory, Outcome, Verdict
from rtobs.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Where to look on the instance before its class decides. Any other word names the attribute with the exception behind.
_STATUS = "HTTP status"
_AWS = "AWS' answer"
_MEMBERS = "members of the group"


class _Row(NamedTuple):
    """What a class says; *category* None means cancelled."""

    category: ErrorCategory | None
    ambiguous: bool = False
    look: tuple[str, ...] = ()


_CLASSES_LIMIT, _MEMBERS_LIMIT, _DEPTH_LIMIT = 1024, 1000, 8

# A row covers the subclasses that have none of their own; one that would say what its base says is left out.
_CLASSES: dict[_Row, str] = {
    # What lies outside Exception (KeyboardInterrupt, asyncio.CancelledError, ...) asks us to stop: it is no error.
    _Row(None): "builtins.BaseException concurrent.futures._base.CancelledError",
    _Row(None, look=(_MEMBERS,)): "builtins.BaseExceptionGroup",
    _Row(ErrorCategory.INTERNAL): """
        builtins.Exception builtins.FileNotFoundError builtins.FileExistsError builtins.PermissionError
        builtins.IsADirectoryError builtins.NotADirectoryError builtins.ChildProcessError builtins.ProcessLookupError
        http.client.ImproperConnectionState aio_pika.exceptions.MessageProcessError aio_pika.exceptions.QueueEmpty
    """,
    _Row(ErrorCategory.TRANSPORT): """
        builtins.OSError http.client.HTTPException httpx.TransportError
        aiohttp.client_exceptions.ClientConnectorError requests.exceptions.ProxyError
        urllib3.exceptions.NewConnectionError aiormq.exceptions.AMQPError aiormq.exceptions.ChannelInvalidStateError
        redis.exceptions.RedisClusterException nats.errors.NoServersError nats.errors.ConnectionClosedError
        nats.errors.ConnectionDrainingError nats.errors.ConnectionReconnectingError pika.exceptions.AMQPError
        amqp.exceptions.AMQPError kombu.exceptions.OperationalError botocore.exceptions.ConnectionError
    """,
    _Row(ErrorCategory.TRANSPORT, ambiguous=True): """
        builtins.ConnectionResetError builtins.BrokenPipeError builtins.EOFError http.client.BadStatusLine
        http.client.IncompleteRead httpx.ReadError httpx.WriteError httpx.RemoteProtocolError
        aiohttp.client_exceptions.ClientOSError aiohttp.client_exceptions.ClientConnectionResetError
        aiohttp.client_exceptions.ServerDisconnectedError aiohttp.client_exceptions.ClientPayloadError
        aiohttp.http_exceptions.HttpProcessingError requests.exceptions.ChunkedEncodingError
        urllib3.exceptions.ProtocolError urllib3.exceptions.IncompleteRead urllib3.exceptions.InvalidChunkLength
        aiormq.exceptions.ConnectionClosed aiormq.exceptions.ChannelClosed redis.exceptions.ConnectionError
        pika.exceptions.StreamLostError pika.exceptions.ConnectionClosed pika.exceptions.ChannelClosed
        pika.exceptions.AMQPHeartbeatTimeout
        nats.errors.StaleConnectionError starlette.websockets.WebSocketDisconnect
        websockets.exceptions.ConnectionClosed
        botocore.exceptions.ConnectionClosedError botocore.exceptions.HTTPClientError
    """,
    _Row(ErrorCategory.TRANSPORT, look=(_STATUS,)): """
        urllib.error.HTTPError httpx.HTTPError aiohttp.client_exceptions.ClientError urllib3.exceptions.HTTPError
    """,
    # These say only "no answer"; what they wrap says why.
    _Row(ErrorCategory.TRANSPORT, look=("reason",)): "urllib.error.URLError urllib3.exceptions.MaxRetryError",
    _Row(ErrorCategory.TRANSPORT, look=("args",)): "requests.exceptions.ConnectionError",
    # An answer that is no HTTP is reported as status 400; only the exception behind it tells.
    _Row(ErrorCategory.TRANSPORT, look=("__cause__", _STATUS)): "aiohttp.client_exceptions.ClientResponseError",
    _Row(ErrorCategory.UNAVAILABLE, look=(_AWS,)): "botocore.exceptions.ClientError",
    _Row(ErrorCategory.TIMEOUT): """
        httpx.ConnectTimeout aiohttp.client_exceptions.ConnectionTimeoutError requests.exceptions.ConnectTimeout
        botocore.exceptions.ConnectTimeoutError
        urllib3.exceptions.ConnectTimeoutError
    """,
    # The two of green threads are BaseExceptions, and still no cancellations.
    _Row(ErrorCategory.TIMEOUT, ambiguous=True): """
        builtins.TimeoutError gevent.timeout.Timeout eventlet.timeout.Timeout httpx.TimeoutException
        aiohttp.client_exceptions.ServerTimeoutError requests.exceptions.Timeout urllib3.exceptions.TimeoutError
        botocore.exceptions.ReadTimeoutError
        redis.exceptions.TimeoutError billiard.exceptions.TimeLimitExceeded billiard.exceptions.SoftTimeLimitExceeded
    """,
    # basic.nack (DeliveryError, NackError), or nobody answers for a subject just now: the broker cannot take it.
    _Row(ErrorCategory.UNAVAILABLE): """
        requests.exceptions.RetryError urllib3.exceptions.ResponseError aiormq.exceptions.DeliveryError
        aiormq.exceptions.ConnectionResourceError aiormq.exceptions.ConnectionInternalError
        aiormq.exceptions.ChannelLockedResource redis.exceptions.BusyLoadingError redis.exceptions.ClusterError
        redis.exceptions.OutOfMemoryError redis.exceptions.ReadOnlyError redis.exceptions.TryAgainError
        redis.exceptions.SlotNotCoveredError nats.errors.NoRespondersError nats.js.errors.NoStreamResponseError
        nats.js.errors.ServerError nats.js.errors.ServiceUnavailableError pika.exceptions.NackError
        pika.exceptions.ConnectionBlockedTimeout
    """,
    # basic.return (PublishError, UnroutableError): no queue is bound, which another try does not change.
    _Row(ErrorCategory.REJECTED_DOWNSTREAM): "aiormq.exceptions.PublishError pika.exceptions.UnroutableError",
    # ConnectionNotAllowed: a virtual host that is not ours.
    _Row(ErrorCategory.AUTH): """
        aiormq.exceptions.AuthenticationError aiormq.exceptions.ProbableAuthenticationError
        aiormq.exceptions.ConnectionNotAllowed aiormq.exceptions.ChannelAccessRefused
        pika.exceptions.AuthenticationError pika.exceptions.ProbableAuthenticationError
        pika.exceptions.ProbableAccessDeniedError
        redis.exceptions.AuthenticationError redis.exceptions.AuthorizationError redis.exceptions.NoPermissionError
        redis.exceptions.AuthenticationWrongNumberOfArgsError redis.exceptions.ExternalAuthProviderError
        nats.errors.AuthorizationError nats.errors.InvalidUserCredentialsError
        botocore.exceptions.NoCredentialsError botocore.exceptions.CredentialRetrievalError
    """,
    # A missing exchange or queue (ChannelNotFoundEntity) is our topology, not a dead address that nobody mends.
    _Row(ErrorCategory.VALIDATION): """
        builtins.UnicodeError json.decoder.JSONDecodeError asyncio.exceptions.LimitOverrunError http.client.InvalidURL
        httpx.LocalProtocolError httpx.UnsupportedProtocol httpx.InvalidURL httpx.DecodingError httpx.TooManyRedirects
        aiohttp.client_exceptions.InvalidURL aiohttp.client_exceptions.NonHttpUrlClientError
        aiohttp.client_exceptions.TooManyRedirects requests.exceptions.InvalidJSONError
        requests.exceptions.ContentDecodingError requests.exceptions.InvalidURL requests.exceptions.InvalidSchema
        requests.exceptions.MissingSchema requests.exceptions.InvalidHeader requests.exceptions.TooManyRedirects
        urllib3.exceptions.DecodeError urllib3.exceptions.InvalidHeader urllib3.exceptions.LocationValueError
        pydantic_core._pydantic_core.ValidationError pydantic_core._pydantic_core.PydanticSerializationError
        pydantic.error_wrappers.ValidationError pydantic.v1.error_wrappers.ValidationError msgspec.MsgspecError
        jsonschema.exceptions.ValidationError marshmallow.exceptions.ValidationError
        aiormq.exceptions.ChannelNotFoundEntity aiormq.exceptions.ChannelPreconditionFailed redis.exceptions.DataError
        pika.exceptions.UnsupportedAMQPFieldException pika.exceptions.ShortStringTooLong
        kombu.exceptions.SerializationError
        nats.errors.MaxPayloadError nats.errors.BadSubjectError nats.errors.BadHeaderError
        nats.js.errors.BadRequestError
        botocore.exceptions.ParamValidationError
    """,
    _Row(ErrorCategory.VALIDATION, look=(_STATUS,)): (
        "aiohttp.client_exceptions.ContentTypeError aiohttp.client_exceptions.WSServerHandshakeError"
    ),
    _Row(ErrorCategory.OVERLOAD): """
        builtins.MemoryError asyncio.queues.QueueFull queue.Full httpx.PoolTimeout urllib3.exceptions.EmptyPoolError
        redis.exceptions.MaxConnectionsError nats.errors.OutboundBufferLimitError nats.js.errors.TooManyStalledMsgsError
    """,
}

_CANCELLED = Verdict(None, "cancelled", outcome=Outcome.CANCELLED)
_UNCLASSIFIABLE = Verdict(ErrorCategory.INTERNAL, "unclassifiable")
_STATUS_CATEGORIES: dict[int, ErrorCategory] = {
    **dict.fromkeys((400, 405, 406, 411, 413, 414, 415, 417, 422, 426, 428, 431), ErrorCategory.VALIDATION),
    **dict.fromkeys((401, 403, 407), ErrorCategory.AUTH),
    **dict.fromkeys((404, 410), ErrorCategory.RECIPIENT),
    408: ErrorCategory.TIMEOUT,
    **dict.fromkeys((425, 429), ErrorCategory.RATE_LIMITED),
}
# The rest by hundreds. A redirect that nobody followed: the address we hold is wrong.
_HUNDREDS = (None, None, ErrorCategory.VALIDATION, ErrorCategory.REJECTED_DOWNSTREAM, ErrorCategory.UNAVAILABLE)
_BY_STATUS = {n: Verdict(_STATUS_CATEGORIES.get(n, _HUNDREDS[n // 100 - 1]), str(n)) for n in range(100, 600)}
# Codes of AWS' answers that say more than their status, which is 400 for most (botocore's retry modes; IAM's errors).
_AWS_LIMITS = frozenset(
    {"TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded", "LimitExceededException",
     "OverLimit", "ProvisionedThroughputExceededException", "SlowDown", "PriorRequestNotComplete"}
)  # fmt: skip
_AWS_REFUSALS = frozenset(
    {"AccessDenied", "AccessDeniedException", "AuthorizationError", "ExpiredToken", "ExpiredTokenException",
     "InvalidClientTokenId", "InvalidSecurity", "SignatureDoesNotMatch", "UnrecognizedClientException"}
)  # fmt: skip
_STATUS_TYPES = (int, HTTPStatus)  # exactly these: a bool is no status, and other subclasses may run foreign code
_MUTE = frozenset({type(None), bool, int, float, str, bytes, dict, list, tuple})
_HTTP_PACKAGES = frozenset({"aiohttp", "http", "httpx", "requests", "urllib3"})

# The descriptors of Python itself: no metaclass and no overriding property gets in between.
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_namespace: Callable[[type], Mapping[str, Any]] = type.__dict__["__dict__"].__get__
_module: Callable[[type], object] = type.__dict__["__module__"].__get__
_qualname: Callable[[type], str] = type.__dict__["__qualname__"].__get__
_args: Callable[[BaseException], tuple[Any, ...]] = BaseException.__dict__["args"].__get__
_members: Callable[[BaseException], tuple[BaseException, ...]] = BaseExceptionGroup.__dict__["exceptions"].__get__
_NATIVE: set[type] = {GetSetDescriptorType, MemberDescriptorType}
_READABLE: set[Any] = {property, type(_Row.__dict__["look"]), *_NATIVE}
_rows = {name: row for row, names in _CLASSES.items() for name in names.split()}
_users: dict[type, ErrorCategory] = {}
_version = 0


def classify(error: BaseException) -> Verdict:
    """Return what *error* says about the attempt it ended; raises nothing and never reads the error's message.

    The most derived class that has a row decides: first the user's row for it (``extend``), then the built-in one.
    An HTTP status that the error carries goes before the built-in rows of Python's own exceptions.
    """
    try:
        return _judge(error, 0)
    except Exception:  # noqa: BLE001  a hostile metaclass, or no stack left to judge a RecursionError with
        _guard.tally(INTERNAL_ERRORS, "classify")
        return _UNCLASSIFIABLE


def by_status(status: int) -> Verdict:
    """Return what the HTTP status code *status* (RFC 9110) says; category None below 300, ``internal`` out of range."""
    return _BY_STATUS.get(status, Verdict(ErrorCategory.INTERNAL, "status_out_of_range"))


def judge_value(value: object) -> Verdict | None:
    """Return what a returned *value* says, or None if it says nothing: only HTTP responses speak, by their status."""
    try:
        if type(value) in _MUTE:
            return None
        status, known = _peek(value, "status_code"), _layout(type(value))[2]
        if known and type(status) not in _STATUS_TYPES:
            status = _peek(value, "status")
        # On a stranger, a number that is no HTTP status means something else.
        if type(status) in _STATUS_TYPES and (known or status in _BY_STATUS):
            return by_status(status)
    except Exception:  # noqa: BLE001  a hostile metaclass
        _guard.tally(INTERNAL_ERRORS, "classify")
    return None


def register(rows: Mapping[str, ErrorCategory]) -> None:
    """Add built-in rows, qualified class name -> category: how an integration tells what its client raises."""
    _rows.update({name: _Row(category) for name, category in rows.items()})
    _forget()


def extend(types: Mapping[type[BaseException], ErrorCategory]) -> None:
    """Add the user's rows, exception class -> category, which cover subclasses too; ConfigError for anything else.

    Whether the request may have arrived (``Verdict.ambiguous``) stays as the built-in row says: no category changes it.
    """
    for cls, category in types.items():
        if BaseException not in getattr(cls, "__mro__", ()):
            raise ConfigError(f"errors= maps exception classes to ErrorCategory, but a key is {cls!r}: give a class")
        if type(category) is not ErrorCategory:
            raise ConfigError(f"errors= maps {cls.__qualname__} to {category!r}: give a member of ErrorCategory")
    _users.update(types)
    _forget()


def reset() -> None:
    """Forget the user's rows (``extend``); what integrations registered stays."""
    _users.clear()
    _forget()


def _forget() -> None:
    # Part of the key of what is remembered: a thread that read the old rows remembers its result for the old version.
    global _version  # noqa: PLW0603  as said
    _version += 1


def _judge(error: BaseException, depth: int) -> Verdict:
    verdict, looks = _rule(type(error), _version)
    for look in looks if depth < _DEPTH_LIMIT else ():
        if look is _STATUS:
            found = _carried_status(error)
        elif look is _AWS:
            found = _aws_answer(error)
        elif look is _MEMBERS:
            found = _first_member(error, depth + 1)
        else:
            found = _behind(error, look, depth + 1)
        if found is not None:
            return found
    return verdict


def _apply(cls: type, _version: int) -> tuple[Verdict, tuple[str, ...]]:
    """Return what *cls* says, unless one of the looks at an instance finds more."""
    row, category = _Row(ErrorCategory.INTERNAL), None
    for base in _mro(cls):
        category = category or _users.get(base)
        name = _name(base)
        if name in _rows:
            row = _rows[name]
            if row.category and name.startswith("builtins."):
                row = row._replace(look=(_STATUS,))
            break
    if category:
        row = _Row(category, row.ambiguous)
    return Verdict(row.category, _qualname(cls), None, row.ambiguous) if row.category else _CANCELLED, row.look


_rule: Callable[[type, int], tuple[Verdict, tuple[str, ...]]] = lru_cache(_CLASSES_LIMIT)(_apply)


def _name(cls: type) -> str:
    module = _module(cls)
    return f"{module}.{_qualname(cls)}" if type(module) is str else ""


def _carried_status(error: BaseException) -> Verdict | None:
    for carrier in (_peek(error, "response"), error):
        for name in ("status_code", "status") if carrier is not None else ():
            status = _peek(carrier, name)
            if type(status) in _STATUS_TYPES and status in _BY_STATUS and _BY_STATUS[status].category:
                return _BY_STATUS[status]
    return None


def _aws_answer(error: BaseException) -> Verdict | None:
    response: Any = _peek(error, "response")
    if type(response) is not dict:
        return None
    answer = cast("dict[str, Any]", response)
    told, metadata = answer.get("Error"), answer.get("ResponseMetadata")
    code: Any = cast("dict[str, Any]", told).get("Code") if type(told) is dict else None
    if type(code) is str and ("Throttl" in code or code in _AWS_LIMITS):
        return Verdict(ErrorCategory.RATE_LIMITED, code)
    if type(code) is str and code in _AWS_REFUSALS:
        return Verdict(ErrorCategory.AUTH, code)
    status: Any = cast("dict[str, Any]", metadata).get("HTTPStatusCode") if type(metadata) is dict else None
    found = _BY_STATUS.get(status) if type(status) in _STATUS_TYPES else None
    return found if found is not None and found.category else None


def _first_member(group: BaseException, depth: int) -> Verdict | None:
    waiting = [group]
    for _ in range(_MEMBERS_LIMIT):
        if not waiting:
            return None
        error = waiting.pop()
        if _MEMBERS in _rule(type(error), _version)[1]:
            waiting.extend(reversed(_members(error)[:_MEMBERS_LIMIT]))
        elif (verdict := _judge(error, depth)).outcome is not Outcome.CANCELLED:
            return verdict
    return _UNCLASSIFIABLE


def _behind(error: BaseException, name: str, depth: int) -> Verdict | None:
    found = _args(error)[:1] if name == "args" else (_peek(error, name),)
    for behind in found:
        if issubclass(type(behind), BaseException):
            verdict = _judge(behind, depth)
            return None if verdict.category in {None, ErrorCategory.INTERNAL} else verdict
    return None


def _lay_out(cls: type) -> tuple[tuple[Mapping[str, Any], ...], Any, bool]:
    """Return the live namespaces, nearest last; the descriptor of the instance's own; whether HTTP packages made it."""
    namespaces = tuple(_namespace(base) for base in _mro(cls)[::-1])
    found = [own for space in namespaces if type(own := space.get("__dict__")) in _NATIVE]
    http = any(_name(base).partition(".")[0] in _HTTP_PACKAGES for base in _mro(cls))
    return namespaces, found[-1] if found else None, http


_layout: Callable[[type], tuple[tuple[Mapping[str, Any], ...], Any, bool]] = lru_cache(_CLASSES_LIMIT)(_lay_out)


def _peek(thing: object, name: str) -> Any:
    """Return the attribute *name* or None, running no foreign code but a property's getter."""
    namespaces, instance, _ = _layout(type(thing))
    attribute: Any = None
    if instance and type(values := instance.__get__(thing)) is dict and name in values:
        return cast("dict[str, Any]", values)[name]
    for namespace in namespaces:
        attribute = namespace.get(name, attribute)
    if type(attribute) not in _READABLE:
        return attribute
    cls = type(thing)
    try:
        return attribute.__get__(thing, cls)
    except Exception:  # noqa: BLE001  a stranger's property may do this; the user's own error has to go on
        return None
