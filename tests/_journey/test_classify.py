"""The judge of exceptions, statuses and returned values: its tables, hostile objects, rows of leaves and users."""

from __future__ import annotations

import asyncio
import builtins
import concurrent.futures
import contextlib
import functools
import http.client
import importlib
import json
import queue
import socket
import ssl
import subprocess
import sys
import threading
import unittest.mock
import urllib.error
import urllib.request
from dataclasses import dataclass
from http import HTTPStatus
from types import SimpleNamespace
from typing import NamedTuple

import aio_pika
import aiohttp
import aiormq.exceptions
import amqp.exceptions
import billiard.exceptions
import httpx
import hypothesis
import hypothesis.strategies as st
import jsonschema
import kombu.exceptions
import nats.errors
import nats.js.errors
import pika.exceptions
import pydantic
import pydantic_core
import pytest
import redis.exceptions
import requests
import starlette.websockets
import urllib3
import websockets.exceptions

from rtobs._journey import classify as module
from rtobs._journey.classify import by_status, classify, extend, judge_value, register, reset
from rtobs._journey.outcome import PERMANENT, ErrorCategory, Outcome, Verdict
from rtobs.errors import ConfigError
from tests.support.timing import scaled

TRANSPORT = ErrorCategory.TRANSPORT
TIMEOUT = ErrorCategory.TIMEOUT
RATE_LIMITED = ErrorCategory.RATE_LIMITED
UNAVAILABLE = ErrorCategory.UNAVAILABLE
AUTH = ErrorCategory.AUTH
VALIDATION = ErrorCategory.VALIDATION
RECIPIENT = ErrorCategory.RECIPIENT
REJECTED_DOWNSTREAM = ErrorCategory.REJECTED_DOWNSTREAM
OVERLOAD = ErrorCategory.OVERLOAD
INTERNAL = ErrorCategory.INTERNAL
CANCELLED = Verdict(None, "cancelled", outcome=Outcome.CANCELLED)

HUGE = 1 << 20_000
"""More digits than Python turns into a string: naming it would raise."""

PATIENT = max(10.0, scaled(10))  # patience with a slow machine: no scale shortens it


@pytest.fixture(autouse=True)
def _rows_as_shipped():
    rows = dict(module._rows)
    yield
    module._rows.clear()
    module._rows.update(rows)
    reset()


# HTTP statuses


EXPECTED_BY_STATUS = {
    **dict.fromkeys(range(100, 300), None),
    **dict.fromkeys(range(300, 400), VALIDATION),
    **dict.fromkeys(range(400, 500), REJECTED_DOWNSTREAM),
    **dict.fromkeys(range(500, 600), UNAVAILABLE),
    **dict.fromkeys([400, 405, 406, 411, 413, 414, 415, 417, 422, 426, 428, 431], VALIDATION),
    **dict.fromkeys([401, 403, 407], AUTH),
    **dict.fromkeys([404, 410], RECIPIENT),
    **dict.fromkeys([425, 429], RATE_LIMITED),
    408: TIMEOUT,
}


def test_every_status_has_one_category():
    """Each HTTP status from 100 to 599 has its category and is its own reason."""
    assert {status: by_status(status) for status in range(100, 600)} == {
        status: Verdict(EXPECTED_BY_STATUS[status], str(status)) for status in range(100, 600)
    }


def test_another_try_is_worth_it_only_for_408_425_429_and_5xx():
    """Among the failing statuses exactly 408, 425, 429 and 5xx belong to categories that another try may mend."""
    verdicts = [by_status(status) for status in range(100, 600)]
    retryable = [int(verdict.reason) for verdict in verdicts if verdict.category and verdict.category not in PERMANENT]
    assert retryable == [408, 425, 429, *range(500, 600)]


@pytest.mark.parametrize("status", [-1, 0, 1, 99, 600, 999, HUGE], ids=hex)
def test_a_number_that_is_no_status_is_internal(status):
    """A number outside 100 to 599, however large, is our fault and not the provider's."""
    assert by_status(status) == Verdict(INTERNAL, "status_out_of_range")


def _raised_by_httpx(status):
    return httpx.HTTPStatusError("no", request=httpx.Request("GET", "http://x"), response=httpx.Response(status))


def _raised_by_requests(status):
    response = requests.Response()
    response.status_code = status
    return requests.HTTPError("no", response=response)


def _raised_by_aiohttp(status):
    return aiohttp.ClientResponseError(None, (), status=status, message="no")


def _raised_by_urllib(status):
    error = urllib.error.HTTPError("http://x", status, "no", {}, None)
    error.close()
    return error


def _raised_by_an_application(status):
    error = RuntimeError("no")
    error.status_code = status
    return error


def _raised_by_a_subclass_of_an_os_error(status):
    return type("ApiError", (ConnectionError,), {"status": status})("no")


@pytest.mark.parametrize(
    "raised",
    [
        _raised_by_httpx,
        _raised_by_requests,
        _raised_by_aiohttp,
        _raised_by_urllib,
        _raised_by_an_application,
        _raised_by_a_subclass_of_an_os_error,
    ],
)
def test_an_error_that_carries_a_status_is_judged_by_it(raised):
    """Whichever library raised it, an error with a failing HTTP status says what the status says."""
    for status in range(300, 600):
        assert classify(raised(status)) == Verdict(EXPECTED_BY_STATUS[status], str(status))


