"""Handler: a user's callback with a consume hop round it, for leaves whose client calls back.

Must not know any client, nor what a callback's message is made of.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any

from opentelemetry.trace import get_current_span

from rtobs import _guard
from rtobs._hop import leaf
from rtobs._hop.context import Context, attach, get_current
from rtobs._journey.message import Message

Callback = Callable[..., Any]


def around(callback: Callback, describe: Callable[[Any], Message | None], *, awaits: bool = True) -> Callback:
    """Return *callback* with a consume hop round each call, of the same kind: function, coroutine function or object.

    A callback that opens its own (``is_decorated``) gets none.
    *describe* is called first either way, with the callback's arguments. Doing it twice is doing it once.
    *awaits*: the client awaits what a plain function returns, too; otherwise its hop ends where it returns.
    """
    if hasattr(callback, "__rtobs__"):
        return callback
    decorated = is_decorated(callback)

    async def finish(result: Any, scope: _Scope) -> Any:
        with scope:
            return await result

    if inspect.iscoroutinefunction(callback):

        @functools.wraps(callback)
        async def wrapper(*native: Any) -> Any:
            with _Scope(describe, native, decorated):
                return await callback(*native)

        return _marked(wrapper)

    @functools.wraps(callback)
    def plain(*native: Any) -> Any:
        scope = _Scope(describe, native, decorated)
        scope.__enter__()  # by hand: it may have to stay open when this returns
        try:
            result = callback(*native)
        except BaseException as error:
            scope.__exit__(None, error, None)
            raise
        if awaits and _is_awaitable(result):
            return finish(result, scope)
        scope.__exit__(None, None, None)
        return result

    return _marked(plain if inspect.isfunction(callback) else functools.partial(plain))  # clients tell functions apart


def is_decorated(callback: object) -> bool:
    """Tell whether ``@rtobs.consume`` opens a hop for *callback*, also below partials, bound or as ``__call__``."""
    inner: Any = callback
    while isinstance(inner, functools.partial):
        inner = inner.func
    return hasattr(inner, "__rtobs_consume__") or hasattr(type(inner).__call__, "__rtobs_consume__")


class _Scope:
    """One call: its hop, and a context without what is left over there. Entering it twice is entering it once."""

    __slots__ = ("_around", "_decorated", "_describe", "_native", "_process")

    def __init__(self, describe: Callable[..., Message | None], native: tuple[Any, ...], decorated: bool) -> None:  # noqa: FBT001  see `around`
        self._describe = describe
        self._native: tuple[Any, ...] | None = native
        self._decorated = decorated
        self._around: Context | None = None
        self._process: leaf.Process | None = None

    def __enter__(self) -> None:
        if self._native is None:
            return
        native, self._native = self._native, None
        try:
            message = self._describe(*native)
            span = get_current_span()
            if span.get_span_context().is_valid and not span.is_recording():
                self._around = get_current()
                attach(Context())  # whatever once opened the channel is no parent of what comes through it
            if not self._decorated:
                self._process = leaf.Process(message).__enter__()
        except Exception as error:  # noqa: BLE001  the callback runs without a hop
            _guard.fault("handler.describe", error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._process is not None:
                self._process.__exit__(kind, error, trace)
            if self._around is not None:
                attach(self._around)
        except Exception as fault:  # noqa: BLE001  what the callback returned or raised goes on unchanged
            _guard.fault("handler.end", fault)


def _is_awaitable(result: object) -> bool:
    try:
        return inspect.isawaitable(result)
    except Exception as error:  # noqa: BLE001  the client looks itself
        _guard.fault("handler.result", error)
        return False


def _marked(wrapper: Any) -> Callback:
    wrapper.__rtobs__ = True
    return wrapper  # type: ignore[no-any-return]
