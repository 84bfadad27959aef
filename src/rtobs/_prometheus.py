"""Asks a Prometheus over its HTTP API, and hands back plain answers.

Knows the API; must not know what is asked, or why.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

from rtobs.errors import ConfigError

T = TypeVar("T")

_MOST_BYTES: Final = 64 * 1024 * 1024
_LONGEST: Final = 4000
"""Characters of a question that fit into an address everywhere."""
_REFUSED: Final = (400, 422)


class PrometheusError(Exception):
    """Prometheus cannot be asked: nobody answers, or somebody else does."""


class QueryError(Exception):
    """Prometheus answers, but not this question."""


class Value(NamedTuple):
    """One series at one moment."""

    labels: dict[str, str]
    value: float


class Values(NamedTuple):
    """One series over time: pairs of seconds since 1970 and a value."""

    labels: dict[str, str]
    points: tuple[tuple[float, float], ...]


class Example(NamedTuple):
    """One measurement that was kept with its labels: the trace it was in."""

    series: dict[str, str]
    labels: dict[str, str]
    value: float
    at: float


class Prometheus:
    """One server."""

    def __init__(self, address: str, timeout: float = 10.0) -> None:
        """Ask the server at *address*, waiting *timeout* seconds for each answer.

        Raises:
            ConfigError: *address* is none.
        """
        try:
            parts = urllib.parse.urlsplit(address)
            usable = (
                parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
            )
        except ValueError:
            usable = False
        if not usable:
            raise ConfigError(f"--prometheus {address!r} is no address; give one such as http://localhost:9090.")
        self.address = address.rstrip("/")
        self._timeout = timeout

    def instant(self, query: str, at: float | None = None) -> list[Value]:
        """Return what *query* is at a moment, in seconds since 1970; None = now."""
        found = self._ask("query", query=query, **({} if at is None else {"time": f"{at:.3f}"}))
        return self._read(lambda: [Value(one["metric"], float(one["value"][1])) for one in found["result"]])

    def over_time(self, query: str, begin: float, end: float, step: float) -> list[Values]:
        """Return what *query* was from *begin* to *end*, every *step* seconds."""
        times = {"start": f"{begin:.3f}", "end": f"{end:.3f}", "step": f"{step:.3f}"}
        found = self._ask("query_range", query=query, **times)
        return self._read(
            lambda: [
                Values(one["metric"], tuple((float(at), float(value)) for at, value in one["values"]))
                for one in found["result"]
            ]
        )

    def examples(self, query: str, begin: float, end: float) -> list[Example]:
        """Return the exemplars of the series that *query* selects."""
        found = self._ask("query_exemplars", query=query, start=f"{begin:.3f}", end=f"{end:.3f}")
        return self._read(
            lambda: [
                Example(series["seriesLabels"], one["labels"], float(one["value"]), float(one["timestamp"]))
                for series in found or ()
                for one in series["exemplars"]
            ]
        )

    def _ask(self, path: str, **parameters: str) -> Any:
        address = f"{self.address}/api/v1/{path}"
        said = urllib.parse.urlencode(parameters)
        body = said.encode() if len(said) > _LONGEST else None  # is posted
        try:
            request = urllib.request.Request(address if body else f"{address}?{said}", body)  # noqa: S310  see __init__
            with urllib.request.urlopen(request, timeout=self._timeout) as answer:  # noqa: S310  as above
                found = json.loads(answer.read(_MOST_BYTES))
            if found["status"] == "success":
                return found["data"]
        except urllib.error.HTTPError as error:
            with error:
                if error.code in _REFUSED:
                    raise QueryError(f"it answered {error.code} to {parameters['query'][:200]}") from None
            raise self._fault(f"it answered {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            raise self._fault(str(getattr(error, "reason", "")) or str(error) or type(error).__name__) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            pass
        raise self._strange()

    def _read(self, reading: Callable[[], T]) -> T:
        try:
            return reading()
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise self._strange() from None

    def _strange(self) -> PrometheusError:
        return self._fault("what it answered is not from Prometheus")

    def _fault(self, why: str) -> PrometheusError:
        return PrometheusError(
            f"Prometheus at {self.address} cannot be asked ({why}); see that --prometheus is its address."
        )