@pytest.mark.parametrize("status", [0, 100, 200, 204, 299, 600, -503, HUGE], ids=hex)
@pytest.mark.parametrize(
    "raised", [_raised_by_httpx, _raised_by_requests, _raised_by_aiohttp, _raised_by_an_application]
)
def test_an_error_is_never_a_success(raised, status):
    """A good or meaningless status on an exception does not make the attempt a success: the class decides."""
    error = raised(status)
    assert classify(error).category is (INTERNAL if type(error) is RuntimeError else TRANSPORT)
    assert classify(error).reason == type(error).__qualname__


@pytest.mark.parametrize("status", [True, "503", 503.0, None, [503], type("Fake", (int,), {})(503)])
def test_only_a_plain_number_is_a_status(status):
    """Booleans, strings, floats and self-made integers on an exception are not taken for an HTTP status."""
    assert classify(_raised_by_an_application(status)) == Verdict(INTERNAL, "RuntimeError")


def test_the_standard_librarys_status_enum_is_a_status():
    """``http.HTTPStatus`` counts like the number it stands for."""
    assert classify(_raised_by_an_application(HTTPStatus.TOO_MANY_REQUESTS)) == Verdict(RATE_LIMITED, "429")


def test_the_response_speaks_before_the_error_itself():
    """Where both carry a status, the one of ``error.response`` is the provider's."""
    error = _raised_by_an_application(500)
    error.response = SimpleNamespace(status_code=410)
    assert classify(error) == Verdict(RECIPIENT, "410")


# Classes


def _failure_of(call, *args, **options):
    try:
        call(*args, **options)
    except Exception as error:  # noqa: BLE001 - whatever the client raises is what we want to see
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        return error
    pytest.fail("the call was meant to fail")


async def _incomplete_read():
    reader = asyncio.StreamReader()
    reader.feed_eof()
    await reader.readexactly(1)


async def _limit_overrun():
    reader = asyncio.StreamReader(limit=2)
    reader.feed_data(b"too long\n")
    await reader.readuntil()


async def _never_in_time():
    async with asyncio.timeout(0):
        await asyncio.sleep(PATIENT)


def _overfill(full):
    full.put_nowait(1)
    full.put_nowait(2)


class Model(pydantic.BaseModel):
    number: int


def _bare(cls):
    return cls.__new__(cls)


def _stand_in(name, base):
    module_name, _, class_name = name.rpartition(".")
    return type(class_name, (base,), {"__module__": module_name})()


@pytest.mark.parametrize(
    ("provoke", "expected"),
    [
        (lambda: asyncio.run(_incomplete_read()), Verdict(TRANSPORT, "IncompleteReadError", ambiguous=True)),
        (lambda: asyncio.run(_limit_overrun()), Verdict(VALIDATION, "LimitOverrunError")),
        (lambda: asyncio.run(_never_in_time()), Verdict(TIMEOUT, "TimeoutError", ambiguous=True)),
        (lambda: _overfill(asyncio.Queue(1)), Verdict(OVERLOAD, "QueueFull")),
        (lambda: _overfill(queue.Queue(1)), Verdict(OVERLOAD, "Full")),
        (lambda: concurrent.futures.Future().result(0), Verdict(TIMEOUT, "TimeoutError", ambiguous=True)),
        (lambda: json.loads("{"), Verdict(VALIDATION, "JSONDecodeError")),
        (b"\xff".decode, Verdict(VALIDATION, "UnicodeDecodeError")),
        (lambda: Model(number="x"), Verdict(VALIDATION, "ValidationError")),
        (lambda: Model.model_validate_json("{"), Verdict(VALIDATION, "ValidationError")),
        (lambda: jsonschema.validate(1, {"type": "string"}), Verdict(VALIDATION, "ValidationError")),
        (lambda: int("x"), Verdict(INTERNAL, "ValueError")),
        (lambda: {}["x"], Verdict(INTERNAL, "KeyError")),
        (lambda: None + 1, Verdict(INTERNAL, "TypeError")),
    ],
)
def test_what_python_and_validators_raise(provoke, expected):
    """Errors of the standard library and of validators are told apart by who has to act."""
    assert classify(_failure_of(provoke)) == expected


