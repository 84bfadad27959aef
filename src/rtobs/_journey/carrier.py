"""Carrier: a journey into headers and out of them again; ``docs/wire-format.md`` says the same to the bit.

Every input is hostile until it has matched: nothing here raises, a header that is not valid is counted and ignored,
and the cost of a header does not grow with its size. Must not know brokers or hops.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Mapping
from hashlib import blake2b, sha256
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from rtobs import _conventions as names
from rtobs import _guard
from rtobs._journey.journey import MOST_PROMISES, Journey

TRACEPARENT_LIMIT = 256
TRACESTATE_LIMIT = 512
JOURNEY_LIMIT = 512
BAGGAGE_LIMIT = 8192
_MOST_PAIRS = 256
_TENANT_LIMIT = 96
_WORD_LIMIT = 32
_MAC_CHARS = 16
_FIELDS = 10

_KEPT, _NAMED, _HAS_CID, _REPLAY, _PROMISE_NAMED = 1, 2, 4, 8, 16

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_JOURNEY = re.compile(
    r"1([0-9a-f]{2})([0-9a-f]{14})([0-9a-f]{14})([0-9a-f]{2})"
    r"\.([0-9a-f]{32})?\.((?:[0-9a-f]{2}){0,8})"
    r"\.([A-Za-z0-9_~%-]*(?:\*[A-Za-z0-9_~%-]*)?)\.([A-Za-z0-9_~%-]*(?:\*[A-Za-z0-9_~%-]*)?)"
    r"\.([A-Za-z0-9_~%-]*)\.([A-Za-z0-9_~%-]*)\.([0-9a-f]{16})?\.([a-z_]*)\.([A-Za-z0-9_-]*)"
    r"(?:\.([A-Za-z0-9_-]{16}))?",
    re.ASCII,
)
_TRACESTATE = re.compile(r"[\x20-\x7e]*", re.ASCII)
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


def read(headers: object, name: str, limit: int) -> str:
    """Return one header as text, from any native shape; empty where it is missing, too long or not text."""
    value: Any = None
    if isinstance(headers, Mapping):
        value = headers.get(name)
        if value is None and 0 < len(headers) <= _MOST_PAIRS:
            value = _from_pairs(headers.items(), name)
    elif headers is not None and not isinstance(headers, str | bytes) and isinstance(headers, Iterable):
        value = _from_pairs(headers, name)
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if not isinstance(value, str | bytes | bytearray | memoryview):
        _guard.tally(names.PROPAGATION_REJECTED, "type")
        return ""
    if len(value) > limit:
        _guard.tally(names.PROPAGATION_REJECTED, "too_long")
        return ""
    if isinstance(value, str):
        return value
    return bytes(value).decode("utf-8", "replace")


def _from_pairs(pairs: Iterable[Any], name: str) -> Any:
    encoded = name.encode()
    for index, pair in enumerate(pairs):
        if index >= _MOST_PAIRS:
            _guard.tally(names.PROPAGATION_REJECTED, "too_many")
            break
        if not isinstance(pair, tuple | list) or len(pair) != 2:  # noqa: PLR2004  a pair is two things
            continue
        key = pair[0]
        if (isinstance(key, bytes) and len(key) == len(encoded) and key.lower() == encoded) or (
            isinstance(key, str) and len(key) == len(name) and key.lower() == name
        ):
            return pair[1]
    return None


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
    parent = parse_traceparent(read(headers, names.TRACEPARENT, TRACEPARENT_LIMIT))
    tracestate = ""
    if parent is not None:
        tracestate = read(headers, names.TRACESTATE, TRACESTATE_LIMIT)
        if tracestate and not _TRACESTATE.fullmatch(tracestate):
            _guard.tally(names.PROPAGATION_REJECTED, "tracestate")
            tracestate = ""
    packed = read(headers, names.JOURNEY, JOURNEY_LIMIT)
    journey = unpack(packed, parent, wire_key) if packed else None
    baggage = read(headers, names.BAGGAGE, BAGGAGE_LIMIT)
    foreign = ""
    if baggage:
        foreign, cid, tenant = split_baggage(baggage)
        if journey is None and cid and wire_key is None:
            journey = Journey(cid, 0)
            journey.tenant = tenant
    return Incoming(parent, journey, tracestate, foreign)


def extract_link(headers: object) -> Incoming:
    """Read an untrusted caller's headers: a span to link to and a validated client id, nothing else."""
    if headers is None:
        return NOTHING
    try:
        parent = parse_traceparent(read(headers, names.TRACEPARENT, TRACEPARENT_LIMIT))
        client_id = ""
        for name in _CLIENT_ID_HEADERS:
            value = read(headers, name, TRACEPARENT_LIMIT)
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
        member = f"{quote(name, safe='')}={quote(value, errors='replace')}"
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
    for member in value.split(","):
        name, _, content = member.partition("=")
        name = name.strip()
        if name == names.BAGGAGE_CID:
            found = content.partition(";")[0].strip()
            cid = found if _CID.fullmatch(found) and int(found, 16) else ""
        elif name == names.BAGGAGE_TENANT:
            tenant = _word(content.partition(";")[0].strip(), _TENANT_LIMIT)
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
    journey.tenant, journey.region = _word(now_tenant, _TENANT_LIMIT), _word(now_region, _WORD_LIMIT)
    journey.named = bool(bits & _NAMED)
    if journey.promised:
        journey.promise_tenant = _word(then_tenant, _TENANT_LIMIT) if "*" in tenant else journey.tenant
        journey.promise_region = _word(then_region, _WORD_LIMIT) if "*" in region else journey.region
        journey.promise_named = bool(bits & _PROMISE_NAMED)
    journey.source, journey.channel = _word(source, _WORD_LIMIT), _word(channel, _WORD_LIMIT)
    journey.intent = intent or ""
    journey.kept = (kept or "forwarded") if bits & _KEPT else ""
    journey.replay = bool(bits & _REPLAY)
    journey.ledger = ledger
    return journey


