"""Handler: a user's callback with a consume hop round it, for leaves whose client calls back.

Must not know any client, nor what a callback's message is made of.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

from opentelemetry.context import Context, attach
from opentelemetry.trace import get_current_span

from rtobs._hop import leaf
from rtobs._journey.message import Message

Callback = Callable[[Any], Any]


def around(callback: Callback, describe: Callable[[Any], Message]) -> Callback:
    """Return *callback* with a consume hop round each call, of the same kind: function, coroutine function or object.

    A callback that ``@rtobs.consume`` opens a hop for, also below partials, bound or as ``__call__``, gets none.
    *describe* is called first either way, with the callback's one argument. Doing it twice is doing it once.
    """
    if hasattr(callback, "__rtobs__"):
        return callback
    inner: Any = callback
    while isinstance(inner, functools.partial):
        inner = inner.func
    decorated = hasattr(inner, "__rtobs_consume__") or hasattr(type(inner).__call__, "__rtobs_consume__")

    def scope(native: Any) -> AbstractContextManager[object]:
        message = describe(native)
        span = get_current_span()
        if span.get_span_context().is_valid and not span.is_recording():
            attach(Context())  # left over from whatever once opened the channel; this task is the callback's own
        return nullcontext() if decorated else leaf.Process(message)

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
            return finish(result, stack.pop_all()) if inspect.isawaitable(result) else result

    return _marked(plain if inspect.isfunction(callback) else functools.partial(plain))  # clients tell functions apart


def _marked(wrapper: Any) -> Callback:
    wrapper.__rtobs__ = True
    return wrapper  # type: ignore[no-any-return]