@pytest.mark.parametrize(
    ("error", "category", "ambiguous"),
    [
        (OSError(), TRANSPORT, False),
        (ConnectionError(), TRANSPORT, False),
        (ConnectionAbortedError(), TRANSPORT, False),
        (EOFError(), TRANSPORT, True),
        (PermissionError(), INTERNAL, False),
        (FileExistsError(), INTERNAL, False),
        (IsADirectoryError(), INTERNAL, False),
        (NotADirectoryError(), INTERNAL, False),
        (ChildProcessError(), INTERNAL, False),
        (ProcessLookupError(), INTERNAL, False),
        (socket.gaierror(), TRANSPORT, False),
        (socket.herror(), TRANSPORT, False),
        (MemoryError(), OVERLOAD, False),
        (RecursionError(), INTERNAL, False),
        (Exception(), INTERNAL, False),
        (asyncio.InvalidStateError(), INTERNAL, False),
        (ssl.SSLCertVerificationError(1, "self-signed"), TRANSPORT, False),
        (ssl.SSLEOFError(8, "eof"), TRANSPORT, False),
        (http.client.CannotSendRequest(), INTERNAL, False),
        (http.client.NotConnected(), TRANSPORT, False),
        (http.client.RemoteDisconnected(), TRANSPORT, True),
        (urllib.error.URLError(ssl.SSLCertVerificationError(1, "self-signed")), TRANSPORT, False),
        (urllib.error.URLError(TimeoutError()), TIMEOUT, True),
        (urllib.error.URLError("unknown url type"), TRANSPORT, False),
        (urllib.error.URLError(FileNotFoundError()), TRANSPORT, False),
        (httpx.WriteTimeout("no"), TIMEOUT, True),
        (httpx.WriteError("no"), TRANSPORT, True),
        (httpx.ProxyError("no"), TRANSPORT, False),
        (httpx.RequestNotRead(), INTERNAL, False),
        (aiohttp.ServerTimeoutError(), TIMEOUT, True),
        (aiohttp.ClientError(), TRANSPORT, False),
        (aiohttp.ClientConnectionError(), TRANSPORT, False),
        (aiohttp.ClientConnectionResetError(), TRANSPORT, True),
        (aiohttp.ServerFingerprintMismatch(b"", b"", "x", 1), TRANSPORT, False),
        (requests.Timeout(), TIMEOUT, True),
        (requests.ConnectTimeout(), TIMEOUT, False),
        (requests.exceptions.SSLError(ssl.SSLError()), TRANSPORT, False),
        (requests.ConnectionError(), TRANSPORT, False),
        (requests.ConnectionError("made by hand"), TRANSPORT, False),
        (requests.ConnectionError(ValueError()), TRANSPORT, False),
        (requests.HTTPError(response=None), TRANSPORT, False),
        (requests.exceptions.RetryError(), UNAVAILABLE, False),
        (requests.exceptions.ProxyError(ConnectionResetError()), TRANSPORT, False),
        (urllib3.exceptions.MaxRetryError(None, "/", urllib3.exceptions.ResponseError()), UNAVAILABLE, False),
        (urllib3.exceptions.MaxRetryError(None, "/", None), TRANSPORT, False),
        (urllib3.exceptions.EmptyPoolError(None, "full"), OVERLOAD, False),
        (urllib3.exceptions.IncompleteRead(1, 2), TRANSPORT, True),
        (_bare(urllib3.exceptions.InvalidChunkLength), TRANSPORT, True),
        (urllib3.exceptions.InvalidHeader(), VALIDATION, False),
        (aiormq.exceptions.AMQPError(), TRANSPORT, False),
        (aiormq.exceptions.AMQPConnectionError(), TRANSPORT, False),
        (aiormq.exceptions.AuthenticationError(), AUTH, False),
        (aiormq.exceptions.ConnectionNotAllowed("no"), AUTH, False),
        (aiormq.exceptions.ConnectionResourceError("no"), UNAVAILABLE, False),
        (aio_pika.exceptions.MessageProcessError(), INTERNAL, False),
        (aio_pika.exceptions.QueueEmpty(), INTERNAL, False),
        (aiormq.exceptions.ConnectionClosed(320, "shutdown"), TRANSPORT, True),
        (aiormq.exceptions.ConnectionInternalError("no"), UNAVAILABLE, False),
        (aiormq.exceptions.ProbableAuthenticationError("no"), AUTH, False),
        (aiormq.exceptions.ChannelAccessRefused("no"), AUTH, False),
        (aiormq.exceptions.ChannelNotFoundEntity("no"), VALIDATION, False),
        (aiormq.exceptions.ChannelPreconditionFailed("no"), VALIDATION, False),
        (aiormq.exceptions.ChannelLockedResource("no"), UNAVAILABLE, False),
        (aiormq.exceptions.ChannelClosed(504, "no"), TRANSPORT, True),
        (aiormq.exceptions.ChannelInvalidStateError("closed"), TRANSPORT, False),
        (_bare(aiormq.exceptions.DeliveryError), UNAVAILABLE, False),
        (_bare(aiormq.exceptions.PublishError), REJECTED_DOWNSTREAM, False),
        (pika.exceptions.AMQPConnectionError(), TRANSPORT, False),
        (pika.exceptions.StreamLostError(), TRANSPORT, True),
        (pika.exceptions.ChannelClosedByBroker(404, "no"), TRANSPORT, True),
        (pika.exceptions.ChannelWrongStateError(), TRANSPORT, False),
        (pika.exceptions.AMQPHeartbeatTimeout(), TRANSPORT, True),
        (pika.exceptions.NackError([]), UNAVAILABLE, False),
        (pika.exceptions.ConnectionBlockedTimeout(), UNAVAILABLE, False),
        (pika.exceptions.UnroutableError([]), REJECTED_DOWNSTREAM, False),
        (pika.exceptions.AuthenticationError(), AUTH, False),
        (pika.exceptions.ProbableAccessDeniedError(), AUTH, False),
        (pika.exceptions.ShortStringTooLong(), VALIDATION, False),
        (amqp.exceptions.ConnectionForced(), TRANSPORT, False),
        (kombu.exceptions.OperationalError(), TRANSPORT, False),
        (kombu.exceptions.EncodeError(), VALIDATION, False),
        (billiard.exceptions.TimeLimitExceeded(), TIMEOUT, True),
        (billiard.exceptions.SoftTimeLimitExceeded(), TIMEOUT, True),
        (redis.exceptions.ConnectionError("gone"), TRANSPORT, True),
        (redis.exceptions.RedisClusterException("no node"), TRANSPORT, False),
        (redis.exceptions.TimeoutError("late"), TIMEOUT, True),
        (redis.exceptions.BusyLoadingError("LOADING"), UNAVAILABLE, False),
        (_bare(redis.exceptions.MasterDownError), UNAVAILABLE, False),
        (redis.exceptions.OutOfMemoryError("OOM"), UNAVAILABLE, False),
        (redis.exceptions.ReadOnlyError("READONLY"), UNAVAILABLE, False),
        (redis.exceptions.TryAgainError("TRYAGAIN"), UNAVAILABLE, False),
        (redis.exceptions.SlotNotCoveredError("no node"), UNAVAILABLE, False),
        (redis.exceptions.AuthenticationError("WRONGPASS"), AUTH, False),
        (redis.exceptions.AuthorizationError("no"), AUTH, False),
        (redis.exceptions.NoPermissionError("NOPERM"), AUTH, False),
        (redis.exceptions.AuthenticationWrongNumberOfArgsError("no"), AUTH, False),
        (redis.exceptions.ExternalAuthProviderError("no"), AUTH, False),
        (redis.exceptions.MaxConnectionsError("no connection is free"), OVERLOAD, False),
        (redis.exceptions.DataError("a dict"), VALIDATION, False),
        (redis.exceptions.ResponseError("WRONGTYPE"), INTERNAL, False),
        (nats.errors.NoServersError(), TRANSPORT, False),
        (nats.errors.ConnectionClosedError(), TRANSPORT, False),
        (nats.errors.ConnectionDrainingError(), TRANSPORT, False),
        (nats.errors.ConnectionReconnectingError(), TRANSPORT, False),
        (nats.errors.StaleConnectionError(), TRANSPORT, True),
        (starlette.websockets.WebSocketDisconnect(1001), TRANSPORT, True),
        (websockets.exceptions.ConnectionClosedError(None, None), TRANSPORT, True),
        (nats.errors.UnexpectedEOF(), TRANSPORT, True),
        (nats.errors.TimeoutError(), TIMEOUT, True),
        (nats.errors.NoRespondersError(), UNAVAILABLE, False),
        (nats.js.errors.NoStreamResponseError(), UNAVAILABLE, False),
        (nats.js.errors.ServerError(code=500), UNAVAILABLE, False),
        (nats.js.errors.ServiceUnavailableError(code=503), UNAVAILABLE, False),
        (nats.js.errors.BadRequestError(code=400), VALIDATION, False),
        (nats.errors.AuthorizationError(), AUTH, False),
        (nats.errors.InvalidUserCredentialsError(), AUTH, False),
        (nats.errors.MaxPayloadError(), VALIDATION, False),
        (nats.errors.BadSubjectError(), VALIDATION, False),
        (_bare(nats.errors.BadHeaderError), VALIDATION, False),
        (nats.errors.OutboundBufferLimitError(), OVERLOAD, False),
        (nats.js.errors.TooManyStalledMsgsError(), OVERLOAD, False),
        (nats.errors.BadSubscriptionError(), INTERNAL, False),
        (_stand_in("msgspec.DecodeError", _stand_in("msgspec.MsgspecError", ValueError).__class__), VALIDATION, False),
        (_stand_in("marshmallow.exceptions.ValidationError", Exception), VALIDATION, False),
        (pydantic_core.PydanticSerializationError("no"), VALIDATION, False),
        (_stand_in("pydantic.error_wrappers.ValidationError", ValueError), VALIDATION, False),
        (_stand_in("pydantic.v1.error_wrappers.ValidationError", ValueError), VALIDATION, False),
        (_stand_in("gevent.timeout.Timeout", BaseException), TIMEOUT, True),
        (_stand_in("eventlet.timeout.Timeout", BaseException), TIMEOUT, True),
    ],
    ids=lambda value: type(value).__qualname__ if isinstance(value, BaseException) else str(value),
)
def test_the_most_derived_class_with_a_row_decides(error, category, ambiguous):
    """Each class gets the verdict of its own row or of its nearest base that has one."""
    verdict = classify(error)
    assert (verdict.category, verdict.ambiguous) == (category, ambiguous)
    assert verdict.outcome is None


