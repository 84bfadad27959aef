"""Call sites of the rooms on the message path, found while they run, and a fault raised at one of them.

A *site* is an instruction in the code of ``_journey``, ``_hop``, ``_telemetry`` or ``integrations`` that calls: a call,
the entry of a ``with``, or an operator behind which a Python function stands. Found by tracing every instruction that
runs, so code that is new is found too. Two kinds of call cannot be made to fail in our place, and are told apart:

- a *passage*: the user's or the client's own call, which we only stand round. If it fails, that is theirs, and goes on.
- the *entry of a guard*: the call of a function of ours that does nothing outside of its own ``try … except
  Exception`` (read from its source). Whatever it calls is a site; only the call of the guard itself has no guard.

And the release of a lock at the end of its ``with`` is no site: it cannot fail, and would be held for ever if it did.

Must not know what the traced code is for.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple, Self

import rtobs

HOME = Path(rtobs.__file__).parent
ROOMS = ("_hop", "_journey", "_telemetry", "integrations")
_CALLS = re.compile(r"CALL|CALL_KW|CALL_FUNCTION_EX|BEFORE_WITH|BEFORE_ASYNC_WITH|WITH_EXCEPT_START")
_CAN_CALL = re.compile(
    rf"({_CALLS.pattern})$|LOAD_ATTR|LOAD_METHOD|STORE_ATTR|STORE_SUBSCR|BINARY_|COMPARE_OP|CONTAINS_OP|UNARY_NOT|"
    r"POP_JUMP_|JUMP_IF_|FOR_ITER|GET_ITER|FORMAT_|LIST_EXTEND|SET_UPDATE|DICT_UPDATE|DICT_MERGE|UNPACK_"
)
"""Instructions behind which a Python function may stand; not those by which a coroutine goes on."""

LATER = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
"""Flags of functions that have not run when their call returns."""
CLIENTS = {"integrations/memory.py": ("Broker", "Message", "_Queue")}
"""Classes in our files that are clients, not ours: the in-memory broker."""

PASSAGES: tuple[tuple[str, str], ...] = (
    ("integrations/aio_pika.py", r"super(\(\)\.\w+)?"),  # what the client's own class does
    ("integrations/aiobotocore.py", r"super|calls\.run_async"),
    ("integrations/aiohttp.py", r"super(\(\)\.\w+)?|handler"),
    ("integrations/botocore.py", r"super(\(\)\.\w+)?|calls\.run"),
    ("integrations/_boto_calls.py", r"make"),
    ("integrations/httpx.py", r"super(\(\)\.\w+)?"),
    ("integrations/memory.py", r"super(\(\)\.\w+)?"),
    ("integrations/nats.py", r"super(\(\)\.\w+)?"),
    ("integrations/requests.py", r"super(\(\)\.\w+)?|untyped\.\w+"),
    ("integrations/aiomqtt.py", r"super(\(\)\.\w+)?"),
    ("integrations/websockets.py", r"super(\(\)\.\w+)?|untyped\.\w+"),
    ("integrations/kafka.py", r"super(\(.*\)\.\w+)?|plain|_kafka\.own\(super.*"),
    ("integrations/aiokafka.py", r"super(\(.*\)\.\w+)?|plain|_kafka\.own\(super.*"),
    ("integrations/confluent_kafka.py", r"super|plain|_kafka\.own\(plain\)"),
    ("integrations/confluent_kafka.py", r"_(produce|poll|consume|commit|store_offsets|seek)"),  # as above, further in
    ("integrations/_confluent_kafka.py", r"self\._callback"),  # the report that the user has asked for
    ("integrations/_twin.py", r"getattr"),  # what a stand-in does not do itself
    ("integrations/paho.py", r"super(\(\)\.\w+)?"),
    ("integrations/pika.py", r"super|cast(\('Any', super\(\)\)\.\w+)?|_each|next|messages\.close"),
    ("integrations/celery.py", r"super|(LOAD_ATTR )?cast(\(['\"]Any['\"], super\(\)\)\.\w+)?|send"),
    ("integrations/faststream.py", r"call_next"),
    ("integrations/wsgi.py", r"super(\(\)\.\w+)?|app|self\._start|close"),
    ("integrations/wsgi.py", r"_serve|_Body|iter|next"),  # as above, further in
    ("integrations/django.py", r"self\.(get_response|_serve(_async)?)|a?next"),
    ("integrations/redis.py", r"super|untyped\.\w+|execute"),
    ("integrations/_redis_pubsub.py", r"super|untyped\.\w+"),
    ("integrations/_redis_calls.py", r"execute|encode"),
    ("integrations/_redis_commands.py", r"encode"),
    ("integrations/redis.py", r"calls\.run(_async)?"),  # as above, further in
    ("integrations/_redis_pubsub.py", r"next|anext|messages\.a?close"),  # the client's own iterator
    ("integrations/nats.py", r"self\._inner\.__anext__"),  # as above
    ("integrations/memory.py", r"self\._take"),  # as above
    ("integrations/asgi.py", r"(self\.)?app|self\._(receive|send)|_serve"),  # the application, and its server
    ("_hop/operation.py", r"function|inner\.\w+"),  # the decorated function
    ("_hop/handler.py", r"callback|finish"),  # a client's callback
    ("_journey/classify.py", r"attribute\.__get__"),  # a property of a stranger's exception
)
"""Files and called expressions by which the user's or the client's own code runs. Each must occur."""


class Site(NamedTuple):
    """One instruction that calls."""

    code: CodeType
    offset: int

    @property
    def path(self) -> str:
        return str(Path(self.code.co_filename).relative_to(HOME))

    def __str__(self) -> str:
        line, text = _source(self)
        return f"{self.path}:{line} {self.code.co_qualname}: {text}"


@functools.cache
def _tree(filename: str) -> ast.Module:
    return ast.parse(Path(filename).read_text())


@functools.cache
def _positions(code: CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions())


@functools.cache
def _instructions(code: CodeType) -> dict[int, str]:
    return {found.offset: found.opname for found in dis.get_instructions(code)}


def _offset(code: CodeType, last: int) -> int:
    """Return where the instruction begins that a frame is at; while it calls, a frame is past the call's caches."""
    known = _instructions(code)
    while last not in known:
        last -= 2
    return last


