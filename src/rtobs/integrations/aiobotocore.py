"""aiobotocore's (and aioboto3's) clients of SQS and SNS.

    async with get_session().create_client("sqs") as client:
        queues = rtobs.wrap(client)

As ``botocore``, awaited.
"""

# pyright: reportMissingTypeStubs=false, reportUnknownVariableType=false
# (the client has no annotations)

from __future__ import annotations

from typing import Any

from aiobotocore.client import AioBaseClient  # type: ignore[import-untyped]  # it has no annotations

from rtobs.integrations import _boto_calls as calls
from rtobs.integrations._boto_calls import describe
from rtobs.integrations._boto_depths import depths, strains
from rtobs.integrations._coverage import Coverage
from rtobs.integrations._sqs import SYSTEM
from rtobs.integrations._twin import Options, become, overlay

__all__ = ["COVERAGE", "FACTORIES", "SUPPORTS", "SYSTEM", "depths", "describe", "strains", "wrap"]

SUPPORTS = "aiobotocore>=3.10,<4"
FACTORIES = ("aiobotocore.client.AioBaseClient",)
COVERAGE = Coverage(
    client="aiobotocore, aioboto3 (SQS, SNS)",
    produce="sends and batches",
    consume="receives; also through topics",
    carrier="one message attribute",
    attempt="`ApproximateReceiveCount`",
    lag="`SentTimestamp`",
    depth="queue attributes",
    missing="as botocore",
)


@overlay
class _Client(AioBaseClient):  # type: ignore[misc]  # as above
    __slots__ = ()

    async def _make_api_call(self, operation_name: str, api_params: Any) -> Any:
        untyped: Any = super()
        return await calls.run_async(self, operation_name, untyped._make_api_call, api_params)  # noqa: SLF001  there is no other


def wrap(client: Any, options: Options) -> Any:
    """Instrument one client, or the one below a resource of aioboto3; the resource comes back then.

    Raises:
        UnsupportedError: a client of another service.
    """
    become(calls.client_of(client, options), _Client, options)
    return client
