"""Constructors: how every client of a library is met once it is made, by whoever it is made.

A leaf names the classes in ``FACTORIES``; as soon as their library is imported, their constructors, and nothing else of
them, are replaced. Who is made inside another's constructor is that one's own business. Must not know what is done with
a client that is met.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any

import wrapt

from rtobs import _guard

Made = Callable[[Any], None]

_lock = threading.RLock()
_made: dict[str, list[Made]] = {}
"""Leaf -> who is told of each client made."""
_undo: dict[str, dict[str, Callable[[], None]]] = {}
"""Leaf -> class -> what gives the class its own constructor back."""
_awaited: set[tuple[str, str]] = set()
"""Leaf and package that wrapt tells us of when the package is imported; it cannot be told to forget."""
_inside = threading.local()


def meet(leaf: str, packages: Collection[str], made: Made) -> None:
    """Call *made* with each client of a leaf (a module's dotted name) made from now on, after its constructor.

    Args:
        leaf: may have ``FACTORIES``, dotted names of classes, and ``prepare``, called before each constructor.
        packages: what an application imports to have such a client; one that is not imported yet is waited for.
        made: the same one is told once.
    """
    with _lock:
        told = _made.setdefault(leaf, [])
        if made not in told:
            told.append(made)
    for package in packages:
        if package in sys.modules:
            _imported(leaf, package)
        elif (leaf, package) not in _awaited:
            _awaited.add((leaf, package))
            wrapt.register_post_import_hook(functools.partial(_imported, leaf, package), package)


def leave(leaf: str, made: Made) -> None:
    """No longer call *made*; the last one to leave gives the classes their constructors back."""
    with _lock:
        if made in _made.get(leaf, ()):
            _made[leaf].remove(made)
        if not _made.get(leaf):
            for undo in _undo.pop(leaf, {}).values():
                undo()


def _imported(leaf: str, package: str, _module: object = None) -> None:
    """Replace the constructors of a package that the application has just imported; it must never fail by that."""
    if not _made.get(leaf):
        return
    try:
        module: Any = import_module(leaf)
        for name in getattr(module, "FACTORIES", ()):
            if name.partition(".")[0] == package:
                _replace(leaf, name, getattr(module, "prepare", _nothing))
    except Exception as error:  # noqa: BLE001  a library that cannot be instrumented works on as it was
        _guard.fault(f"instrument.{leaf.rpartition('.')[2]}", error)


def _nothing() -> None:
    """Most leaves have nothing to do before a client is made."""


def _replace(leaf: str, name: str, prepare: Callable[[], None]) -> None:
    place, _, attribute = name.rpartition(".")
    module: Any = import_module(place)
    cls: Any = getattr(module, attribute)
    with _lock:
        undone = _undo.setdefault(leaf, {})
        if name in undone:
            return
        constructor = _constructor(leaf, cls.__init__, prepare)
        own = cls.__dict__.get("__init__")
        try:
            cls.__init__ = constructor
        except TypeError:  # a class of C: its name leads to a subclass from now on
            ours = type(cls.__name__, (cls,), {"__init__": constructor, "__module__": cls.__module__})
            setattr(module, attribute, ours)
            undone[name] = lambda: setattr(module, attribute, cls) if getattr(module, attribute) is ours else None
        else:
            undone[name] = lambda: _put_back(cls, constructor, own)


def _put_back(cls: Any, constructor: object, own: object) -> None:
    if cls.__dict__.get("__init__") is not constructor:  # somebody stands round ours, which tells nobody by now
        return
    if own is None:
        del cls.__init__
    else:
        cls.__init__ = own


def _constructor(leaf: str, original: Callable[..., None], prepare: Callable[[], None]) -> Callable[..., None]:
    @functools.wraps(original)
    def __init__(self: Any, /, *args: Any, **options: Any) -> None:  # noqa: N807  it is one
        told = tuple(_made.get(leaf, ()))
        if not told or getattr(_inside, "constructor", False):
            original(self, *args, **options)
            return
        _inside.constructor = True
        try:
            _guarded(leaf, prepare)
            original(self, *args, **options)
        finally:
            _inside.constructor = False
        for made in told:
            _guarded(leaf, functools.partial(made, self))

    return __init__


def _guarded(leaf: str, step: Callable[[], None]) -> None:
    try:
        step()
    except Exception as error:  # noqa: BLE001  the client works on as it was made
        _guard.fault(f"instrument.{leaf.rpartition('.')[2]}", error)
