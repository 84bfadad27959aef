"""WebSocket chat, fanned out over a broker: every frame is a journey of its own. Type-checked only."""

from __future__ import annotations

import json
from typing import Any

import aio_pika
from aio_pika.abc import AbstractExchange, AbstractQueue
from fastapi import FastAPI, WebSocket

import rtobs

app = FastAPI()
rooms: dict[str, set[WebSocket]] = {}


class State:
    """What the process sets up when it starts."""

    exchange: AbstractExchange


state = State()


@app.websocket("/rooms/{room}")
async def chat(socket: WebSocket, room: str) -> None:
    """Take frames in."""
    await socket.accept()
    rooms.setdefault(room, set()).add(socket)
    async for frame in socket.iter_json():
        with rtobs.accept("/rooms/{room}", headers=frame.get("rtobs")), rtobs.publish("room.*") as out:
            body = json.dumps({"text": frame["text"], "rtobs": out.headers}).encode()
            await state.exchange.publish(aio_pika.Message(body), routing_key=f"room.{room}")


@app.post("/seen")
async def seen(report: dict[str, str]) -> None:
    """Take a receipt from a client's screen."""
    with rtobs.receipt("displayed", report["token"]):
        pass


async def fan_out(queue: AbstractQueue) -> None:
    """Bring each message to every socket of its room."""
    async with queue.iterator() as messages:
        async for message in messages:
            with rtobs.consume("room.*", message) as hop:
                frame: dict[str, Any] = json.loads(message.body)
                sockets = rooms.get(frame["room"], set())
                hop.intend("in_app", count=len(sockets))
                for socket in sockets:
                    await show(socket, frame["text"])
                await message.ack()


@rtobs.deliver("in_app", "websocket")
async def show(socket: WebSocket, text: str) -> None:
    """Write one frame."""
    hop = rtobs.current()
    await socket.send_json({"text": text, "rtobs": hop.headers, "receipt": hop.receipt_token()})