def test_a_subclass_inherits_the_verdict_and_names_itself():
    """A user's subclass of a known error has its base's category and its own name as reason, never its message."""

    class SlowProviderError(httpx.ReadTimeout):
        pass

    verdict = classify(SlowProviderError("password=hunter2"))
    name = "test_a_subclass_inherits_the_verdict_and_names_itself.<locals>.SlowProviderError"
    assert verdict == Verdict(TIMEOUT, name, ambiguous=True)


@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        concurrent.futures.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(1),
        GeneratorExit(),
        type("Killed", (BaseException,), {})(),
        BaseExceptionGroup("all", [KeyboardInterrupt(), BaseExceptionGroup("more", [asyncio.CancelledError()])]),
        ExceptionGroup("all", [concurrent.futures.CancelledError()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_being_told_to_stop_is_no_error(error):
    """Cancellation, exit, interruption and everything else outside Exception end an attempt as cancelled."""
    assert classify(error) == CANCELLED


# Rows of clients that the tests run without; their names were compared with the libraries by hand.
ABSENT = {
    "gevent.timeout.Timeout",
    "eventlet.timeout.Timeout",
    "msgspec.MsgspecError",
    "marshmallow.exceptions.ValidationError",
    "pydantic.error_wrappers.ValidationError",
}


@pytest.mark.parametrize("name", sorted(module._rows.keys() - ABSENT))
def test_every_row_names_a_class_that_exists(name):
    """Each row is the qualified name that a real exception class has, so none is there in vain."""
    module_name, _, class_name = name.rpartition(".")
    cls = getattr(importlib.import_module(module_name), class_name)
    assert issubclass(cls, BaseException)
    assert module._name(cls) == name


def test_no_class_has_two_rows():
    """A class stands in the table once, so that the order of the table means nothing."""
    names = [name for names in module._CLASSES.values() for name in names.split()]
    assert sorted(names) == sorted(set(names))


def test_it_loads_no_client_library():
    """Importing the module loads none of the libraries whose errors it knows."""
    code = "import sys, rtobs._journey.classify; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "rtobs._journey.classify" in loaded
    clients = {
        "httpx",
        "aiohttp",
        "requests",
        "urllib3",
        "pydantic",
        "pydantic_core",
        "aiormq",
        "aio_pika",
        "jsonschema",
        "redis",
        "nats",
    }
    assert not clients & set(loaded)


# Groups


def test_the_first_member_of_a_group_that_is_no_cancellation_decides():
    """In nested groups the first failure, in reading order, speaks for all; cancellations are its consequences."""
    group = BaseExceptionGroup(
        "outer",
        [
            asyncio.CancelledError(),
            BaseExceptionGroup("inner", [KeyboardInterrupt(), ExceptionGroup("last", [_raised_by_httpx(429)])]),
            ValueError(),
        ],
    )
    assert classify(group) == Verdict(RATE_LIMITED, "429")


def test_a_real_task_group_is_judged_by_the_task_that_failed():
    """What ``asyncio.TaskGroup`` raises is judged by the failure that cancelled the others."""

    async def fail():
        await asyncio.sleep(0)
        raise httpx.ConnectTimeout("no")

    async def run():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.sleep(PATIENT))
            tasks.create_task(fail())

    assert classify(_failure_of(lambda: asyncio.run(run()))) == Verdict(TIMEOUT, "ConnectTimeout")


def test_a_member_is_judged_like_any_other_error():
    """A member that wraps another error is looked into as it would be on its own."""
    assert classify(ExceptionGroup("g", [urllib.error.URLError(ConnectionResetError())])) == Verdict(
        TRANSPORT, "ConnectionResetError", ambiguous=True
    )


@pytest.mark.parametrize(("depth", "expected"), [(900, "ValueError"), (5000, "unclassifiable")])
def test_a_very_deep_group_costs_no_stack(depth, expected):
    """A group nested deeper than the stack is judged or given up as internal, never passed off as cancelled."""
    error = ValueError()
    for _ in range(depth):
        error = ExceptionGroup("g", [error])
    try:
        assert classify(error) == Verdict(INTERNAL, expected)
    finally:
        while isinstance(error, ExceptionGroup):  # let go from the outside: Python frees nested groups recursively
            error = error.exceptions[0]


def test_a_very_wide_group_is_given_up():
    """A hundred thousand cancelled members are not all read on the message path."""
    members = [asyncio.CancelledError()] * 100_000
    assert classify(BaseExceptionGroup("g", members)) == Verdict(INTERNAL, "unclassifiable")
    assert classify(BaseExceptionGroup("g", [*members[:900], httpx.ReadError("no")])).category is TRANSPORT


# Hostile errors


def _explode(*_args, **_options):
    raise RuntimeError("I must not be called")


METHODS = ["getattr", "getattribute", "str", "repr", "bool", "len", "eq", "hash", "format", "iter", "reduce_ex"]
EXPLOSIVE = {f"__{name}__": _explode for name in METHODS}
TRAPS = {name: property(_explode) for name in ("response", "status_code", "status", "reason", "args", "exceptions")}


@pytest.mark.parametrize(
    ("base", "category"),
    [(Exception, INTERNAL), (TimeoutError, TIMEOUT), (httpx.HTTPError, TRANSPORT), (urllib.error.URLError, TRANSPORT)],
)
def test_an_error_whose_every_method_explodes_is_judged_by_its_class(base, category):
    """No method of the error runs, and properties that raise only take their attribute out of the picture."""
    hostile = type("Hostile", (base,), {**EXPLOSIVE, **TRAPS, "__class__": property(_explode)})
    verdict = classify(_bare(hostile))
    assert (verdict.category, verdict.reason) == (category, "Hostile")


def test_attributes_made_up_on_demand_are_not_asked_for():
    """An error that answers any attribute is not asked, and so has no side effect and no invented status."""
    asked = []

    class EagerError(Exception):
        def __getattr__(self, name):
            asked.append(name)
            return 404

    assert classify(EagerError()).category is INTERNAL
    assert asked == []


def test_a_lie_about_the_class_is_not_believed():
    """``__class__`` may say anything; the real type decides."""

    class LiarError(Exception):
        __class__ = property(lambda _: httpx.ReadTimeout)

    assert isinstance(LiarError(), httpx.ReadTimeout)
    assert classify(LiarError()).category is INTERNAL


def test_a_group_that_hides_its_members_is_judged_by_them():
    """A group that overrides ``exceptions`` is judged by the members it really has."""

    class Closed(ExceptionGroup):
        exceptions = property(_explode)

    assert classify(Closed("g", [MemoryError()])) == Verdict(OVERLOAD, "MemoryError")


@pytest.mark.parametrize("trap", ["__hash__", "__eq__", "__getattribute__", "__instancecheck__", "__subclasscheck__"])
def test_a_metaclass_that_explodes_cannot_hurt(trap):
    """An exception whose metaclass raises still ends in a verdict."""
    meta = type("Meta", (type,), {trap: _explode, **({"__hash__": type.__hash__} if trap == "__eq__" else {})})
    error = meta("Hostile", (Exception,), {})()
    verdict = classify(error)
    assert verdict.category is INTERNAL
    assert verdict.reason == ("unclassifiable" if trap == "__hash__" else "Hostile")
    assert judge_value(error) is None


def test_a_class_with_a_broken_module_name_is_judged_by_its_base():
    """A class whose ``__module__`` is no plain string matches no row, and its base decides."""
    for name in (5, None, property(_explode), type("Text", (str,), EXPLOSIVE)("httpx")):
        assert classify(type("Nameless", (httpx.PoolTimeout,), {"__module__": name})("no")).category is OVERLOAD


def test_errors_that_wrap_one_another_come_to_an_end():
    """An error that wraps itself is judged by its class."""
    error = urllib.error.URLError("x")
    error.reason = error
    assert classify(error) == Verdict(TRANSPORT, "URLError")


def test_what_an_error_wraps_is_not_trusted_either():
    """A thing that only claims to be an exception is not looked into."""
    error = urllib.error.URLError("x")
    error.reason = object.__new__(HOSTILE_OBJECT)
    assert classify(error) == Verdict(TRANSPORT, "URLError")


def test_a_status_in_a_slot_or_a_property_is_read():
    """A status counts wherever an honest class keeps it: in a slot, a class constant or a property."""

    class SlottedError(Exception):
        __slots__ = ("status",)

    slotted = SlottedError()
    assert classify(slotted).category is INTERNAL
    slotted.status = 403
    assert classify(slotted) == Verdict(AUTH, "403")
    assert classify(type("Gone", (Exception,), {"status_code": 410})()) == Verdict(RECIPIENT, "410")
    assert classify(type("Busy", (Exception,), {"status": property(lambda _: 503)})()) == Verdict(UNAVAILABLE, "503")


HOSTILE_OBJECT = type("HostileObject", (), {**EXPLOSIVE, **TRAPS, "__class__": property(_explode)})

BASES = {
    f"{namespace.__name__}.{name}": cls
    for namespace in (builtins, asyncio, httpx, aiohttp, requests.exceptions, urllib3.exceptions, aiormq.exceptions)
    for name, cls in vars(namespace).items()
    if isinstance(cls, type) and issubclass(cls, BaseException) and not issubclass(cls, BaseExceptionGroup)
}
# What tests are made of is drawn as plain data, because hypothesis prints what it draws.
SPECIAL = {
    "a status enum": lambda: HTTPStatus.GONE,
    "a huge number": lambda: HUGE,
    "a function": lambda: _explode,
    "a class": lambda: HOSTILE_OBJECT,
    "a hostile object": lambda: object.__new__(HOSTILE_OBJECT),
    "a property that raises": lambda: property(_explode),
    "a property": lambda: property(lambda _: 503),
    "a response": lambda: httpx.Response(503),
    "a response with a hostile status": lambda: SimpleNamespace(status_code=object.__new__(HOSTILE_OBJECT)),
}
TRAITS = {"honest": {}, "lying": {"__class__": property(_explode)}, "explosive": EXPLOSIVE}
NAMES = ["response", "status_code", "status", "reason", "exceptions", "__cause__", "__module__", "__dict__"]
NUMBERS = st.integers() | st.integers(99, 601)
VALUES = st.sampled_from(sorted(SPECIAL)) | NUMBERS | st.floats() | st.text(max_size=5) | st.booleans() | st.none()


class Recipe(NamedTuple):
    base: str
    trait: str
    on_class: dict
    on_instance: dict
    arguments: list


def _recipes(inside):
    return st.builds(
        Recipe,
        st.sampled_from(sorted(BASES)),
        st.sampled_from(sorted(TRAITS)),
        st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
        st.dictionaries(st.sampled_from(NAMES), inside, max_size=3),
        st.lists(inside, max_size=2),
    )


def _grouped(inside):
    return _recipes(inside) | st.lists(inside, min_size=1, max_size=4).map(tuple)


ERRORS = st.recursive(_recipes(VALUES), _grouped, max_leaves=8)


def _made(recipe):
    if isinstance(recipe, Recipe):
        namespace = {name: _made(value) for name, value in recipe.on_class.items()}
        base = BASES[recipe.base]
        try:
            cls = type("Made", (base,), {**namespace, **TRAITS[recipe.trait]})
        except TypeError:  # a base that cannot be derived from
            cls = base
        error = base.__new__(cls)
        BaseException.args.__set__(error, tuple(_made(value) for value in recipe.arguments))
        for name, value in recipe.on_instance.items():
            with contextlib.suppress(Exception):
                BaseException.__setattr__(error, name, _made(value))
        return error
    if isinstance(recipe, tuple):
        members = [_made(member) for member in recipe]
        try:
            return BaseExceptionGroup("made", members)
        except RuntimeError:  # the group itself asks its members for their __class__
            return members[0]
    return SPECIAL[recipe]() if recipe in SPECIAL else recipe


@hypothesis.given(ERRORS)
def test_every_error_ends_in_a_verdict(recipe):
    """Whatever the error, judging it raises nothing and names a category or a cancellation, the same each time."""
    error = _made(recipe)
    verdict = classify(error)
    assert type(verdict) is Verdict
    if verdict.category is None:
        assert verdict == CANCELLED
    else:
        assert type(verdict.category) is ErrorCategory
        assert verdict.outcome is None
    assert type(verdict.reason) is str
    assert type(verdict.ambiguous) is bool
    assert classify(error) == verdict


@hypothesis.given(VALUES | ERRORS)
def test_every_value_ends_in_a_verdict_or_none(recipe):
    """Whatever was returned, judging it raises nothing, and ends in the verdict of a status or in none."""
    verdict = judge_value(_made(recipe))
    assert verdict in {None, by_status(HUGE)} or verdict == by_status(int(verdict.reason))


# Returned values


def _response_of_requests(status):
    response = requests.Response()
    response.status_code = status
    return response


class NamedAnswer(NamedTuple):
    status_code: int


@dataclass(slots=True)
class SlottedAnswer:
    status_code: int


RESPONSES = [
    httpx.Response,
    _response_of_requests,
    lambda status: urllib3.HTTPResponse(status=status),
    lambda status: SimpleNamespace(status_code=status),
    NamedAnswer,
    SlottedAnswer,
]


@pytest.mark.parametrize("status", [200, 202, 302, 404, 429, 503])
@pytest.mark.parametrize("make", RESPONSES)
def test_a_returned_response_is_judged_by_its_status(make, status):
    """A response that is returned instead of raised says what its status says."""
    assert judge_value(make(status)) == by_status(status)


@pytest.mark.parametrize("status", [0, 600, 999])
def test_a_response_of_an_http_client_with_an_invented_status_is_a_failure(status):
    """A server that answers 999 did not take the message: for a real HTTP response that is internal, not silence."""
    assert judge_value(httpx.Response(status)) == Verdict(INTERNAL, "status_out_of_range")


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        503,
        "503",
        {"status_code": 503},
        [503],
        object(),
        SimpleNamespace(status=503),
        SimpleNamespace(status_code=0),
        SimpleNamespace(status_code=True),
        SimpleNamespace(status_code="503"),
        SimpleNamespace(status_code=HUGE),
        httpx.Response,
        type("NotFound", (), {"status_code": 404}),
        unittest.mock.MagicMock(),
        _explode,
        functools,
    ],
    ids=lambda value: type(value).__name__,
)
def test_everything_else_says_nothing(value):
    """A value that is no HTTP response says nothing, and none of its methods is called."""
    assert judge_value(value) is None


