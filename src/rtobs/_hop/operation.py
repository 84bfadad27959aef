"""Operation: what ``accept``, ``publish`` … return: a decorator and a plain ``with``, one record per call.

Holds the two shapes a user writes once for all kinds; ``kinds`` says what each kind opens. Must not know brokers,
metrics or export. Nothing here changes what the user's function takes, returns or raises.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from rtobs import _guard
from rtobs._hop import engine
from rtobs._hop.context import Context, attach, get_current
from rtobs._hop.hop import NO_HOP, Hop
from rtobs._hop.runtime import runtime
from rtobs._journey.record import HopRecord
from rtobs.errors import UnsupportedError

P = ParamSpec("P")
R = TypeVar("R")


Opened = tuple[Any, bool]
"""One call's hop, and whether this call is the one that ends it."""


Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of one call of a decorated function, by position and by name; None stands for a ``with``."""

_NOTHING: Opened = (None, False)
_lock = threading.Lock()
_new: Any = object.__new__


class Operation:
    """A hop or stage to be: decorate a function with it, or enter it with ``with`` (in async code too)."""

    __slots__ = ("_entered",)

    generators = False
    """Whether async generator functions can be decorated."""

    def __init__(self) -> None:
        self._entered: list[Opened] | None = None
        """What a ``with`` has entered that is no hop of its own."""

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

    def _arguments(self, record: Any, call: Call) -> dict[str, Any]:
        """Return the keyword arguments to call the function with."""
        del record
        return call[1]

    def _close(self, record: Any, error: BaseException | None) -> None:
        """Restore what was current before, and end the hop or stage."""
        engine.close(record, error)

    def _close_again(self, record: Any, error: BaseException | None) -> None:
        """Do no more than that, where closing has failed half-way. Raises nothing."""
        engine.close_again(record, error)

    # Guarded, once for all kinds -------------------------------------------------------------------------------------

    def _begin(self, call: Call | None) -> Opened:
        try:
            if runtime.off and not engine.is_on():
                return _NOTHING
            return self._open(call)
        except Exception as error:  # noqa: BLE001  the user's code runs without a hop
            _guard.fault(f"{type(self).__name__}.open", error)
            return _NOTHING

    def _finish(self, opened: Opened, error: BaseException | None) -> None:
        record, owner = opened
        if not owner:
            return
        try:
            self._close(record, error)
        except Exception as fault:  # noqa: BLE001  the user's result or exception goes on unchanged
            self._close_again(record, error)
            _guard.fault(f"{type(self).__name__}.end", fault)

    def _judge(self, opened: Opened, value: object) -> None:
        if opened[0] is None:
            return
        try:
            self._returned(opened[0], value)
        except Exception as fault:  # noqa: BLE001  a judge of the user's may raise; the result goes on unchanged
            _guard.fault(f"{type(self).__name__}.judge", fault)

    def _keywords(self, opened: Opened, call: Call) -> dict[str, Any]:
        if opened[0] is None:
            return call[1]
        try:
            return self._arguments(opened[0], call)
        except Exception as fault:  # noqa: BLE001  the function is called as the caller asked
            _guard.fault(f"{type(self).__name__}.arguments", fault)
            return call[1]

    # with ------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Hop:
        """Open the hop; the handle works inside the block."""
        opened = _NOTHING
        try:
            if runtime.off and not engine.is_on():
                return NO_HOP
            opened = self._open(None)
            record, owner = opened
            if type(record) is not HopRecord:
                self._put(opened)
                return NO_HOP
            hop: Hop = _new(Hop)  # as Hop(record) does it, without the call
            hop._record = record  # noqa: SLF001  as above
            if owner:
                record.opener = self
            else:
                self._put(opened)
        except Exception as fault:  # noqa: BLE001  the block runs without a hop
            if opened[1]:
                self._close_again(opened[0], None)
            _guard.fault(f"{type(self).__name__}.open", fault)
            return NO_HOP
        return hop

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """End the hop; the exception goes on unchanged."""
        record: Any = None
        try:
            current: Any = get_current().get(engine.HOP_KEY)
            if current is None and self._entered is None and not runtime.open_hops:
                return
            if current is None or current.opener is not self:
                record = self._take(current)
                if record is not None:
                    self._close(record, error)
                return
            record = current
            if record.rare is not None or record.parent is not None:
                self._close(record, error)
                return
            attach(record.previous)  # all that closing it comes to where there is nothing around it or special about it
            record.previous = None
            engine.end(record, error)
        except Exception as fault:  # noqa: BLE001  the block's exception goes on unchanged
            self._exit_again(record, error)
            _guard.fault(f"{type(self).__name__}.end", fault)

    def _put(self, opened: Opened) -> None:
        """Remember what a ``with`` has entered that is no hop of its own."""
        with _lock:
            if self._entered is None:
                self._entered = []
            self._entered.append(opened)

    def _take(self, current: HopRecord | None) -> Any:
        """Return what is to be closed where the current hop is not one that this ``with`` has opened."""
        entered = self._entered
        if entered:
            index = next((i for i, opened in enumerate(entered) if opened[0] is current), -1)
            record, owner = entered.pop(index)
            return record if owner else None
        for record in list(runtime.open_hops):  # it is current no more: somebody has changed the context
            if record.opener is self:
                return record
        return None

    def _exit_again(self, record: Any, error: BaseException | None) -> None:
        """End what this opened, where that has failed half-way. Raises nothing."""
        try:
            if record is None:
                record = self._take(None)
            if record is not None:
                self._close_again(record, error)
        except Exception as fault:  # noqa: BLE001  there is nothing more that could be done
            _guard.fault(f"{type(self).__name__}.end", fault)

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
            asked = (args, kwargs)
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
            asked = (args, kwargs)
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
            asked = (args, kwargs)
            opened = self._begin(asked)
            around = self._inside()
            try:
                inner = function(*args, **self._keywords(opened, asked))
                step = inner.__anext__()
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

    # What fails below is counted, and the generator goes on in the context that it finds.

    def _inside(self) -> Context | None:
        try:
            return get_current()
        except Exception as fault:  # noqa: BLE001  as said
            _guard.fault(f"{type(self).__name__}.generator", fault)
            return None

    def _suspend(self, opened: Opened) -> None:
        try:
            previous = getattr(opened[0], "previous", None) if opened[1] else None
            if isinstance(previous, Context):
                attach(previous)
        except Exception as fault:  # noqa: BLE001  as said
            _guard.fault(f"{type(self).__name__}.generator", fault)

    def _resume(self, around: Context | None) -> None:
        try:
            if around is not None:
                attach(around)
        except Exception as fault:  # noqa: BLE001  as said
            _guard.fault(f"{type(self).__name__}.generator", fault)
