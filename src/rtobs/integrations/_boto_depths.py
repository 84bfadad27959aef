"""SQS: how many messages of a queue wait. How old the oldest is only CloudWatch knows: it is estimated.

Messages that were received and not deleted wait too; delayed ones are not due. AWS calls all numbers approximate.
"""

from __future__ import annotations

import inspect
from typing import Any

from rtobs._hop.watching import Answer, Ask, Depth
from rtobs.errors import UnsupportedError
from rtobs.integrations import _sqs

_WAITING = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")


def depths(client: Any) -> Ask:
    """Return how to ask for one queue, by its URL or its name.

    Raises:
        UnsupportedError: a client that knows no queues.
    """
    queues = getattr(getattr(client, "meta", None), "client", client)  # of a resource, the client below
    service: str = queues.meta.service_model.service_name
    if service != "sqs":
        raise UnsupportedError(f"rtobs.integrations.watch: {service!r} has no queues; give a client of SQS")
    if inspect.iscoroutinefunction(queues._make_api_call):  # noqa: SLF001  an asyncio client says it nowhere else

        async def ask_async(destination: str) -> Answer:
            url = destination
            if "/" not in destination:
                url = (await queues.get_queue_url(QueueName=destination))["QueueUrl"]
            return _depth(url, await queues.get_queue_attributes(QueueUrl=url, AttributeNames=list(_WAITING)))

        return ask_async

    def ask(destination: str) -> Answer:
        url = destination
        if "/" not in destination:
            url = queues.get_queue_url(QueueName=destination)["QueueUrl"]
        return _depth(url, queues.get_queue_attributes(QueueUrl=url, AttributeNames=list(_WAITING)))

    return ask


def strains(_client: Any) -> None:
    """Return nothing: how AWS holds a client back shows in its errors only."""


def _depth(url: str, answer: Any) -> Answer:
    return [Depth(_sqs.place(url), sum(int(answer["Attributes"][name]) for name in _WAITING))]