def test_a_hostile_value_says_nothing():
    """A value whose methods and properties all explode says nothing and hurts nobody."""
    assert judge_value(object.__new__(HOSTILE_OBJECT)) is None
    assert judge_value(type("Hiding", (), {"__dict__": property(_explode)})()) is None


def test_a_false_response_is_a_response():
    """A response of requests with status 500 is falsy and is judged all the same."""
    response = _response_of_requests(500)
    assert not response
    assert judge_value(response) == Verdict(UNAVAILABLE, "500")


# Rows of leaves and of users


class CrmError(Exception):
    pass


class CrmDownError(CrmError):
    pass


def test_the_users_row_covers_the_class_and_its_subclasses():
    """A row given to ``configure(errors=)`` decides for the class and for what derives from it."""
    assert classify(CrmDownError()).category is INTERNAL
    extend({CrmError: REJECTED_DOWNSTREAM})
    assert classify(CrmError()) == Verdict(REJECTED_DOWNSTREAM, "CrmError")
    assert classify(CrmDownError()) == Verdict(REJECTED_DOWNSTREAM, "CrmDownError")


def test_the_users_more_derived_row_wins():
    """Of two rows of the user the more derived class wins, whichever was given first."""
    extend({CrmDownError: UNAVAILABLE})
    extend({CrmError: REJECTED_DOWNSTREAM})
    assert classify(CrmDownError()).category is UNAVAILABLE


