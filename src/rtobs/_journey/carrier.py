"""Carrier: a journey into headers and out of them again; ``docs/wire-format.md`` says the same to the bit.

Every input is hostile until it has matched: nothing here raises, a header that is not valid is counted and ignored,
and the cost of a header does not grow with its size. Must not know brokers or hops.
"""

from __future__ import annotations

import hmac
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from hashlib import blake2b, sha256
from typing import NamedTuple
from urllib.parse import quote, unquote

from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._journey.headers import collect, read, text
from rtobs._journey.journey import MOST_PROMISES, Journey

__all__ = ["extract", "extract_link", "pack", "read", "unpack", "write"]

TRACEPARENT_LIMIT = 256
TRACESTATE_LIMIT = 512
JOURNEY_LIMIT = 512
BAGGAGE_LIMIT = 8192
TENANT_LIMIT = 96
"""Most characters of an encoded tenant."""
WORD_LIMIT = 32
"""Most characters of any other encoded word."""
_BAGGAGE_TENANT_LIMIT = 3 * TENANT_LIMIT
_MOST_MEMBERS = 32
_MOST_BAGGAGE = 180
_MAC_CHARS = 16

_KEPT, _NAMED, _HAS_CID, _REPLAY, _PROMISE_NAMED = 1, 2, 4, 8, 16

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_JOURNEY = re.compile(
    r"1([0-9a-f]{2})([0-9a-f]{14})([0-9a-f]{14})([0-9a-f]{2})"
    r"\.([0-9a-f]{32})?\.((?:[0-9a-f]{2}){0,8})"
    r"\.([A-Za-z0-9_~%-]{0,96}(?:\*[A-Za-z0-9_~%-]{0,96})?)\.([A-Za-z0-9_~%-]{0,32}(?:\*[A-Za-z0-9_~%-]{0,32})?)"
    r"\.([A-Za-z0-9_~%-]{0,32})\.([A-Za-z0-9_~%-]{0,32})\.([0-9a-f]{16})?\.([a-z_]{0,16})\.([A-Za-z0-9_-]*)"
    r"(?:\.([A-Za-z0-9_-]{16}))?",
    re.ASCII,
)
_MEMBER = re.compile(
    r"(?:[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]",
    re.ASCII,
)
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_~-]*", re.ASCII)
_CID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_CLIENT_ID_HEADERS = ("x-request-id", "x-correlation-id")


class Parent(NamedTuple):
    """The span a message was sent from."""

    trace_id: int
    span_id: int
    flags: int


class Incoming(NamedTuple):
    """What the headers of one message said, as far as it was valid."""

    parent: Parent | None
    journey: Journey | None
    tracestate: str = ""
    foreign_baggage: str = ""
    client_id: str = ""


NOTHING = Incoming(None, None)


def extract(headers: object, wire_key: bytes | None = None) -> Incoming:
    """Read a trusted message's headers. Never raises; what is not valid is counted and left out."""
    if headers is None:
        return NOTHING
    try:
        return _extract(headers, wire_key)
    except Exception as error:  # noqa: BLE001  a mapping of the host's may raise on any access
        _guard.fault("carrier.extract", error)
        return NOTHING


def _extract(headers: object, wire_key: bytes | None) -> Incoming:
    found = collect(headers, names.OWN_HEADERS)
    if not found:
        return NOTHING
    parent = parse_traceparent(text(found.get(names.TRACEPARENT), TRACEPARENT_LIMIT))
    tracestate = ""
    if parent is not None:
        tracestate = _tracestate(text(found.get(names.TRACESTATE), TRACESTATE_LIMIT, several=True))
    packed = text(found.get(names.JOURNEY), JOURNEY_LIMIT)
    journey = unpack(packed, parent, wire_key) if packed else None
    baggage = text(found.get(names.BAGGAGE), BAGGAGE_LIMIT, several=True)
    foreign = ""
    if baggage:
        foreign, cid, tenant = split_baggage(baggage)
        if journey is None and cid and wire_key is None:
            journey = Journey(cid, 0)
            journey.tenant = tenant
    return Incoming(parent, journey, tracestate, foreign)


