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
from types import TracebackType
from typing import Any, Self, TypeVar, cast
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
    group: str = ""
    """The consumers that a client belongs to, for messages that do not say; set by the leaf."""
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
_lock = threading.RLock()
_destinations: set[str] = set()
_kept: dict[tuple[type, type, Options], type] = {}  # importable classes: few, and they live as long as we do
_quick: dict[
    tuple[type, type, int], tuple[Options, type]
] = {}  # the same by identity of the options, not by their value
_MOST_QUICK = 1024
_loose: WeakKeyDictionary[type, dict[tuple[type, Options], ref[type]]] = WeakKeyDictionary()  # classes made at run time


def overlay(cls: type[T]) -> type[T]:
    """Mark a subclass of a client's class as what an instance may become: behaviour, no storage.

    Over a class of C whose instances have no ``__dict__`` it has no slots either: it is for subclasses, which have one.
    """
    slots, adds_dict = cls.__dict__.get("__slots__"), cls.__base__ is not None and not cls.__base__.__dictoffset__
    if (slots != () and not (slots is None and adds_dict)) or len(cls.__bases__) != 1:
        raise TypeError(f"{cls.__qualname__}: an overlay has one base and `__slots__ = ()`")
    cls.__init_subclass__ = classmethod(lambda _twin, **_options: None)  # type: ignore[assignment]  # a twin enters no registry of the user's
    return cls


def options_of(instance: object) -> Options:
    """Return the options of the ``wrap`` that an instance descends from."""
    try:
        found: Options = getattr(type(instance), "__rtobs_options__", _DEFAULT)
    except Exception as error:  # noqa: BLE001  the host's call goes on as if nothing was asked for
        _guard.fault("wrap.options", error)
        return _DEFAULT
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
            if (cls, over, options) in _kept:
                if len(_quick) >= _MOST_QUICK:
                    _quick.clear()
                _quick[cls, over, id(options)] = options, found
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
    try:
        cls = type(target)
        quick = _quick.get((cls, over, id(options)))
        if quick is not None and quick[0] is options and not cls.__dictoffset__:
            _set_class(target, quick[1])
            return target
        if issubclass(cls, over) or not issubclass(cls, over.__bases__[0]):
            return target
        own = getattr(target, "__dict__", None)
        if own:
            _tell_shadowed(own, cls, over)
        _set_class(target, _twin(cls, over, options))
    except Exception as error:  # noqa: BLE001  an object that cannot be instrumented works on as it was
        _guard.fault("wrap", error)
    return target


def _tell_shadowed(own: dict[str, Any], cls: type, over: type) -> None:
    """Tell where a method of ours does not come through because the instance has one of its own."""
    shadowed = [
        name
        for name, value in over.__dict__.items()
        if name in own and not name.startswith("__") and not isinstance(value, property)  # which goes before it
    ]
    if shadowed:
        _guard.tell(
            "wrap.shadowed",
            "rtobs.wrap: %s of this %s is replaced on the instance by another tool; wrap it before that tool does",
            shadowed[0],
            cls.__qualname__,
        )


def guarded(step: Callable[..., T], otherwise: T, *args: Any) -> T:
    """Return ``step(*args)``, a leaf's own work beside the client's; where it fails, counted, return *otherwise*."""
    try:
        return step(*args)
    except Exception as error:  # noqa: BLE001  the host's call goes on with what it had
        _guard.fault(f"leaf.{step.__name__}", error)
        return otherwise


class StandIn:
    """Stands for an object of a C type, which can become nothing: what a leaf's subclass does not do, the object does.

    Methods of the object that call one another are not seen. ``unwrap`` returns the object.
    """

    __slots__ = ("__wrapped__",)
    __wrapped__: Any

    def __init__(self, native: object) -> None:
        object.__setattr__(self, "__wrapped__", native)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__wrapped__, name)

    def __repr__(self) -> str:
        return repr(self.__wrapped__)

    def __len__(self) -> int:
        return len(self.__wrapped__)

    def __bool__(self) -> bool:
        return bool(self.__wrapped__)

    def __enter__(self) -> Self:
        self.__wrapped__.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any:
        return self.__wrapped__.__exit__(kind, error, trace)

    @property
    def __class__(self) -> Any:
        return self.__wrapped__.__class__

    @__class__.setter
    def __class__(self, new: type) -> None:
        _set_class(self, new)


def stand_in(native: object, over: type[StandIn], options: Options) -> Any:
    """Return what stands for *native* and behaves as *over*; a stand-in stands for itself."""
    if issubclass(type(native), StandIn):
        return native
    key = (type(native), over, options)
    with _lock:
        found: Any = _kept.get(key)
        if found is None:
            found = _kept[key] = type(over.__name__, (over,), {"__slots__": (), "__rtobs_options__": options})
    return found(native)


def restore(target: T) -> T:
    """Put the real class back; what *target* created stays wrapped until restored itself."""
    if issubclass(type(target), StandIn):
        return cast("Any", target).__wrapped__  # type: ignore[no-any-return]
    while "__rtobs_plain__" in type(target).__dict__:
        _set_class(target, type(target).__dict__["__rtobs_plain__"])
    return target
