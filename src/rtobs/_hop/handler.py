"""Handler: a user's callback with a consume hop round it, for leaves whose client calls back.

Must not know any client, nor what a callback's message is made of.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from opentelemetry.context import Context, attach, get_current
from opentelemetry.trace import get_current_span

from rtobs import _guard
from rtobs._hop import leaf
from rtobs._journey.message import Message

Callback = Callable[[Any], Any]


def around(callback: Callback, describe: Callable[[Any], Message], *, awaits: bool = True) -> Callback:
    """Return *callback* with a consume hop round each call, of the same kind: function, coroutine function or object.

    A callback that ``@rtobs.consume`` opens a hop for, also below partials, bound or as ``__call__``, gets none.
    *describe* is called first either way, with the callback's one argument. Doing it twice is doing it once.
    *awaits*: the client awaits what a plain function returns, too; otherwise its hop ends where it returns.
    """
    if hasattr(callback, "__rtobs__"):
        return callback
    inner: Any = callback
    while isinstance(inner, functools.partial):
        inner = inner.func
    decorated = hasattr(inner, "__rtobs_consume__") or hasattr(type(inner).__call__, "__rtobs_consume__")

    def scope(native: Any) -> ExitStack:
        try:
            message = describe(native)
        except Exception as error:  # noqa: BLE001  the callback runs without a hop
            _guard.fault("handler.describe", error)
            return ExitStack()
        return _scope(None if decorated else message)

    async def finish(result: Any, stack: ExitStack) -> Any:
        with stack:
            return await result

    if inspect.iscoroutinefunction(callback):

        @functools.wraps(callback)
        async def wrapper(native: Any) -> Any:
            with scope(native):
                return await callback(native)

        return _marked(wrapper)

    @functools.wraps(callback)
    def plain(native: Any) -> Any:
        with ExitStack() as stack:
            stack.enter_context(scope(native))
            result = callback(native)
            return finish(result, stack.pop_all()) if awaits and inspect.isawaitable(result) else result

    return _marked(plain if inspect.isfunction(callback) else functools.partial(plain))  # clients tell functions apart


def _scope(message: Message | None) -> ExitStack:
    """Open a hop about *message*, and none about None, in a context without what is left over there."""
    stack = ExitStack()
    span = get_current_span()
    if span.get_span_context().is_valid and not span.is_recording():
        stack.callback(attach, get_current())
        attach(Context())  # whatever once opened the channel is no parent of what comes through it
    if message is not None:
        stack.enter_context(leaf.Process(message))
    return stack


def _marked(wrapper: Any) -> Callback:
    wrapper.__rtobs__ = True
    return wrapper  # type: ignore[no-any-return]
