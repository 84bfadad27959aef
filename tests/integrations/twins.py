"""Clients as libraries have them, and overlays of them, for the tests of the twin."""

from __future__ import annotations

import dataclasses
from typing import Any

from rtobs.integrations._twin import Options, overlay

OPTIONS = Options()
SEEN: list[str] = []
"""What overlays saw, in order; cleared before each test."""


class Client:
    """A client as libraries have them: private names, a dictionary, calls to its own methods."""

    registry: list[type] = []  # noqa: RUF012 - shared by design, as users' registries are

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        Client.registry.append(cls)

    def __init__(self, name: str = "client") -> None:
        self.name = name
        self.__secret = "secret"
        self.calls: list[str] = []

    def send(self, text: str) -> str:
        self.calls.append(text)
        return f"{self.__secret} {text}"

    def send_twice(self, text: str) -> list[str]:
        return [self.send(text), self.send(text)]

    def sibling(self) -> Client:
        return type(self)(self.name)

    def __call__(self, text: str) -> str:
        return self.send(text)


@overlay
class Seeing(Client):
    """Notes each send."""

    __slots__ = ()

    def send(self, text: str) -> str:
        SEEN.append(text)
        return super().send(text)


@dataclasses.dataclass
class Record:
    """A dataclass, whose equality asks for the class."""

    text: str


@overlay
class SeeingRecord(Record):
    __slots__ = ()


class Slotted:
    """A client without a dictionary and without weak references."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def shout(self) -> str:
        return self.text.upper()


@overlay
class SeeingSlotted(Slotted):
    __slots__ = ()

    def shout(self) -> str:
        SEEN.append(self.text)
        return super().shout()


class Special(Client):
    """A user's subclass that overrides what the overlay instruments."""

    def send(self, text: str) -> str:
        self.calls.append("special")
        return super().send(text)