def _tracestate(value: str) -> str:
    """Return a tracestate as it came if OpenTelemetry's own parser would take it (W3C Trace Context §3.3.1)."""
    if not value:
        return ""
    members = [member for member in (part.strip(" \t") for part in value.split(",")) if member]
    keys = {member.partition("=")[0] for member in members}
    if len(keys) == len(members) <= _MOST_MEMBERS and all(_MEMBER.fullmatch(member) for member in members):
        return value
    _guard.tally(names.PROPAGATION_REJECTED, "tracestate")
    return ""


def extract_link(headers: object) -> Incoming:
    """Read an untrusted caller's headers: a span to link to and a validated client id, nothing else."""
    if headers is None:
        return NOTHING
    try:
        found = collect(headers, (names.TRACEPARENT, *_CLIENT_ID_HEADERS))
        parent = parse_traceparent(text(found.get(names.TRACEPARENT), TRACEPARENT_LIMIT))
        client_id = ""
        for name in _CLIENT_ID_HEADERS:
            value = text(found.get(name), TRACEPARENT_LIMIT)
            if value and _CLIENT_ID.fullmatch(value):
                client_id = value
                break
        return Incoming(parent, None, client_id=client_id)
    except Exception as error:  # noqa: BLE001  a mapping of the host's may raise on any access
        _guard.fault("carrier.extract", error)
        return NOTHING


def parse_traceparent(value: str) -> Parent | None:
    """Parse a W3C traceparent (Trace Context §3.2); None where it is missing or not valid."""
    if not value:
        return None
    match = _TRACEPARENT.fullmatch(value)
    if match is not None:
        version, trace, span, flags, rest = match.groups()
        trace_id, span_id = int(trace, 16), int(span, 16)
        if version != "ff" and (rest is None or version != "00") and trace_id and span_id:
            return Parent(trace_id, span_id, int(flags, 16))
    _guard.tally(names.PROPAGATION_REJECTED, "traceparent")
    return None


def adopted_correlation_id(conversation_id: str) -> str:
    """Return the journey name that stands for a broker's own conversation id, the same in every process."""
    plain = conversation_id.replace("-", "").lower() if len(conversation_id) <= TRACEPARENT_LIMIT else ""
    if _CID.fullmatch(plain) and int(plain, 16):
        return plain
    return blake2b(conversation_id[:TRACEPARENT_LIMIT].encode("utf-8", "replace"), digest_size=16).hexdigest()


def format_baggage(members: Mapping[str, object]) -> str:
    """Write other people's baggage as it is in the current context (W3C Baggage §3.2), bounded."""
    written: list[str] = []
    size = 0
    for name, value in members.items():
        if name in (names.BAGGAGE_CID, names.BAGGAGE_TENANT) or not isinstance(value, str):
            continue
        member = f"{quote(name, safe='', errors='replace')}={quote(value, errors='replace')}"
        size += len(member) + 1
        if size > BAGGAGE_LIMIT // 2:
            _guard.tally(names.PROPAGATION_REJECTED, "baggage")
            break
        written.append(member)
    return ",".join(written)


