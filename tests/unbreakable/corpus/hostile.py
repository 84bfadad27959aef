"""Objects that a host may hand to rtobs by mistake or by malice, each made anew: they break whoever looks at them.

``OBJECTS`` maps names to makers. ``TOUCHED`` counts calls of their own methods that no one should make. Extend it with
each bug that is found.
"""

from __future__ import annotations

import datetime as dt
import decimal
import itertools
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class HostileError(Exception):
    """What hostile objects raise; a host's own exception type."""


def _raise(*_: object, **__: object) -> Any:
    raise HostileError("hostile")


class Everything:
    """Raises from every special method that something might call."""

    __str__ = __repr__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __getitem__ = __contains__ = _raise  # type: ignore[assignment]
    __int__ = __float__ = __index__ = __format__ = __bytes__ = __call__ = __enter__ = __exit__ = __lt__ = _raise  # type: ignore[assignment]
    __reduce__ = __copy__ = __deepcopy__ = __fspath__ = __await__ = __next__ = keys = items = _raise  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        raise HostileError(name)


class Liar:
    """Says that it is a str."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        return str


class ClassRaises:
    """Does not say what it is."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # type: ignore[override]
        raise HostileError("class")


class Meta(type):
    """A class that raises when it is looked at."""

    __hash__ = type.__hash__

    def __repr__(cls) -> str:
        raise HostileError("class")

    def __instancecheck__(cls, instance: object) -> bool:
        raise HostileError("class")

    def __eq__(cls, other: object) -> bool:
        raise HostileError("class")


class OfMeta(metaclass=Meta):
    """Its class raises."""


class Text(str):
    """Text that raises when it is looked at."""

    __slots__ = ()
    __len__ = __str__ = __repr__ = __eq__ = __hash__ = __getitem__ = __iter__ = __contains__ = __format__ = _raise  # type: ignore[assignment]
    isascii = isprintable = encode = lower = startswith = split = replace = strip = _raise  # type: ignore[assignment]


class Bytes(bytes):
    """Bytes that raise."""

    __slots__ = ()
    __len__ = __repr__ = __eq__ = __hash__ = __getitem__ = __iter__ = decode = _raise  # type: ignore[assignment]


class Number(int):
    """An int that raises."""

    __str__ = __repr__ = __eq__ = __hash__ = __lt__ = __le__ = __gt__ = __ge__ = __index__ = __bool__ = _raise  # type: ignore[assignment]


class Dict(dict):  # type: ignore[type-arg]
    """A dictionary that raises."""

    __getitem__ = __iter__ = __len__ = __contains__ = get = items = keys = values = pop = copy = __bool__ = _raise  # type: ignore[assignment]


class Headers(Mapping[str, str]):
    """A mapping that goes on for ever."""

    def __getitem__(self, name: str) -> str:
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (f"x-{number}" for number in itertools.count())

    def __len__(self) -> int:
        return 2**62


class Growing:
    """Has more of itself behind each attribute."""

    def __getattr__(self, name: str) -> Growing:
        return Growing()


class Broken(Exception):
    """An exception that cannot be shown."""

    __str__ = __repr__ = _raise  # type: ignore[assignment]


class BrokenClass(Exception):
    """An exception with attributes that raise."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("__traceback__", "__cause__", "__context__", "__suppress_context__", "with_traceback"):
            return super().__getattribute__(name)
        raise HostileError(name)


def _cyclic() -> Any:
    found: list[Any] = []
    found.append({"self": found})
    return found


def _deep() -> Any:
    found: Any = "end"
    for _ in range(5_000):
        found = [found]
    return found


def _generator() -> Iterator[Any]:
    raise HostileError("generator")
    yield


SURROGATE = "\ud800"
TEXTS = {
    "lone surrogate": SURROGATE,
    "undecodable": b"\xff".decode("utf-8", "surrogateescape"),
    "null": "a\x00b",
    "line breaks": "a\r\nb\x0b\x0c\x85\u2028\u2029c",
    "escape": "\x1b[2J\x1b]8;;http://x\x07y",
    "bidi": "\u202eabc\u2066",
    "noncharacter": "\ufffe\uffff",
    "half an emoji": "\ud83d",
    "format": "%s%n{}{0.__class__}",
    "jndi": "${jndi:ldap://x}",
    "formula": "=cmd|' /C calc'!A0",
    "script": "<script>alert(1)</script>",
    "empty": "",
    "spaces": " " * 100,
    "combining": "e\u0301" * 50,
    "wide": "\U0001f600" * 600,
    "one megabyte": "x" * 1_000_000,
    "path": "../../etc/passwd",
    "sql": "'; DROP TABLE x; --",
    "json": '{"a": 1}',
}

OBJECTS: dict[str, Callable[[], Any]] = {
    "everything raises": Everything,
    "lies about its class": Liar,
    "class raises": ClassRaises,
    "metaclass": OfMeta,
    "a class": lambda: OfMeta,
    "text subclass": lambda: Text("abc"),
    "bytes subclass": lambda: Bytes(b"abc"),
    "int subclass": lambda: Number(5),
    "dict subclass": lambda: Dict(a=1),
    "endless mapping": Headers,
    "growing": Growing,
    "exception": Broken,
    "cyclic": _cyclic,
    "deep": _deep,
    "generator": _generator,
    "endless": itertools.count,
    "endless pairs": lambda: (("x", "y") for _ in itertools.count()),
    "none": lambda: None,
    "object": object,
    "bytes": lambda: b"\xff\xfe",
    "bytearray": lambda: bytearray(b"x"),
    "memoryview": lambda: memoryview(bytes(16)).cast("Q"),
    "ten megabytes": lambda: "x" * 10_000_000,
    "ten megabytes of bytes": lambda: b"x" * 10_000_000,
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "large int": lambda: 10**400,
    "negative": lambda: -1,
    "true": lambda: True,
    "decimal": lambda: decimal.Decimal("sNaN"),
    "naive time": lambda: dt.datetime(2026, 1, 1),  # noqa: DTZ001
    "uuid": lambda: uuid.UUID(int=1),
    "list": lambda: [1, "a", None],
    "set": lambda: {1},
    "function": lambda: print,
    "lambda": lambda: _raise,
    "type": lambda: type,
    "module": lambda: itertools,
    "slice": lambda: slice(1),
    "complex": lambda: 1j,
    **{name: (lambda text=text: text) for name, text in TEXTS.items()},
}
