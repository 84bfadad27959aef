"""boto3's and botocore's clients and resources of SQS and SNS.

    client = rtobs.wrap(boto3.client("sqs"))
    queue = rtobs.wrap(boto3.resource("sqs")).Queue(url)

Received messages are plain dictionaries, so their handling is the user's to scope: ``rtobs.consume(name, message)`` by
``with``, or round a function. See ``_boto_calls`` and ``_sqs``.
"""

from __future__ import annotations

from typing import Any

from botocore.client import BaseClient

from rtobs.integrations import _boto_calls as calls
from rtobs.integrations._boto_calls import describe
from rtobs.integrations._boto_depths import depths, strains
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._sqs import NEIGHBOUR, SYSTEM
from rtobs.integrations._twin import Options, become, guarded, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "depths", "describe", "strains", "wrap"]

SUPPORTS = "botocore>=1.43,<2"
FACTORIES = ("botocore.client.BaseClient",)
COVERAGE = Coverage(
    client="boto3, botocore (SQS, SNS)",
    produce="sends and batches",
    consume="receives; also through topics",
    carrier="one message attribute",
    attempt="`ApproximateReceiveCount`",
    lag="`SentTimestamp`",
    depth="queue attributes",
    missing="events of AWS Lambda; AWS itself (tested on moto)",
)

_INSTRUMENTED = frozenset({"receive_message", "send_message", "send_message_batch"})


@overlay
class _Queues(BaseClient):
    __slots__ = ()

    def _make_api_call(self, operation_name: str, api_params: Any) -> Any:
        untyped: Any = super()
        return calls.run(self, operation_name, untyped._make_api_call, api_params)  # noqa: SLF001  there is no other

    # Round these methods OpenTelemetry's instrumentation makes spans that say the same as ours. They are not spelled
    # out, for then it would take this class for a client and instrument it.
    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        return guarded(_below, found, found) if name in _INSTRUMENTED else found


def _below(method: Any) -> Any:
    """Return what a method of the client does without OpenTelemetry's instrumentation of it."""
    while getattr(getattr(method, "_self_wrapper", None), "__module__", "") == NEIGHBOUR:
        method = method.__wrapped__
    return method


@overlay
class _Topics(BaseClient):
    __slots__ = ()

    def _make_api_call(self, operation_name: str, api_params: Any) -> Any:
        untyped: Any = super()
        return calls.run(self, operation_name, untyped._make_api_call, api_params)  # noqa: SLF001  as above


def wrap(client: Any, options: Options) -> Any:
    """Instrument one client, or the one below a resource of boto3; the resource comes back then.

    Raises:
        UnsupportedError: a client of another service.
    """
    found = calls.client_of(client, options)
    become(found, _Queues if calls.service_of(found) == "sqs" else _Topics, options)
    return client