def split_baggage(value: str) -> tuple[str, str, str]:
    """Return foreign members as they came, our correlation id and our tenant (W3C Baggage §3.2)."""
    foreign: list[str] = []
    cid = tenant = ""
    if not value.isascii():  # a neighbour's propagator would stumble over it when it writes it again
        _guard.tally(names.PROPAGATION_REJECTED, "baggage")
        return "", "", ""
    members = value.split(",", _MOST_BAGGAGE)
    if len(members) > _MOST_BAGGAGE:
        _guard.tally(names.PROPAGATION_REJECTED, "too_many")
    for member in members[:_MOST_BAGGAGE]:
        name, _, content = member.partition("=")
        name = name.strip()
        if name == names.BAGGAGE_CID:
            found = content.partition(";")[0].strip()
            cid = found if _CID.fullmatch(found) and int(found, 16) else ""
        elif name == names.BAGGAGE_TENANT:
            found = content.partition(";")[0].strip()
            tenant = _percent(found) if len(found) <= _BAGGAGE_TENANT_LIMIT else ""
        elif name:
            foreign.append(member.strip())
    return ",".join(foreign), cid, tenant


def unpack(packed: str, parent: Parent | None, wire_key: bytes | None = None) -> Journey | None:
    """Parse ``rtobs-journey``; None where it is not valid, counted."""
    match = _JOURNEY.fullmatch(packed)
    if match is None:
        _guard.tally(names.PROPAGATION_REJECTED, "journey")
        return None
    flags, created, sent, attempt, cid, promised, tenant, region, source, channel, intent, kept, ledger, mac = (
        match.groups()
    )
    if wire_key is not None and not (mac and hmac.compare_digest(mac, _mac(packed[: -_MAC_CHARS - 1], wire_key))):
        _guard.tally(names.PROPAGATION_REJECTED, "signature")
        return None
    bits = int(flags, 16)
    if bits & _HAS_CID:
        name = cid
    else:
        name = f"{parent.trace_id:032x}" if parent is not None else ""
    if not name or not int(name, 16):
        _guard.tally(names.PROPAGATION_REJECTED, "correlation_id")
        return None
    journey = Journey(name, int(created, 16))
    journey.sent_us = int(sent, 16)
    journey.attempt = int(attempt, 16) or 1
    if promised:
        journey.promised = frozenset(bytes.fromhex(promised))
    now_tenant, _, then_tenant = tenant.partition("*")
    now_region, _, then_region = region.partition("*")
    journey.tenant, journey.region = _word(now_tenant), _word(now_region)
    journey.named = bool(bits & _NAMED)
    if journey.promised:
        journey.promise_tenant = _word(then_tenant) if "*" in tenant else journey.tenant
        journey.promise_region = _word(then_region) if "*" in region else journey.region
        journey.promise_named = bool(bits & _PROMISE_NAMED)
    journey.source, journey.channel = _word(source), _word(channel)
    journey.intent = intent or ""
    journey.kept = (kept or "forwarded") if bits & _KEPT else ""
    journey.replay = bool(bits & _REPLAY)
    journey.ledger = ledger
    return journey


def _word(encoded: str) -> str:
    if not encoded.startswith("~"):
        return _percent(encoded)
    text = encoded[1:]
    try:
        found = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return ""
    return redaction.text(found.decode("utf-8", "replace"))


def _percent(encoded: str) -> str:
    return redaction.text(unquote(encoded, errors="replace")) if "%" in encoded else encoded


def encode(value: str, limit: int) -> str:
    """Write a word for ``rtobs-journey``: percent-encoded, or in base64 where that would be too long.

    One that is too long either way becomes `other`: as a label it is `other` everywhere, for the label guard refuses
    to name what does not travel.
    """
    if len(value) <= limit and _PLAIN.fullmatch(value):
        return value
    if not value:
        return ""
    encoded = _quoted(value) if len(value) <= limit else ""
    if not encoded or len(encoded) > limit:
        encoded = ""
        if len(value) <= limit:
            encoded = "~" + urlsafe_b64encode(value.encode("utf-8", "replace")).decode().rstrip("=")
        if not encoded or len(encoded) > limit:
            _guard.tally(names.PROPAGATION_REJECTED, "too_long")
            return names.OTHER
    return encoded


def travels(value: str, limit: int) -> bool:
    """Tell whether a word fits into the header."""
    if len(value) > limit:
        return False
    return len(_quoted(value)) <= limit or (len(value.encode("utf-8", "replace")) * 4 + 2) // 3 < limit


