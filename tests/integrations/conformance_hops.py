"""Conformance, hops: user code runs in its own message's hop, and one message is one hop of each kind."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import rtobs
from rtobs import _conventions as names
from tests.integrations.adapter import BODY, NOWHERE, Place, Suite, assert_one_of_each, here, place_of
from tests.support.timing import eventually


class Contexts(Suite):
    """User code runs in its own message's hop."""

    async def test_a_callback_runs_in_its_messages_hop(self, adapter, queue, telemetry):
        """A callback sees its message's correlation id, and its process span, child of the send span, as current."""
        client = await adapter.client()
        seen: list[Place] = []

        async def handle(message: Any) -> None:
            seen.append(here())
            await adapter.settle(message, "ack")

        stop = await adapter.callback(client, queue, handle)
        correlation_id = await self._send(adapter, client, queue)
        await eventually(lambda: telemetry.spans("consume"))
        await stop()
        sent, consumed = telemetry.span("publish"), telemetry.span("consume")
        assert seen == [place_of(consumed)]
        assert seen[0].correlation_id == correlation_id
        assert consumed.parent.span_id == sent.context.span_id
        assert consumed.context.trace_id == sent.context.trace_id
        assert here() == NOWHERE

    async def test_an_iterated_message_is_handled_in_its_own_hop(self, adapter, queue, telemetry):
        """In a loop each `with rtobs.consume` block is its message's hop, and between blocks nothing is current."""
        client = await adapter.client()
        sent = [await self._send(adapter, client, queue) for _ in range(3)]
        seen: list[Place] = []
        async for message in await adapter.iterate(client, queue):
            assert here() == NOWHERE
            with rtobs.consume("tickets", message) as hop:
                assert hop.correlation_id == here().correlation_id
                seen.append(here())
                await adapter.settle(message, "ack")
            assert here() == NOWHERE
            if len(seen) == 3:
                break
        assert here() == NOWHERE
        assert [place.correlation_id for place in seen] == sent
        assert [place_of(span) for span in telemetry.spans("consume")] == seen
        assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {"tickets": 3}

    async def test_a_fetched_message_is_handled_in_its_own_hop(self, adapter, queue, telemetry):
        """A fetch that brings a message makes one receive span linked to it; the hop continues the message's trace."""
        client = await adapter.client()
        assert not await adapter.fetch(client, queue)
        correlation_id = await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        assert here() == NOWHERE
        with rtobs.consume("tickets", message):
            seen = here()
            await adapter.settle(message, "ack")
        sent, received = telemetry.span("publish"), telemetry.span("receive")
        assert seen == place_of(telemetry.span("consume"))
        assert seen.correlation_id == correlation_id
        assert telemetry.span("consume").parent.span_id == sent.context.span_id
        assert [link.context.span_id for link in received.links] == [sent.context.span_id]
        assert telemetry.count(names.CLIENT_DURATION, operation="receive") == 1

    async def test_a_break_leaves_nothing_on_the_task(self, adapter, queue, telemetry):
        """After a `break` out of the loop, inside a hop or outside, the task is in no hop and in no span."""
        client = await adapter.client()
        for _ in range(2):
            await self._send(adapter, client, queue)
        async for message in await adapter.iterate(client, queue):
            await adapter.settle(message, "ack")
            break
        assert here() == NOWHERE
        async for message in await adapter.iterate(client, queue):
            with rtobs.consume("tickets", message):
                await adapter.settle(message, "ack")
                break
        assert here() == NOWHERE
        with rtobs.accept("/later"):
            pass
        assert telemetry.span("accept", "accept /later").parent is None

    async def test_an_exception_in_a_block_goes_on_unchanged(self, adapter, queue, telemetry):
        """What a block raises leaves it as the same object with its cause, and the hop ends as failed and retried."""
        client = await adapter.client()
        await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        cause, error = KeyError("cause"), ValueError("broken")
        with pytest.raises(ValueError, match="broken") as caught, rtobs.consume("tickets", message):
            raise error from cause
        assert caught.value is error
        assert error.__cause__ is cause
        assert here() == NOWHERE
        assert telemetry.span("consume").attributes["error.type"] == "ValueError"
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"retried": 1}
        await adapter.settle(message, "ack")

    async def test_an_exception_in_a_callback_is_handled_as_unwrapped(self, adapter, unique, telemetry):
        """The client does with a callback that raises what it does without rtobs, and the hop shows the error."""
        deliveries: dict[bool, list[bytes]] = {}
        for wrapped in (False, True):
            queue = unique("raise")
            await adapter.declare(queue)
            client = await adapter.client(wrapped=wrapped)
            seen = deliveries[wrapped] = []

            async def handle(message: Any, seen: list[bytes] = seen) -> None:
                seen.append(adapter.body(message))
                if len(seen) == 1:
                    raise ValueError("broken")
                await adapter.settle(message, "ack")

            stop = await adapter.callback(client, queue, handle)
            await adapter.send(client, queue, b"first")
            if not adapter.raising_brings_back:
                await adapter.send(client, queue, b"second")
            await eventually(lambda seen=seen: len(seen) == 2)
            await stop()
        assert deliveries[True] == deliveries[False]
        await eventually(lambda: len(telemetry.spans("consume")) == 2)
        assert [span.attributes.get("error.type") for span in telemetry.spans("consume")] == ["ValueError", None]
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"retried": 1, "ok": 1}

    async def test_a_cancelled_block_ends_its_hop(self, adapter, queue, telemetry):
        """A cancelled task's hop ends as cancelled, the CancelledError goes on, and nothing stays current."""
        client = await adapter.client()
        await self._send(adapter, client, queue)
        message = await self._fetched(adapter, client, queue)
        inside, after = asyncio.Event(), list[Place]()

        async def work() -> None:
            try:
                with rtobs.consume("tickets", message):
                    inside.set()
                    await asyncio.Event().wait()
            finally:
                after.append(here())

        task = asyncio.create_task(work())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert after == [NOWHERE]
        assert telemetry.span("consume").attributes["rtobs.reason"] == "cancelled"
        assert telemetry.count(names.MESSAGE_SETTLED) == 1
        await adapter.settle(message, "ack")

    async def test_a_cancelled_callback_ends_its_hop(self, adapter, queue, telemetry):
        """A callback that is cancelled ends its hop, once, and the next message is handled in its own."""
        client = await adapter.client()
        seen: list[Place] = []

        async def handle(message: Any) -> None:
            seen.append(here())
            await adapter.settle(message, "ack")
            if len(seen) == 1:
                asyncio.current_task().cancel()
                await asyncio.Event().wait()

        stop = await adapter.callback(client, queue, handle)
        sent = [await self._send(adapter, client, queue)]
        await eventually(lambda: telemetry.spans("consume"))
        sent.append(await self._send(adapter, client, queue))
        await eventually(lambda: len(telemetry.spans("consume")) == 2)
        await stop()
        assert [place.correlation_id for place in seen] == sent
        assert [place_of(span) for span in telemetry.spans("consume")] == seen
        assert telemetry.spans("consume")[0].attributes["rtobs.reason"] == "cancelled"

    async def test_a_plain_function_as_callback_sees_its_hop(self, adapter, queue, telemetry):
        """A callback that is no coroutine function runs in its message's hop too."""
        if not adapter.sync_callbacks:
            return  # the client knows no such callbacks
        client = await adapter.client()
        seen: list[Place] = []
        stop = await adapter.callback(client, queue, lambda _: seen.append(here()))
        correlation_id = await self._send(adapter, client, queue)
        await eventually(lambda: telemetry.spans("consume"))
        await stop()
        assert seen == [place_of(telemetry.span("consume"))]
        assert seen[0].correlation_id == correlation_id

    @pytest.mark.parametrize("way", ["to_thread", "create_task", "copy_context", "bare_thread"])
    async def test_work_that_a_handler_starts_is_in_its_hop(self, adapter, queue, telemetry, way):
        """Tasks, `to_thread` and a thread with a copied context see the handler's hop; a bare thread sees none."""
        client = await adapter.client()
        seen: list[Place] = []

        async def look() -> None:
            seen.append(here())

        def in_thread(function: Callable[[], object]) -> threading.Thread:
            thread = threading.Thread(target=function)
            thread.start()
            return thread

        async def handle(message: Any) -> None:
            if way == "to_thread":
                await asyncio.to_thread(lambda: seen.append(here()))
            elif way == "create_task":
                await asyncio.create_task(look())
            elif way == "copy_context":
                context = contextvars.copy_context()
                in_thread(lambda: context.run(lambda: seen.append(here()))).join()
            else:
                in_thread(lambda: seen.append(here())).join()
            await adapter.settle(message, "ack")

        stop = await adapter.callback(client, queue, handle)
        await self._send(adapter, client, queue)
        await eventually(lambda: telemetry.spans("consume"))
        await stop()
        assert seen == [NOWHERE if way == "bare_thread" else place_of(telemetry.span("consume"))]

    async def test_a_thousand_concurrent_messages_each_see_their_own_id(self, adapter, queue, telemetry):
        """With many handlers open at once each sees the id that its payload holds, before and after it waited."""
        client = await adapter.client()
        inside, everybody = 0, asyncio.Event()
        right: Counter[bool] = Counter()

        async def handle(message: Any) -> None:
            nonlocal inside
            expected = adapter.body(message).decode()
            before = here()
            inside += 1
            if inside == self.at_once:
                everybody.set()
            await everybody.wait()
            await asyncio.sleep(0)
            right[before.correlation_id == expected and here() == before] += 1
            await adapter.settle(message, "ack")

        stop = await adapter.callback(client, queue, handle, prefetch=self.at_once)
        for _ in range(self.at_once):
            with rtobs.accept("/messages") as hop:
                await adapter.send(client, queue, hop.correlation_id.encode())
        await eventually(lambda: sum(right.values()) == self.at_once, timeout=20)
        await eventually(lambda: telemetry.count(names.CONSUMED_MESSAGES) == self.at_once)
        await stop()
        assert right == {True: self.at_once}
        assert len({place_of(span).correlation_id for span in telemetry.spans("consume")}) == self.at_once

    # One hop per kind and message ------------------------------------------------------------------------------------

    @pytest.mark.parametrize("consumer", ["plain", "decorator", "with", "decorator and with", "two decorators"])
    @pytest.mark.parametrize("publisher", ["plain", "decorator", "with"])
    async def test_user_code_and_client_are_one_hop(self, adapter, queue, telemetry, publisher, consumer):
        """Whoever opens the hop, decorated code, a block or the client, one message is sent once and consumed once."""
        client = await adapter.client()

        async def plain_send() -> None:
            await adapter.send(client, queue, BODY)

        async def send_in_block() -> None:
            with rtobs.publish("orders"):
                await plain_send()

        async def settle(message: Any) -> None:
            await adapter.settle(message, "ack")

        decorated = rtobs.consume("tickets")(settle)

        async def settle_in_block(message: Any) -> None:
            with rtobs.consume("tickets", message):
                await settle(message)

        send = {"plain": plain_send, "decorator": rtobs.publish("orders")(plain_send), "with": send_in_block}[publisher]
        handle = {
            "plain": settle,
            "decorator": decorated,
            "with": settle_in_block,
            "decorator and with": rtobs.consume("tickets")(settle_in_block),
            "two decorators": rtobs.consume("tickets")(decorated),
        }[consumer]
        stop = await adapter.callback(client, queue, handle)
        await send()
        await eventually(lambda: telemetry.spans("consume"))
        await stop()
        assert_one_of_each(telemetry)
        sent_to = adapter.target(queue) if publisher == "plain" else "orders"
        taken_from = adapter.destination(queue) if consumer == "plain" else "tickets"
        assert telemetry.by(names.SENT_MESSAGES, "messaging_destination") == {sent_to: 1}
        assert telemetry.by(names.CONSUMED_MESSAGES, "messaging_destination") == {taken_from: 1}
        assert telemetry.by(names.SENT_MESSAGES, "system") == {adapter.system: 1}
        assert telemetry.by(names.CONSUMED_MESSAGES, "system") == {adapter.system: 1}

    async def test_another_message_inside_a_handler_has_its_own_hop(self, adapter, unique, telemetry):
        """A handler that takes and handles a second message meanwhile makes two hops, each in its own journey."""
        first, second = unique("first"), unique("second")
        for name in (first, second):
            await adapter.declare(name)
        client = await adapter.client()
        inner = await self._send(adapter, client, second)
        seen: dict[str, Place] = {}

        async def handle(message: Any) -> None:
            other = await self._fetched(adapter, client, second)
            with rtobs.consume("second", other):
                seen["inner"] = here()
                await adapter.settle(other, "ack")
            seen["outer"] = here()
            await adapter.settle(message, "ack")

        stop = await adapter.callback(client, first, handle)
        outer = await self._send(adapter, client, first)
        await eventually(lambda: len(telemetry.spans("consume")) == 2)
        await stop()
        assert seen["inner"].correlation_id == inner
        assert seen["outer"].correlation_id == outer
        assert telemetry.by(names.MESSAGE_SETTLED, "outcome") == {"ok": 2}