def test_the_users_row_wins_for_the_same_class_and_loses_to_a_more_derived_one():
    """A row of the user beats the built-in row of the same class, and not that of a class below it."""
    extend({httpx.TransportError: UNAVAILABLE, httpx.PoolTimeout: INTERNAL})
    assert classify(httpx.ProxyError("no")).category is UNAVAILABLE
    assert classify(httpx.ReadTimeout("no")).category is TIMEOUT
    assert classify(httpx.PoolTimeout("no")).category is INTERNAL


def test_the_users_row_beats_the_status_and_the_look_inside():
    """Where the user named the class, neither its status nor the error behind it is asked."""
    extend({httpx.HTTPStatusError: AUTH, urllib.error.URLError: UNAVAILABLE})
    assert classify(_raised_by_httpx(503)) == Verdict(AUTH, "HTTPStatusError")
    assert classify(urllib.error.URLError(TimeoutError())) == Verdict(UNAVAILABLE, "URLError")


def test_the_users_category_does_not_change_what_may_have_arrived():
    """Whether the request may have arrived stays a fact of the error, whatever category the user gives it."""
    extend({httpx.ReadTimeout: UNAVAILABLE, httpx.ConnectTimeout: UNAVAILABLE})
    assert classify(httpx.ReadTimeout("no")) == Verdict(UNAVAILABLE, "ReadTimeout", ambiguous=True)
    assert classify(httpx.ConnectTimeout("no")) == Verdict(UNAVAILABLE, "ConnectTimeout")