@functools.cache
def _leaves(site: Site) -> bool:
    """Tell whether a site is the exit of a ``with``: called with None three times, or with an exception."""
    known = [(offset, name) for offset, name in _instructions(site.code).items() if name != "PRECALL"]
    place = known.index((site.offset, _instructions(site.code)[site.offset]))
    if known[place][1] == "WITH_EXCEPT_START":
        return True
    arguments = {found.offset: found.argval for found in dis.get_instructions(site.code)}
    before = known[max(place - 3, 0) : place]
    return len(before) == 3 and all(name == "LOAD_CONST" and arguments[offset] is None for offset, name in before)


Span = tuple[int, int, int, int]


def _span_of(site: Site) -> Span:
    line, end_line, column, end_column = _positions(site.code)[site.offset // 2]
    assert line is not None
    return line, column or 0, end_line or line, end_column or 0


def _source(site: Site) -> tuple[int, str]:
    """Return a site's line and the text of what is called there."""
    line, column, end_line, end_column = _span_of(site)
    node = _calls_in(site.code.co_filename).get((line, column, end_line, end_column))
    if node is not None:
        return line, ast.unparse(node.func)
    text = Path(site.code.co_filename).read_text().splitlines()[line - 1]
    part = text.encode()[column : end_column if end_line == line else None].decode()
    return line, f"{_instructions(site.code)[site.offset]} {part}"


@functools.cache
def _calls_in(filename: str) -> dict[Span, ast.Call]:
    return {
        (node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0): node
        for node in ast.walk(_tree(filename))
        if isinstance(node, ast.Call)
    }


@functools.cache
def is_ours(code: CodeType) -> bool:
    """Tell whether code belongs to a room on the message path, and not to a client that lives in one."""
    try:
        path = Path(code.co_filename).relative_to(HOME)
    except ValueError:
        return False
    if path.parts[0] not in ROOMS:
        return False
    return code.co_qualname.partition(".")[0] not in CLIENTS.get(str(path), ())


@functools.cache
def is_passage(site: Site) -> tuple[str, str] | None:
    """Return the entry of ``PASSAGES`` that a site falls under."""
    text = _source(site)[1]
    for entry in PASSAGES:
        if Path(site.path).match(entry[0]) and re.fullmatch(entry[1], text):
            return entry
    return None


# Guards --------------------------------------------------------------------------------------------------------------


def _keeps(handler: ast.ExceptHandler) -> bool:
    """Tell whether a handler catches every Exception and ends it."""
    catches = isinstance(handler.type, ast.Name) and handler.type.id == "Exception"
    return catches and not any(isinstance(node, ast.Raise) for node in ast.walk(handler))


@functools.cache
def _guarded_spans(filename: str) -> list[tuple[Span, Span]]:
    """Return where the bodies of guarding ``try`` statements are, and their handlers'."""
    found: list[tuple[Span, Span]] = []
    for node in ast.walk(_tree(filename)):
        if isinstance(node, ast.Try):
            for handler in filter(_keeps, node.handlers):
                first, last, end = node.body[0], node.body[-1], handler.body[-1]
                body = first.lineno, first.col_offset, last.end_lineno or 0, last.end_col_offset or 0
                found.append((body, (handler.lineno, 0, end.end_lineno or 0, end.end_col_offset or 0)))
    return found


def _is_in(inner: Span, outer: Span) -> bool:
    return outer[:2] <= inner[:2] and inner[2:] <= outer[2:]


@functools.cache
def _unguarded(code: CodeType) -> set[Site]:
    """Return the calls of a function that are neither inside a guarding ``try`` of its own, nor in its handler."""
    spans = [pair for pair in _guarded_spans(code.co_filename) if pair[0][0] >= code.co_firstlineno]
    found = [Site(code, offset) for offset, name in _instructions(code).items() if _CALLS.fullmatch(name)]
    return {
        site
        for site in found
        if not any(_is_in(_span_of(site), body) or _is_in(_span_of(site), handler) for body, handler in spans)
    }


# Tracing -------------------------------------------------------------------------------------------------------------


class Trace:
    """What ran, in which order it was first reached, and what each call entered."""

    def __init__(self) -> None:
        self.sites: dict[Site, int] = {}
        """Sites, each with how often it was reached, in the order of their first time."""
        self.entered: dict[Site, set[CodeType]] = defaultdict(set)

    def guards(self) -> set[Site]:
        """Return the sites that only enter guards."""
        guards = {
            code for codes in self.entered.values() for code in codes if is_ours(code) and not code.co_flags & LATER
        }
        while True:  # a guard may call guards
            entries = {site for site, codes in self.entered.items() if codes <= guards or is_passage(site)}
            fewer = {code for code in guards if entries.issuperset(self.sites.keys() & _unguarded(code))}
            if fewer == guards:
                return {site for site in entries if self.entered[site] <= guards}
            guards = fewer

    def releases(self) -> set[Site]:
        """Return the sites where a lock is released."""
        return {site for site in self.sites if site not in self.entered and _leaves(site)}


@contextmanager
def recording() -> Iterator[Trace]:
    """Trace what runs in this thread."""
    trace = Trace()
    sites, entered = trace.sites, trace.entered

    def within(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and _CALLS.fullmatch(_instructions(frame.f_code)[frame.f_lasti]):
            site = Site(frame.f_code, frame.f_lasti)
            sites[site] = sites.get(site, 0) + 1
        return within

    def begin(frame: FrameType, event: str, arg: Any) -> Any:
        caller = frame.f_back
        if caller is not None and caller.f_lasti >= 0 and is_ours(caller.f_code):
            offset = _offset(caller.f_code, caller.f_lasti)
            if _CAN_CALL.match(_instructions(caller.f_code)[offset]):
                site = Site(caller.f_code, offset)
                entered[site].add(frame.f_code)
                sites.setdefault(site, 1)
        if not is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return within

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        yield trace
    finally:
        sys.settrace(before)


class Fault:
    """An exception that is raised once at one site, as if what is called there had raised it.

    What is called is not run; save the exit of a ``with``, which raises when it has done its work.
    """

    def __init__(self, site: Site, error: BaseException) -> None:
        self.site = site
        self.error = error
        self.raised = False
        self._afterwards = _leaves(site)
        self._reached = False

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _begin(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code is not self.site.code or self.raised:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._within

    def _within(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode" and not self.raised:
            if self._reached or (frame.f_lasti == self.site.offset and not self._afterwards):
                self.raised = True
                raise self.error  # the interpreter stops tracing here, and goes on as if the instruction had raised
            self._reached = frame.f_lasti == self.site.offset
        return self._within
