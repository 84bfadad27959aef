"""What ``configure`` was told, checked argument by argument before anything changes.

Knows the arguments' shapes; must not know what becomes of them.
"""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from rtobs._journey import carrier
from rtobs._journey.outcome import STEPS, ErrorCategory, Step, proven_step
from rtobs.errors import ConfigError

if TYPE_CHECKING:
    from rtobs.slo.model import Declaration

LogSink = Callable[[Mapping[str, Any]], None]
Logs = Literal["otlp", "stdout", "logging"]

_MIN_KEY = 16
_LONGEST_NAME = 64
"""Characters of a metric label."""


@dataclass(frozen=True)
class Settings:
    """One configuration of the process."""

    service: str | None = None
    slos: Declaration | None = None
    slow: Mapping[str, float] = field(default_factory=dict[str, float])
    promises: Mapping[str, Step] = field(default_factory=dict[str, Step])
    tenants: tuple[str, ...] = ()
    high_value: Container[str] = ()
    sampling: Mapping[str, float] = field(default_factory=dict[str, float])
    propagate_to: frozenset[str] = frozenset()
    logs: Logs | LogSink | None = None
    wire_key: bytes | None = None


def wrong(argument: str, wanted: str, seen: object) -> ConfigError:
    """Return the error for one argument: what it must be, what was seen."""
    return ConfigError(f"rtobs.configure: {argument} must be {wanted}; got {_shown(seen)}")


def _shown(value: object) -> str:
    try:
        return f"{reprlib.repr(value)} ({type(value).__name__})"
    except Exception:  # noqa: BLE001  the value's own repr may raise; the error is about the value, not its repr
        return f"a {type(value).__name__}"


# One function for each shape -----------------------------------------------------------------------------------------


def service_name(value: object) -> str | None:
    """Check ``service``."""
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise wrong("service", "a name such as 'chat-worker'", value)


def declaration(value: object, service: str | None) -> Declaration | None:
    """Check ``slos`` and read them; DeclarationError lists everything that is wrong with a file."""
    if isinstance(value, tuple | list) and not value:
        return None
    from rtobs.slo.model import SLO, Declaration
    from rtobs.slo.reader import load

    if isinstance(value, str | os.PathLike):
        found = load(os.fspath(value))
    elif isinstance(value, Declaration):
        found = value
    else:
        wanted = "the path of a declaration, or rtobs.slo.SLO objects"
        if isinstance(value, bytes | Mapping | SLO) or not isinstance(value, Iterable):
            raise wrong("slos", wanted, value)  # pyright: ignore[reportUnknownArgumentType]  it is only shown
        slos: tuple[Any, ...] = tuple(value)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]  checked next
        for slo in slos:
            if not isinstance(slo, SLO):
                raise wrong("each of slos", "an rtobs.slo.SLO", slo)
        found = Declaration(service or os.environ.get("OTEL_SERVICE_NAME") or "unknown_service", slos)
    tenants(found.tenants, "tenants of slos")
    return found if found.slos else None


def numbers(argument: str, value: object, *, most: float, wanted: str) -> dict[str, float]:
    """Check a mapping of names to numbers from 0 to *most*; without an upper limit 0 is not one of them."""
    found: dict[str, float] = {}
    for name, number in _items(argument, value, "{'push': 5.0}" if most > 1 else "{'default': 0.1}"):
        key = f"{argument}[{_shown_key(name)}]"
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise wrong(key, wanted, number)
        if not 0 <= number <= most or (most > 1 and number == 0):
            raise wrong(key, wanted, number)
        found[name] = number
    return found


def steps(value: object) -> dict[str, Step]:
    """Check ``promises``."""
    found: dict[str, Step] = {}
    for channel, step in _items("promises", value, "{'in_app': 'displayed'}"):
        if step not in get_args(Step):
            raise wrong(f"promises[{channel!r}]", f"one of {', '.join(STEPS)}", step)
        proven = proven_step(channel)
        if STEPS.index(step) < STEPS.index(proven):
            later = f"{proven!r}, which a successful deliver proves, or a later step"
            raise wrong(f"promises[{channel!r}]", later, step)
        if not carrier.travels(channel, carrier.WORD_LIMIT):
            raise wrong("a channel in promises", "at most 23 bytes of UTF-8: it travels in a header", channel)
        found[channel] = step
    return found