def test_the_user_may_call_a_cancellation_an_error():
    """A row of the user turns what counts as cancelled into a failure."""
    extend({asyncio.CancelledError: TIMEOUT})
    assert classify(asyncio.CancelledError()) == Verdict(TIMEOUT, "CancelledError")
    assert classify(KeyboardInterrupt()) == CANCELLED


def test_reset_forgets_the_user_and_keeps_the_leaves():
    """A new configuration starts without the old one's rows, but with those of the integrations."""
    name = f"{__name__}.CrmError"
    register({name: RECIPIENT})
    extend({CrmError: AUTH})
    assert classify(CrmError()).category is AUTH
    reset()
    assert classify(CrmError()).category is RECIPIENT


def test_a_leafs_row_counts_at_once():
    """A row that an integration adds holds for classes that were judged before."""
    assert classify(CrmDownError()).category is INTERNAL
    register({f"{__name__}.CrmError": OVERLOAD})
    assert classify(CrmDownError()) == Verdict(OVERLOAD, "CrmDownError")


def test_a_row_added_while_another_thread_judges_is_not_lost(monkeypatch):
    """A verdict reached on the old rows is not remembered once the new ones are there."""
    judging, added = threading.Event(), threading.Event()
    name_of = module._name

    def slowly(cls):
        judging.set()
        assert added.wait(PATIENT)
        return name_of(cls)

    monkeypatch.setattr(module, "_name", slowly)
    thread = threading.Thread(target=classify, args=(CrmError(),))
    thread.start()
    assert judging.wait(PATIENT)
    extend({CrmError: AUTH})
    added.set()
    thread.join()
    assert classify(CrmError()).category is AUTH


