"""An application of Flask's that asks itself by requests: one request, and in its view one message to NATS."""

import asyncio
import sys
import threading
from wsgiref.simple_server import make_server

import flask
import nats
import requests

url, name = sys.argv[1:]
app = flask.Flask("shop")


@app.post("/orders/<number>")
def order(number: str) -> str:
    async def send() -> None:
        client = await nats.connect(url)
        await client.publish(name, number.encode())
        await client.drain()

    asyncio.run(send())
    return number


server = make_server("127.0.0.1", 0, app)
serving = threading.Thread(target=server.handle_request)
serving.start()
with requests.Session() as session:
    assert session.post(f"http://127.0.0.1:{server.server_port}/orders/7", timeout=20).text == "7"
serving.join(20)
server.server_close()
print("done")