def tenants(value: object, argument: str = "tenants") -> tuple[str, ...]:
    """Check ``tenants``: each becomes a metric label and travels in a header."""
    found = _words(argument, value)
    for tenant in found:
        if not tenant or len(tenant) > _LONGEST_NAME or not tenant.isprintable():
            raise wrong(f"each of {argument}", f"1 to {_LONGEST_NAME} printable characters", tenant)
        if not carrier.travels(tenant, carrier.TENANT_LIMIT):
            raise wrong(f"each of {argument}", "at most 71 bytes of UTF-8: it travels in a header", tenant)
    return found


def hosts(value: object) -> frozenset[str]:
    """Check ``propagate_to``."""
    found = _words("propagate_to", value)
    for host in found:
        if not host or not host.isprintable() or any(mark in host for mark in " /@"):
            raise wrong("each of propagate_to", "a host without scheme and path, such as 'api.example.com'", host)
    return frozenset(host.lower() for host in found)


def container(value: object) -> Container[str]:
    """Check ``high_value``: a str would contain each part of itself."""
    if isinstance(value, str | bytes) or not isinstance(value, Container):
        raise wrong("high_value", "a set or other container of tenants such as {'acme'}", value)
    return value  # pyright: ignore[reportUnknownVariableType]  what it contains is asked, not listed


def categories(value: object) -> dict[type[BaseException], ErrorCategory]:
    """Check ``errors``."""
    found: dict[type[BaseException], ErrorCategory] = {}
    for kind, category in _items("errors", value, "{Gone: ErrorCategory.RECIPIENT}", text=False):
        if not _is_exception_class(kind):
            raise wrong("each key of errors", "an exception class", kind)
        if category not in tuple(ErrorCategory):
            raise wrong(f"errors[{kind.__name__}]", f"an ErrorCategory: {', '.join(ErrorCategory)}", category)
        found[kind] = ErrorCategory(category)
    return found


def _is_exception_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


def log_target(value: object) -> Any:
    """Check ``logs``."""
    if value is None or callable(value) or (isinstance(value, str) and value in get_args(Logs)):
        return value
    raise wrong("logs", "'otlp', 'stdout', 'logging' or a function that takes one event", value)


def key(value: object) -> bytes | None:
    """Check ``wire_key``; the error does not show it."""
    if value is None or (isinstance(value, bytes) and len(value) >= _MIN_KEY):
        return value
    seen = f"{len(value)} bytes" if isinstance(value, bytes) else f"a {type(value).__name__}"
    raise ConfigError(f"rtobs.configure: wire_key must be a secret of at least {_MIN_KEY} bytes; got {seen}")


def flag(argument: str, value: object) -> bool:
    """Check ``sigterm`` or ``strict``."""
    if isinstance(value, bool):
        return value
    raise wrong(argument, "True or False", value)


# Shared ---------------------------------------------------------------------------------------------------------------


def _items(argument: str, value: object, example: str, *, text: bool = True) -> list[tuple[Any, Any]]:
    if value is None:
        return []
    if not isinstance(value, Mapping):
        raise wrong(argument, f"a mapping such as {example}", value)
    found: list[tuple[Any, Any]] = list(value.items())  # pyright: ignore[reportUnknownArgumentType,reportUnknownMemberType]  checked by the caller
    for name, _ in found:
        if text and not (isinstance(name, str) and name):
            raise wrong(f"each key of {argument}", f"a name, as in {example}", name)
    return found


def _shown_key(name: object) -> str:
    return reprlib.repr(name)


def _words(argument: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str | bytes):
        raise wrong(argument, f"a collection of str: write [{value!r}]", value)
    if not isinstance(value, Iterable):
        raise wrong(argument, "a collection of str", value)
    found: tuple[Any, ...] = tuple(value)  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType]  checked below
    for word in found:
        if not isinstance(word, str):
            raise wrong(f"each of {argument}", "a str", word)
    return found