@pytest.mark.parametrize(
    ("rows", "part"),
    [
        ({"httpx.ReadTimeout": TIMEOUT}, "'httpx.ReadTimeout'"),
        ({int: TIMEOUT}, "<class 'int'>"),
        ({None: TIMEOUT}, "None"),
        ({CrmError: "timeout"}, "'timeout'"),
        ({CrmError: Outcome.DROPPED}, "Outcome.DROPPED"),
    ],
)
def test_a_wrong_row_is_refused_and_changes_nothing(rows, part):
    """A key that is no exception class or a value that is no category is named in a ConfigError, and no row is kept."""
    with pytest.raises(ConfigError, match="errors=") as refused:
        extend({OSError: AUTH, **rows})
    assert part in str(refused.value)
    assert classify(OSError()).category is TRANSPORT


def test_a_class_is_worked_out_once():
    """Errors of one class cost a look-up each, not a walk through their bases, and the common ones no second look."""
    assert module._rule(httpx.ConnectError, module._version)[1] == ()
    before = module._rule.cache_info().misses
    for _ in range(100):
        classify(httpx.ConnectTimeout("no"))
    assert module._rule.cache_info().misses <= before + 1


def test_what_is_remembered_is_bounded():
    """Classes made without end are not remembered without end."""
    for number in range(1500):
        classify(type(f"Made{number}", (Exception,), {})())
    assert module._rule.cache_info().currsize <= 1024
    assert module._layout.cache_info().currsize <= 1024
