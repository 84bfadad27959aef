"""Operation: what ``accept``, ``publish`` … return: a decorator and a plain ``with``, one record per call.

Holds the two shapes a user writes once for all kinds; ``kinds`` says what each kind opens. Must not know brokers,
metrics or export. Nothing here changes what the user's function takes, returns or raises.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar

from opentelemetry.context import Context, attach, get_current

from rtobs import _guard
from rtobs._hop import engine
from rtobs._hop.hop import Hop
from rtobs._journey.record import HopRecord
from rtobs.errors import UnsupportedError

P = ParamSpec("P")
R = TypeVar("R")


class Opened(NamedTuple):
    """One call's hop, and whether this call is the one that ends it."""

    record: Any
    owner: bool


class Call(NamedTuple):
    """The arguments of one call of a decorated function; None stands for a ``with``."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Operation:
    """A hop or stage to be: decorate a function with it, or enter it with ``with`` (in async code too)."""

    __slots__ = ("_entered",)

    generators = False
    """Whether async generator functions can be decorated."""

    def __init__(self) -> None:
        self._entered: list[Opened | None] = []

    # What kinds decide -----------------------------------------------------------------------------------------------

    def _open(self, call: Call | None) -> Opened:
        """Open a hop or join one that is open."""
        raise NotImplementedError

    def _inspect(self, function: Callable[..., Any]) -> None:
        """Look at a function once, when it is decorated."""

    def _mark(self, wrapper: Any) -> None:
        """Leave a sign on the decorated function."""

    def _returned(self, record: Any, value: object) -> None:
        """Judge what the decorated function returned."""

    def _arguments(self, opened: Opened, call: Call) -> dict[str, Any]:
        """Return the keyword arguments to call the function with."""
        del opened
        return call.kwargs

    def _leave(self, record: Any) -> None:
        engine.leave(record)

    def _end(self, record: Any, error: BaseException | None) -> None:
        engine.end(record, error)

    # Guarded, once for all kinds -------------------------------------------------------------------------------------

    def _begin(self, call: Call | None) -> Opened | None:
        try:
            return self._open(call)
        except Exception as error:  # noqa: BLE001  the user's code runs without a hop
            _guard.fault(f"{type(self).__name__}.open", error)
            return None

    def _finish(self, opened: Opened | None, error: BaseException | None) -> None:
        if opened is None or not opened.owner:
            return
        try:
            self._leave(opened.record)
            self._end(opened.record, error)
        except Exception as fault:  # noqa: BLE001  the user's result or exception goes on unchanged
            _guard.fault(f"{type(self).__name__}.end", fault)

    def _judge(self, opened: Opened | None, value: object) -> None:
        if opened is None:
            return
        try:
            self._returned(opened.record, value)
        except Exception as fault:  # noqa: BLE001  a judge of the user's may raise; the result goes on unchanged
            _guard.fault(f"{type(self).__name__}.judge", fault)

    def _keywords(self, opened: Opened | None, call: Call) -> dict[str, Any]:
        if opened is None:
            return call.kwargs
        try:
            return self._arguments(opened, call)
        except Exception as fault:  # noqa: BLE001  the function is called as the caller asked
            _guard.fault(f"{type(self).__name__}.arguments", fault)
            return call.kwargs

    # with ------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Hop:
        """Open the hop; the handle works inside the block."""
        opened = self._begin(None)
        self._entered.append(opened)
        return Hop(opened.record if opened is not None and isinstance(opened.record, HopRecord) else None)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """End the hop; the exception goes on unchanged."""
        entered = self._entered
        if not entered:
            return
        index = -1
        if len(entered) > 1:  # one object entered by several tasks: take the one of this context
            current = engine.current()
            index = next((i for i, opened in enumerate(entered) if opened is not None and opened.record is current), -1)
        self._finish(entered.pop(index), error)

    # decorator -------------------------------------------------------------------------------------------------------

    def __call__(self, function: Callable[P, R], /) -> Callable[P, R]:
        """Decorate a sync or async function; each call is one hop.

        Raises:
            UnsupportedError: for a sync generator, an async generator where the kind has no such form, or no function.
        """
        kind = type(self).__name__.lower()
        target: Any = function
        if inspect.isgeneratorfunction(target):
            raise UnsupportedError(
                f"@rtobs.{kind} cannot decorate the sync generator {target.__qualname__}: it would stay open between "
                f"items; use `with rtobs.{kind}(...)` round the work on each item"
            )
        if inspect.isasyncgenfunction(target):
            if not self.generators:
                raise UnsupportedError(
                    f"@rtobs.{kind} cannot decorate the async generator {target.__qualname__}; only deliver and stage "
                    f"can; use `with rtobs.{kind}(...)` round the work on each item"
                )
            wrapper: Any = self._generator(target)
        elif not callable(target) or inspect.isclass(target):
            raise UnsupportedError(f"@rtobs.{kind} decorates functions; got {target!r}")
        elif inspect.iscoroutinefunction(target):
            wrapper = self._async(target)
        else:
            wrapper = self._sync(target)
        self._inspect(target)
        self._mark(wrapper)
        return wrapper  # type: ignore[no-any-return]

    def _sync(self, function: Any) -> Any:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            asked = Call(args, kwargs)
            opened = self._begin(asked)
            try:
                value = function(*args, **self._keywords(opened, asked))
            except BaseException as error:
                self._finish(opened, error)
                raise
            self._judge(opened, value)
            self._finish(opened, None)
            return value

        return call

    def _async(self, function: Any) -> Any:
        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            asked = Call(args, kwargs)
            opened = self._begin(asked)
            try:
                value = await function(*args, **self._keywords(opened, asked))
            except BaseException as error:
                self._finish(opened, error)
                raise
            self._judge(opened, value)
            self._finish(opened, None)
            return value

        return call

    def _generator(self, function: Any) -> Any:
        """Attach on resume and detach before each item, so that nothing of ours is current in the caller's code."""

        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            asked = Call(args, kwargs)
            opened = self._begin(asked)
            around = get_current()
            inner = function(*args, **self._keywords(opened, asked))
            step = inner.__anext__()
            try:
                while True:
                    try:
                        item = await step
                    except StopAsyncIteration:
                        break
                    self._suspend(opened)
                    try:
                        sent = yield item
                    except GeneratorExit:
                        self._resume(around)
                        await inner.aclose()
                        raise
                    except BaseException as error:  # noqa: BLE001  thrown in by the caller: it belongs to the generator
                        self._resume(around)
                        step = inner.athrow(error)
                    else:
                        self._resume(around)
                        step = inner.asend(sent)
            except BaseException as error:
                self._finish(opened, error)
                raise
            self._finish(opened, None)

        return call

    def _suspend(self, opened: Opened | None) -> None:
        previous = getattr(opened.record, "previous", None) if opened is not None and opened.owner else None
        if isinstance(previous, Context):
            attach(previous)

    def _resume(self, around: Context) -> None:
        attach(around)
