"""docs/wire-format.md is enough to read and write a journey: an independent decoder agrees with the code."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from rtobs._journey import carrier
from rtobs._journey.carrier import Parent
from rtobs._journey.journey import Journey, channel_code, intent_id

VECTORS = json.loads((Path(__file__).parent / "vectors" / "journey.json").read_text())
JOURNEYS = VECTORS["journeys"]
DEFAULTS: dict[str, Any] = {
    "tenant": "", "region": "", "source": "", "kept": "", "ledger": "", "named": False, "replay": False, "promised": [],
}  # fmt: skip


def decode(packed: str, trace_id: str, key: bytes | None) -> dict[str, Any]:
    """Read a packed journey by the page alone; shares no code with rtobs."""
    fields = packed.split(".")
    head = fields[0]
    assert head[0] == "1"
    assert len(head) == 33
    flags = int(head[1:3], 16)
    if key is not None:
        text, _, mac = packed.rpartition(".")
        digest = hmac.new(key, b"rtobs-journey\x00" + text.encode(), hashlib.sha256).digest()
        assert urlsafe_b64encode(digest[:12]).decode() == mac
    tenant, _, promise_tenant = fields[3].partition("*")
    region, _, promise_region = fields[4].partition("*")
    return {
        "correlation_id": fields[1] if flags & 4 else trace_id,
        "created_us": int(head[3:17], 16), "sent_us": int(head[17:31], 16), "attempt": int(head[31:33], 16),
        "named": bool(flags & 2), "replay": bool(flags & 8), "promise_named": bool(flags & 16),
        "codes": [fields[2][i : i + 2] for i in range(0, len(fields[2]), 2)],
        "tenant": unquote(tenant), "region": unquote(region),
        "promise_tenant": unquote(promise_tenant) if "*" in fields[3] else unquote(tenant),
        "promise_region": unquote(promise_region) if "*" in fields[4] else unquote(region),
        "source": unquote(fields[5]), "channel": unquote(fields[6]), "intent": fields[7],
        "kept": fields[8] if flags & 1 else "", "ledger": fields[9],
    }  # fmt: skip


def journey_of(vector: dict[str, Any]) -> Journey:
    """Build the journey that a vector describes."""
    facts = {**DEFAULTS, **vector["journey"]}
    journey = Journey(facts["correlation_id"], facts["created_us"])
    for name in ("tenant", "region", "source", "kept", "ledger", "named", "replay"):
        setattr(journey, name, facts[name])
    for channel in facts["promised"]:
        journey.promise(channel)
    if "promise_tenant" in facts:
        journey.promise_tenant, journey.promise_region = facts["promise_tenant"], facts["promise_region"]
        journey.promise_named = facts["promise_named"]
    return journey


@pytest.mark.parametrize("vector", JOURNEYS, ids=[v["name"] for v in JOURNEYS])
def test_packing_gives_the_vector(vector: dict[str, Any]) -> None:
    """What rtobs writes is the vector, byte for byte."""
    packed = carrier.pack(
        journey_of(vector), vector["trace_id"], vector["sent_us"], attempt=vector["attempt"], channel=vector["channel"],
        intent=vector["intent"], ledger=vector["journey"].get("ledger", ""),
        wire_key=bytes.fromhex(vector["wire_key"]) if vector["wire_key"] else None,
    )  # fmt: skip
    assert packed == vector["packed"]
    assert len(packed) == vector["bytes"] <= 512


@pytest.mark.parametrize("vector", JOURNEYS, ids=[v["name"] for v in JOURNEYS])
def test_the_page_and_the_code_read_the_same(vector: dict[str, Any]) -> None:
    """An independent decoder and rtobs find the same facts in a vector."""
    key = bytes.fromhex(vector["wire_key"]) if vector["wire_key"] else None
    by_page = decode(vector["packed"], vector["trace_id"], key)
    journey = carrier.unpack(vector["packed"], Parent(int(vector["trace_id"], 16), 1, 1), key)
    assert journey is not None
    for name in ("correlation_id", "created_us", "sent_us", "attempt", "named", "replay", "tenant", "region", "source",
                 "channel", "intent", "kept", "ledger"):  # fmt: skip
        assert getattr(journey, name) == by_page[name], name
    assert sorted(f"{code:02x}" for code in journey.promised) == by_page["codes"]
    if journey.promised:
        for name in ("promise_tenant", "promise_region", "promise_named"):
            assert getattr(journey, name) == by_page[name], name
    facts = {**DEFAULTS, **vector["journey"]}
    assert {name: by_page[name] for name in ("tenant", "region", "source", "kept", "named", "replay")} == {
        name: facts[name] for name in ("tenant", "region", "source", "kept", "named", "replay")
    }


@pytest.mark.parametrize("vector", VECTORS["intents"], ids=lambda v: f"{v['channel']}-{v['key']}")
def test_intent_ids_are_the_digest_on_the_page(vector: dict[str, Any]) -> None:
    """An intent's id is computed from correlation id, channel and key, the same everywhere."""
    content = f"{vector['correlation_id']}\0{vector['channel']}\0{vector['key']}".encode()
    by_page = hashlib.blake2b(content, digest_size=8).hexdigest()
    assert by_page == vector["intent"] == intent_id(vector["correlation_id"], vector["channel"], vector["key"])


def test_channel_codes_are_the_ones_on_the_page() -> None:
    """A channel's byte is its number, or the digest of its name."""
    numbered = ("push", "sms", "email", "in_app", "webhook", "connector", "voice", "chat", "whatsapp", "slack")
    for channel, code in VECTORS["channel_codes"].items():
        if channel in numbered:
            by_page = numbered.index(channel) + 1
        else:
            by_page = 32 + int.from_bytes(hashlib.blake2b(channel.encode(), digest_size=4).digest(), "big") % 224
        assert f"{by_page:02x}" == code == f"{channel_code(channel):02x}"
