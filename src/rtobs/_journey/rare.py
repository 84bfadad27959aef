"""Rare: a field that few objects have, for classes of which one is made per message.

Such fields wait in one dictionary, the slot ``rare``, that the first of them makes; reading one takes a call. So an
object costs what it holds, and ``rare is None`` says that there is nothing unusual about it. Must not know what for.
"""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")


class _Holder(Protocol):
    rare: dict[str, Any] | None


class Rare(Generic[T]):
    """``field = Rare(default)`` in the body of a class with a slot ``rare``."""

    __slots__ = ("_default", "_name")

    def __init__(self, default: T) -> None:
        self._default = default

    def __set_name__(self, _owner: type, name: str) -> None:
        self._name = name

    def __get__(self, holder: _Holder, _owner: type) -> T:
        rare = holder.rare
        return self._default if rare is None else rare.get(self._name, self._default)

    def __set__(self, holder: _Holder, value: T) -> None:
        if holder.rare is not None:
            holder.rare[self._name] = value
        elif value is not self._default:
            holder.rare = {self._name: value}
