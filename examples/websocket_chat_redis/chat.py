"""The chat server: takes in what its sockets send. Run it with `python chat.py`, and as many more as you like."""

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import redis.asyncio
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ValidationError
from rooms import CHANNELS, Member, Rooms

import rtobs

rtobs.configure(
    service="chat",
    logs="stdout",
    errors={WebSocketDisconnect: rtobs.ErrorCategory.TRANSPORT},
    wire_key=os.environ.get("WIRE_KEY", "only for this example").encode(),
    sigterm=True,
)

REDIS_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
TENANTS = {"lobby": "acme", "office": "globex"}
"""Whose a room is; a real server asks a database."""


class Message(BaseModel):
    """What somebody says."""

    text: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Listen to Redis as long as the server runs."""
    app.state.rooms = rooms = Rooms()
    app.state.broker = broker = rtobs.wrap(redis.asyncio.Redis.from_url(REDIS_URL), envelope=True)
    pubsub = broker.pubsub()
    await pubsub.psubscribe(**{CHANNELS + "*": rooms.fan_out})
    listening = asyncio.create_task(pubsub.run(exception_handler=carry_on))
    yield
    listening.cancel()
    await asyncio.wait([listening])
    await pubsub.aclose()
    await broker.aclose()


async def carry_on(e: BaseException, pubsub: object) -> None:
    """Keep listening: rtobs has explained a message that could not be handled, and Redis may come back."""
    if isinstance(e, redis.ConnectionError):
        await asyncio.sleep(1.0)


# FastAPI's own span lasts as long as a connection and would be the parent of all that comes through it.
app = FastAPI(lifespan=lifespan, telemetry={"tracing": False})


@app.websocket("/rooms/{room}")
async def chat(socket: WebSocket, room: str, name: str) -> None:
    """Have somebody in a room until they leave."""
    if room not in TENANTS:
        await socket.close(1008)
        return
    await socket.accept()
    with app.state.rooms.entered(room, Member(socket, name)):
        async for text in socket.iter_text():
            with contextlib.suppress(ValidationError):  # rtobs has said so
                await take(room, name, parsed(text))


def parsed(text: str) -> dict[str, Any]:
    """Return the JSON object that a frame should be, or an empty one."""
    with contextlib.suppress(ValueError):
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}


async def take(room: str, name: str, frame: dict[str, Any]) -> None:
    """Take one frame in: a receipt, or a message, whose journey begins here."""
    if "seen" in frame:
        with rtobs.receipt("displayed", frame["seen"]):
            return
    with rtobs.accept("/rooms/{room}", headers=frame.get("headers")) as hop:
        hop.segment(tenant=TENANTS[room])
        said = {"room": room, "name": name, "text": Message.model_validate(frame).text, "id": hop.correlation_id}
        with rtobs.publish("rooms"):
            servers = await app.state.broker.publish(CHANNELS + room, json.dumps(said))
        hop.event("message_taken", member=name, servers=servers)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
