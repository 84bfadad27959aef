"""A host that has secrets everywhere it can have them; run as a program: what leaves it is for the test to search.

``python -m tests.unbreakable.leaky LOGS URL``: the secrets of the corpus are in messages, headers, arguments, exception
texts, URLs, baggage, log fields and in what another library says. It must not know what rtobs makes of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from typing import Any

import httpx
from opentelemetry import trace
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.trace import Status, StatusCode

import rtobs
from rtobs import _config, _guard
from rtobs.integrations.memory import Broker
from tests.unbreakable.corpus.secrets import Secret, secrets


class CrmError(Exception):
    """What the host's own code raises."""


def texts_of(secret: Secret) -> list[str]:
    """Return the ways in which people write it down."""
    text = secret.text
    found = [text, f"got {text} from upstream", f'{{"detail": "{text}"}}', f"{'x' * 1000} {text}", f"see {text!r}."]
    if secret.name:
        found += [
            f"{{'{secret.name}': '{secret.shown}'}}", f'{{"{secret.name}":"{secret.shown}","n":1}}',
            f"('{secret.name}', '{secret.shown}')", f"{secret.name}: {secret.shown}",
        ]  # fmt: skip
    return found


async def journey(broker: Any, client: Any, url: str, secret: Secret, number: int) -> None:
    """Send one message all the way; everything that can hold the secret does, and everything fails."""
    texts = texts_of(secret)
    fields = {f"detail{place}": text for place, text in enumerate(texts)}
    if secret.name:
        fields[secret.name] = secret.shown
    plain = secret.text.splitlines()[0]
    headers = {
        "x-request-id": secret.text, "baggage": f"theirs={secret.shown.splitlines()[0]}", "x-api-key": plain,
        "authorization": plain, "x-note": plain,
    }  # fmt: skip
    with rtobs.accept(f"/orders/{number}", headers=headers) as hop:
        hop.note(**fields)
        hop.event(f"seen {texts[0]}", **fields)
        hop.segment(tenant=secret.text, region=secret.text, source=secret.text, device_type=secret.text)
        hop.keep(plain)
        hop.intend(secret.text)
        await broker.publish("orders", secret.text.encode(), {**headers, **hop.headers})
    message = await broker.get("orders")
    with contextlib.suppress(CrmError), rtobs.consume("orders", message) as hop:
        hop.outcome(rtobs.Outcome.FAILED, secret.text)
        with rtobs.stage(f"call {secret.text}"):
            trace.get_current_span().set_attributes(fields)
            trace.get_current_span().add_event("said", fields)
        deliver(secret.text, password=secret.shown)
    with contextlib.suppress(CrmError), rtobs.consume("orders", headers={"traceparent": secret.text}):
        raise CrmError(*texts)
    await message.ack()
    with contextlib.suppress(Exception), rtobs.deliver("webhook", secret.text):
        await client.get(f"{url}/hook", params={"token": secret.shown, "note": plain}, headers={"x-key": "k"})
    for text in texts:
        neighbour(text, fields)


@rtobs.deliver("webhook", "crm", key=lambda text, **_: text)
def deliver(text: str, **arguments: str) -> None:
    """Stand for a call to a provider that says in its exception what it was called with."""
    raise CrmError(f"refused: {text}, {arguments!r}")


def neighbour(text: str, fields: dict[str, str]) -> None:
    """Stand for another library that traces by OpenTelemetry's own means."""
    with (
        contextlib.suppress(CrmError),
        trace.get_tracer("neighbour").start_as_current_span(f"query {text}", attributes=fields) as span,
    ):
        span.add_event(f"event {text}", {**fields, "many": ("fine", text)})
        span.set_status(Status(StatusCode.ERROR, text))
        span.add_link(span.get_span_context(), {"note": text})
        raise CrmError(text) from ValueError(text)


def main() -> None:
    logs, url = sys.argv[1:]
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # its own lines with URLs are not ours
    logging.getLogger("httpcore").setLevel(logging.WARNING)
    rtobs.configure(service="leaky", logs=logs)
    HTTPXClientInstrumentor().instrument()

    async def work() -> None:
        broker = rtobs.wrap(Broker())
        async with httpx.AsyncClient() as client:
            for number, secret in enumerate(secrets()):
                await journey(broker, rtobs.wrap(client), url, secret, number)
                if number % 10 == 9:
                    await asyncio.to_thread(_config.flush)

    asyncio.run(work())
    for secret in secrets():  # our own lines
        _guard._last_told.clear()
        _guard.fault("leaky", CrmError(secret.text))
    done = rtobs.shutdown(20)
    faults = {values[0]: n for (name, values), n in _guard.tallies().items() if name == "rtobs.internal.errors"}
    print(f"\ndone {done} faults {faults}")


if __name__ == "__main__":
    main()