def _quoted(value: str) -> str:
    quoted = quote(value, safe="", errors="replace").replace(".", "%2E")
    return quoted if quoted[:1] != "~" else f"%7E{quoted[1:]}"


def pack(
    journey: Journey, trace_id: str, sent_us: int, *, attempt: int, channel: str = "", intent: str = "",
    wire_key: bytes | None = None,
) -> str:  # fmt: skip
    """Write ``rtobs-journey`` for one message that is sent at *sent_us* microseconds after the epoch."""
    flags = (_KEPT if journey.kept else 0) | (_NAMED if journey.named else 0) | (_REPLAY if journey.replay else 0)
    cid = ""
    if journey.correlation_id != trace_id:
        flags |= _HAS_CID
        cid = journey.correlation_id
    promised = ""
    tenant, region = encode(journey.tenant, TENANT_LIMIT), encode(journey.region, WORD_LIMIT)
    if journey.promised:
        promised = bytes(sorted(journey.promised)[:MOST_PROMISES]).hex()
        if journey.promise_tenant is None:
            flags |= _PROMISE_NAMED if journey.named else 0
        else:
            flags |= _PROMISE_NAMED if journey.promise_named else 0
            if journey.promise_tenant != journey.tenant:
                tenant = f"{tenant}*{encode(journey.promise_tenant, TENANT_LIMIT)}"
            if journey.promise_region != journey.region:
                region = f"{region}*{encode(journey.promise_region or '', WORD_LIMIT)}"
    source, channel = encode(journey.source, WORD_LIMIT), encode(channel, WORD_LIMIT)
    packed = (
        f"1{flags:02x}{journey.created_us:014x}{sent_us:014x}{min(attempt, 255):02x}.{cid}.{promised}.{tenant}.{region}"
        f".{source}.{channel}.{intent}.{journey.kept}."
    )
    room = JOURNEY_LIMIT - len(packed) - (_MAC_CHARS + 1 if wire_key is not None else 0)
    if len(journey.ledger) <= room:
        packed += journey.ledger
    else:
        _guard.tally(names.PROPAGATION_REJECTED, "ledger")
    if wire_key is not None:
        packed = f"{packed}.{_mac(packed, wire_key)}"
    return packed


def _mac(packed: str, wire_key: bytes) -> str:
    digest = hmac.new(wire_key, b"rtobs-journey\0" + packed.encode(), sha256).digest()
    return urlsafe_b64encode(digest[:12]).decode()


def write(
    journey: Journey, trace_id: int, span_id: int, flags: int, sent_us: int, *, attempt: int = 1, channel: str = "",
    intent: str = "", tracestate: str = "", foreign_baggage: str = "", wire_key: bytes | None = None,
) -> dict[str, str]:  # fmt: skip
    """Return a journey's headers for one message that is sent now from span *span_id*."""
    trace = f"{trace_id:032x}"
    packed = pack(journey, trace, sent_us, attempt=attempt, channel=channel, intent=intent, wire_key=wire_key)
    headers = {names.TRACEPARENT: f"00-{trace}-{span_id:016x}-{flags:02x}", names.JOURNEY: packed}
    if tracestate:
        headers[names.TRACESTATE] = tracestate
    own = f"{names.BAGGAGE_CID}={journey.correlation_id}"
    tenant = journey.tenant
    if tenant:
        if not _PLAIN.fullmatch(tenant):
            tenant = quote(tenant[:_BAGGAGE_TENANT_LIMIT], safe="", errors="replace")
        if len(tenant) <= _BAGGAGE_TENANT_LIMIT:
            own = f"{own},{names.BAGGAGE_TENANT}={tenant}"
    headers[names.BAGGAGE] = f"{own},{foreign_baggage}" if foreign_baggage else own
    return headers
