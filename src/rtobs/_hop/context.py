"""Context: OpenTelemetry's current context, read and set at the cost of a context variable.

The API's own ``get_current`` and ``attach`` are two Python calls round the same variable, a dozen times a message. Must
not know what is in a context.
"""

from __future__ import annotations

from collections.abc import Callable

from opentelemetry import context as api
from opentelemetry.context import Context
from opentelemetry.context.contextvars_context import ContextVarsRuntimeContext

__all__ = ["Context", "attach", "get_current", "put_value"]

get_current: Callable[[], Context] = api.get_current
attach: Callable[[Context], object] = api.attach

_runtime = getattr(api, "_RUNTIME_CONTEXT", None)
if type(_runtime) is ContextVarsRuntimeContext:  # else another implementation was chosen (OTEL_PYTHON_CONTEXT)
    get_current, attach = _runtime._current_context.get, _runtime._current_context.set  # noqa: SLF001

put_value: Callable[[Context, str, object], object] = vars(dict)["setdefault"]
"""Set a value that is not there in a context that nobody else has seen yet; to others it is read-only."""
