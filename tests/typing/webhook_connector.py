"""A webhook connector: consumes tickets, writes them into a CRM, retries what may be retried. Type-checked only."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import aio_pika
import httpx
from aio_pika.abc import AbstractIncomingMessage

import rtobs
from rtobs import ErrorCategory, Outcome


class SchemaDriftError(Exception):
    """The partner renamed a field."""


rtobs.configure(service="crm-connector", errors={SchemaDriftError: ErrorCategory.VALIDATION})


def judge(body: dict[str, Any]) -> Outcome | ErrorCategory | None:
    """Read an HTTP 200 that says no, as some partners answer."""
    return None if body["ok"] else ErrorCategory.REJECTED_DOWNSTREAM


@rtobs.deliver("connector", "crm", judge=judge)
def upsert(ticket: dict[str, Any]) -> dict[str, Any]:
    """Write one ticket."""
    answer = httpx.post("https://crm.example/tickets", json=ticket)
    answer.raise_for_status()
    result: dict[str, Any] = answer.json()
    return result


class Worker:
    """Handles what the queue brings."""

    @rtobs.consume("tickets.*", message="message")
    async def handle(self, attempt_limit: int, message: AbstractIncomingMessage) -> None:
        """Handle one ticket; the broker brings it back while it is worth it."""
        hop = rtobs.current()
        ticket = self.parse(message.body)
        hop.segment(tenant=ticket["tenant"], source="slack")
        if ticket.get("stale"):
            hop.outcome(Outcome.DROPPED, "stale")
            await message.ack()
            return
        try:
            answer = upsert(ticket)
        except httpx.HTTPError:
            await message.nack(requeue=attempt_limit > 0)
            return
        hop.note(ticket=str(answer["id"]))
        await message.ack()

    @staticmethod
    @rtobs.stage("normalize")
    def parse(body: bytes) -> dict[str, Any]:
        """Read the partner's JSON."""
        ticket: dict[str, Any] = json.loads(body)
        if "tenant" not in ticket:
            raise SchemaDriftError
        return ticket


def nightly(due: datetime) -> int:
    """Pull what the partner did not push."""
    with rtobs.job("crm-import", due=due, window=timedelta(minutes=15)):
        return len(httpx.get("https://crm.example/changes").json())


async def main() -> None:
    """Run."""
    connection = rtobs.wrap(
        await aio_pika.connect_robust("amqp://localhost"), dead_letter="tickets.dead", max_deliveries=5
    )
    queue = await (await connection.channel()).declare_queue("tickets")
    worker = Worker()
    message = await queue.get(fail=False)
    if message is not None:
        await worker.handle(3, message)
    count: int = nightly(datetime.now(UTC))
    rtobs.shutdown(float(count))
