"""Twin: how an instance of a client's class gets our methods without any class being patched.

The instance's class becomes a cached *twin*: an overlay (an ordinary typed subclass of the client's class that spells
out the methods it instruments) over the object's real class. The options of ``wrap`` ride on the twin, so objects keep
their layout. Must not know any client; measured against four other ways in ``docs/decisions/0002-twin-classes.md``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, ref

from rtobs import _guard
from rtobs._journey.message import Trust

T = TypeVar("T")

_MOST_DESTINATIONS = 256
"""Different ``destination`` options that get a twin of their own; each costs about 3 kB for the life of the process."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller of ``wrap`` asked for; one frozen value per wrapped client."""

    trust: Trust = "trusted"
    carrier: bool = True
    envelope: bool = False
    correlation: bool = False
    dead_letter: str | None = None
    max_deliveries: int = 0
    destination: str = ""
    """Where a message came from, for clients whose message does not say; set by the leaf, not by the user."""
    manual: bool = True
    """Whether messages are settled by hand; set by the leaf."""
    dead_letter_known: bool | None = None
    """Whether the queue was declared with a dead-letter target; set by the leaf."""

    def at(self, destination: str, **facts: Any) -> Options:
        """Return the same options for one destination; beyond 256 destinations the name is left out."""
        with _lock:
            if destination not in _destinations and len(_destinations) >= _MOST_DESTINATIONS:
                destination = ""
            else:
                _destinations.add(destination)
        return replace(self, destination=destination, **facts)


_set_class: Callable[[Any, type], None] = object.__dict__["__class__"].__set__  # goes past a client's own __setattr__
_lock = threading.Lock()
_destinations: set[str] = set()
_kept: dict[tuple[type, type, Options], type] = {}  # importable classes: few, and they live as long as we do
_loose: WeakKeyDictionary[type, dict[tuple[type, Options], ref[type]]] = WeakKeyDictionary()  # classes made at run time


def overlay(cls: type[T]) -> type[T]:
    """Mark a subclass of a client's class as what an instance may become: behaviour, no storage."""
    if cls.__dict__.get("__slots__") != () or len(cls.__bases__) != 1:
        raise TypeError(f"{cls.__qualname__}: an overlay has one base and `__slots__ = ()`")
    cls.__init_subclass__ = classmethod(lambda _twin, **_options: None)  # type: ignore[assignment]  # a twin enters no registry of the user's
    return cls


def options_of(instance: object) -> Options:
    """Return the options of the ``wrap`` that an instance descends from."""
    found: Options = getattr(type(instance), "__rtobs_options__", _DEFAULT)
    return found


_DEFAULT = Options()


def _is_importable(cls: type) -> bool:
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is cls


def _find(cls: type, over: type, options: Options) -> type | None:
    found = _kept.get((cls, over, options))
    if found is None and cls in _loose:
        weak = _loose[cls].get((over, options))
        found = weak() if weak is not None else None
    return found


def _twin(cls: type, over: type, options: Options) -> type:
    with _lock:
        found = _find(cls, over, options)
        if found is not None:
            return found

        def reduce(self: Any, protocol: Any) -> Any:  # copied and pickled as the plain class
            reduced: str | tuple[Any, ...] = cast("Any", super(twin, self)).__reduce_ex__(protocol)
            if isinstance(reduced, str):
                return reduced
            return (reduced[0], tuple(cls if a is twin else a for a in reduced[1]), *reduced[2:])

        twin: Any = type(cls)(  # the metaclass must see it: ABCMeta keeps a cache per class
            cls.__name__,
            (over, cls),
            {
                "__slots__": (),
                "__module__": cls.__module__,
                "__qualname__": cls.__qualname__,
                "__doc__": cls.__doc__,
                "__rtobs_plain__": cls,
                "__rtobs_options__": options,
                "__reduce_ex__": reduce,
                "__class__": property(lambda _self: cls, _set_class),
            },
        )
        if _is_importable(cls):
            _kept[cls, over, options] = twin
        else:
            _loose.setdefault(cls, {})[over, options] = ref(twin)
        return twin  # type: ignore[no-any-return]


def become(target: T, over: type, options: Options) -> T:
    """Let *target* behave as *over* from now on; the same object comes back. Twice is once.

    A mock or another tool's proxy stays as it is; so does an object of a C type, counted.
    """
    cls = type(target)
    if issubclass(cls, over):
        return target
    if not issubclass(cls, over.__bases__[0]):
        return target
    try:
        shadowed = [
            name
            for name, value in over.__dict__.items()
            if not name.startswith("__")
            and name in getattr(target, "__dict__", ())
            and not isinstance(value, property)  # which goes before the instance's own
        ]
        if shadowed:
            _guard.tell(
                "wrap.shadowed",
                "rtobs.wrap: %s of this %s is replaced on the instance by another tool; wrap it before that tool does",
                shadowed[0],
                cls.__qualname__,
            )
        _set_class(target, _twin(cls, over, options))
    except Exception as error:  # noqa: BLE001  an object that cannot be instrumented works on as it was
        _guard.fault("wrap", error)
    return target


def guarded(step: Callable[..., T], otherwise: T, *args: Any) -> T:
    """Return ``step(*args)``, a leaf's own work beside the client's; where it fails, counted, return *otherwise*."""
    try:
        return step(*args)
    except Exception as error:  # noqa: BLE001  the host's call goes on with what it had
        _guard.fault(f"leaf.{step.__name__}", error)
        return otherwise


def restore(target: T) -> T:
    """Put the real class back; what *target* created stays wrapped until restored itself."""
    while "__rtobs_plain__" in type(target).__dict__:
        _set_class(target, type(target).__dict__["__rtobs_plain__"])
    return target