def _word(encoded: str, limit: int) -> str:
    if "%" not in encoded:
        return encoded[:limit]
    return unquote(encoded[:limit], errors="replace")


def _encode(value: str, limit: int) -> str:
    if not value:
        return ""
    encoded = (
        value if value.isalnum() and value.isascii() else quote(value, safe="", errors="replace").replace(".", "%2E")
    )
    if len(encoded) > limit:
        _guard.tally(names.PROPAGATION_REJECTED, "too_long")
        return ""
    return encoded


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
    tenant, region = _encode(journey.tenant, _TENANT_LIMIT), _encode(journey.region, _WORD_LIMIT)
    if journey.promised:
        promised = bytes(sorted(journey.promised)[:MOST_PROMISES]).hex()
        if journey.promise_tenant is None:
            flags |= _PROMISE_NAMED if journey.named else 0
        else:
            flags |= _PROMISE_NAMED if journey.promise_named else 0
            if journey.promise_tenant != journey.tenant:
                tenant = f"{tenant}*{_encode(journey.promise_tenant, _TENANT_LIMIT)}"
            if journey.promise_region != journey.region:
                region = f"{region}*{_encode(journey.promise_region or '', _WORD_LIMIT)}"
    packed = (
        f"1{flags:02x}{journey.created_us:014x}{sent_us:014x}{min(attempt, 255):02x}.{cid}.{promised}.{tenant}.{region}"
        f".{_encode(journey.source, _WORD_LIMIT)}.{_encode(channel, _WORD_LIMIT)}.{intent}.{journey.kept}.{journey.ledger}"
    )
    if wire_key is not None:
        packed = f"{packed}.{_mac(packed, wire_key)}"
    return packed


def _mac(packed: str, wire_key: bytes) -> str:
    from base64 import urlsafe_b64encode

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
    tenant = _encode(journey.tenant, _TENANT_LIMIT)
    if tenant:
        own = f"{own},{names.BAGGAGE_TENANT}={tenant}"
    headers[names.BAGGAGE] = f"{own},{foreign_baggage}" if foreign_baggage else own
    return headers
