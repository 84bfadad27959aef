"""The API: accepts a notification over HTTP and publishes it. Run it with `python api.py`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from topology import NOTIFICATIONS, connect

import rtobs

rtobs.configure(service="api", logs="stdout")


class Notification(BaseModel):
    """What a client asks us to tell its subscribers."""

    tenant: str
    subject: str


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Stay connected to the broker as long as the API runs."""
    broker = await connect()
    app.state.exchange = broker.channel.default_exchange
    yield
    await broker.connection.close()


app = FastAPI(lifespan=lifespan)
app.add_middleware(rtobs.integrations.asgi.Middleware)


@app.post("/notifications", status_code=202)
async def notify(notification: Notification) -> dict[str, str]:
    """Take one notification in; its journey begins here, and so does its correlation id."""
    hop = rtobs.current()
    hop.segment(tenant=notification.tenant)
    with rtobs.publish("notifications"):
        message = aio_pika.Message(notification.model_dump_json().encode())
        await app.state.exchange.publish(message, routing_key=NOTIFICATIONS)
    hop.event("notification_accepted", subject=notification.subject)
    return {"correlation_id": hop.correlation_id}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ.get("PORT", "8000")), log_level="warning")
