"""Carrier: a journey into headers and out of them again; ``docs/wire-format.md`` says the same to the bit.

Every input is hostile until it has matched: nothing here raises, a header that is not valid is counted and ignored,
and the cost of a header does not grow with its size. Must not know brokers or hops.
"""

from __future__ import annotations

import hmac
import re
import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import unhexlify
from collections.abc import Mapping
from hashlib import blake2b, sha256
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._journey.headers import collect, read, text
from rtobs._journey.journey import BYTES as _BYTES
from rtobs._journey.journey import MOST_PROMISES, Journey
from rtobs._journey.ledger import fit

__all__ = ["extract", "extract_link", "pack", "read", "unpack", "write"]

_TRACEPARENT_NAME, _TRACESTATE_NAME, _BAGGAGE_NAME, _JOURNEY_NAME = names.OWN_HEADERS
_CID_MEMBER = names.BAGGAGE_CID + "="
_TENANT_MEMBER = names.BAGGAGE_TENANT + "="

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
    r"\.([A-Za-z0-9_~%-]{0,32})\.([A-Za-z0-9_~%-]{0,32})\.([0-9a-f]{16})?\.([a-z_]{0,16})\.([A-Za-z0-9_~/*{}#>+$@:%|()-]*)"
    r"(?:\.([A-Za-z0-9_-]{16}))?",
    re.ASCII,
)
_PLAIN_MESSAGE = re.compile(
    r"00-([0-9a-f]{32})-([0-9a-f]{16})-0([0-3])1(0[02][0-9a-f]{30})\.{3}([A-Za-z0-9_-]{0,96})\.{6}([A-Za-z0-9_~/*{}#>+$@:%|()-]*)",
    re.ASCII,
)
"""``traceparent`` and ``rtobs-journey`` of a message of which a tenant and a ledger are known: nothing is promised."""
_PLAIN_TRACEPARENT = 55
_PLAIN_JOURNEY = 42
"""Characters of a plain journey beside its tenant and its ledger."""
_MOST_PLAIN_LEDGER = JOURNEY_LIMIT - _PLAIN_JOURNEY - TENANT_LIMIT
"""What there is room for beside every tenant."""
_SIMPLE = re.compile(r"[A-Za-z0-9_-]{1,96}", re.ASCII)
_MOST_SIMPLE = 1024
_simple_tenants: set[str] = set()
_56_BITS = (1 << 56) - 1
_MOST_ATTEMPT = 255
_two_numbers = struct.Struct(">QQ")
_plain_numbers, _read_numbers = _two_numbers.pack, _two_numbers.unpack
"""Flags and the moment of creation; the moment of sending and the attempt."""
_plain_message = _PLAIN_MESSAGE.fullmatch
_MEMBER = re.compile(
    r"(?:[a-z][_0-9a-z*/-]{0,255}|[a-z0-9][_0-9a-z*/-]{0,240}@[a-z][_0-9a-z*/-]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]",
    re.ASCII,
)
_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_~-]*", re.ASCII)
_CID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_NO_ID = "0" * 32
_NO_SPAN = "0" * 16
_NO_PARENT = ("", "", 0)
_CLIENT_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_CLIENT_ID_HEADERS = ("x-request-id", "x-correlation-id")


class Parent(NamedTuple):
    """The span a message was sent from."""

    trace_id: int
    span_id: int
    flags: int


class Incoming:
    """What the headers of one message said, as far as it was valid; ids in hex digits, empty where there are none."""

    __slots__ = ("client_id", "flags", "foreign_baggage", "journey", "plain", "span", "trace", "tracestate")

    def __init__(  # noqa: PLR0917  made here only
        self, trace: str, span: str, flags: int, journey: Journey | None, tracestate: str = "",
        foreign_baggage: str = "", client_id: str = "",
    ) -> None:  # fmt: skip
        self.plain = False
        """It has ids and a journey of ours, and nothing else."""
        self.trace = trace
        self.span = span
        self.flags = flags
        self.journey = journey
        self.tracestate = tracestate
        self.foreign_baggage = foreign_baggage
        self.client_id = client_id

    @property
    def parent(self) -> Parent | None:
        """The span that the message was sent from."""
        return Parent(int(self.trace, 16), int(self.span, 16), self.flags) if self.trace else None


NOTHING = Incoming("", "", 0, None)
_new: Any = object.__new__


def extract(headers: object, wire_key: bytes | None = None) -> Incoming:
    """Read a trusted message's headers. Never raises; what is not valid is counted and left out."""
    if headers is None:
        return NOTHING
    try:
        return _extract(headers, wire_key)
    except Exception as error:  # noqa: BLE001  a mapping of the host's may raise on any access
        _guard.fault("carrier.extract", error)
        return NOTHING


def read_plain(headers: dict[str, Any]) -> tuple[str, str, str, Journey] | None:
    """Return trace, span, flags (a digit) and journey of most messages; None where there is more to read."""
    value, packed, baggage = headers.get(_TRACEPARENT_NAME), headers.get(_JOURNEY_NAME), headers.get(_BAGGAGE_NAME)
    if (
        type(value) is not str
        or type(packed) is not str
        or len(value) != _PLAIN_TRACEPARENT
        or len(packed) > JOURNEY_LIMIT
        or _TRACESTATE_NAME in headers
        or (plain := _plain_message(value + packed)) is None
    ):
        return None
    trace, span, flags, numbers, tenant, ledger = plain.groups()
    expected = f"{_CID_MEMBER}{trace},{_TENANT_MEMBER}{tenant}" if tenant else _CID_MEMBER + trace
    if baggage != expected or trace == _NO_ID or span == _NO_SPAN:
        return None
    created, sent = _read_numbers(unhexlify(numbers))
    journey: Journey = _new(Journey)  # as its constructor does it, without the call
    journey.correlation_id = trace
    journey.named = created > _56_BITS
    journey.created_us = created & _56_BITS if created > _56_BITS else created
    journey.sent_us = sent >> 8
    journey.attempt = sent & 0xFF or 1
    journey.tenant = tenant
    journey.region = journey.source = ""
    journey.ledger = ledger
    journey.rare = None
    return trace, span, flags, journey


def _extract(headers: object, wire_key: bytes | None) -> Incoming:  # noqa: C901  a header each
    native: Any = headers
    found: Any = native
    if type(headers) is not dict:
        found = collect(native, names.OWN_HEADERS)
    if wire_key is None and (plain := read_plain(found)) is not None:
        incoming = Incoming(plain[0], plain[1], int(plain[2]), plain[3])
        incoming.plain = plain[3].created_us != 0
        return incoming
    value, packed = found.get(_TRACEPARENT_NAME), found.get(_JOURNEY_NAME)
    state, baggage = found.get(_TRACESTATE_NAME), found.get(_BAGGAGE_NAME)
    if value is None and packed is None and state is None and baggage is None:
        if found is not native or not found:
            return NOTHING
        found = collect(native, names.OWN_HEADERS)  # perhaps in another spelling
        return _extract(found, wire_key) if found else NOTHING
    if type(value) is not str or len(value) > TRACEPARENT_LIMIT:
        value = text(value, TRACEPARENT_LIMIT)
    trace, span, flags = _traceparent(value) if value else _NO_PARENT
    tracestate = ""
    if state is not None and trace:
        tracestate = _tracestate(text(state, TRACESTATE_LIMIT, several=True))
    if type(packed) is not str or len(packed) > JOURNEY_LIMIT:
        packed = text(packed, JOURNEY_LIMIT)
    journey = _unpack(packed, trace, wire_key) if packed else None
    if baggage is None or (
        journey is not None and type(baggage) is str and baggage == _own_baggage(journey)  # as we write it ourselves
    ):
        return Incoming(trace, span, flags, journey, tracestate)
    foreign = ""
    baggage = text(baggage, BAGGAGE_LIMIT, several=True)
    if baggage:
        foreign, cid, tenant = split_baggage(baggage)
        if cid and wire_key is None:
            if journey is None:
                journey = Journey(cid, 0)
                journey.tenant = redaction.redact(tenant, redaction.NAME_LIMIT)  # another language's service set it
            elif not int(packed[1:3], 16) & _HAS_CID:  # a neighbour has put a traceparent of its own in place of ours
                journey.correlation_id = cid
    return Incoming(trace, span, flags, journey, tracestate, foreign)


def _tracestate(value: str) -> str:
    """Return a tracestate as it came if OpenTelemetry's own parser would take it (W3C Trace Context §3.3.1)."""
    if not value:
        return ""
    members = [member for member in (part.strip(" \t") for part in value.split(",")) if member]
    keys = {member.partition("=")[0] for member in members}
    if len(keys) == len(members) <= _MOST_MEMBERS and all(_MEMBER.fullmatch(member) for member in members):
        return value if members and "\t" not in value else ",".join(members)  # a tab is no part of a header we write
    _guard.tally(names.PROPAGATION_REJECTED, "tracestate")
    return ""


def extract_link(headers: object) -> Incoming:
    """Read an untrusted caller's headers: a span to link to and a validated client id, nothing else."""
    if headers is None:
        return NOTHING
    try:
        found = collect(headers, (names.TRACEPARENT, *_CLIENT_ID_HEADERS))
        trace, span, flags = _traceparent(text(found.get(names.TRACEPARENT), TRACEPARENT_LIMIT))
        client_id = ""
        for name in _CLIENT_ID_HEADERS:
            value = text(found.get(name), TRACEPARENT_LIMIT)
            if value and _CLIENT_ID.fullmatch(value):
                client_id = value
                break
        return Incoming(trace, span, flags, None, client_id=client_id)
    except Exception as error:  # noqa: BLE001  a mapping of the host's may raise on any access
        _guard.fault("carrier.extract", error)
        return NOTHING


def parse_traceparent(value: str) -> Parent | None:
    """Parse a W3C traceparent (Trace Context §3.2); None where it is missing or not valid."""
    trace, span, flags = _traceparent(value)
    return Parent(int(trace, 16), int(span, 16), flags) if trace else None


def _traceparent(value: str) -> tuple[str, str, int]:
    if not value:
        return _NO_PARENT
    match = _TRACEPARENT.fullmatch(value)
    if match is not None:
        version, trace, span, flags, rest = match.groups()
        if version != "ff" and (rest is None or version != "00") and trace != _NO_ID and span != _NO_SPAN:
            return trace, span, int(flags, 16)
    _guard.tally(names.PROPAGATION_REJECTED, "traceparent")
    return _NO_PARENT


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
    return _unpack(packed, f"{parent.trace_id:032x}" if parent is not None else "", wire_key)


def _unpack(packed: str, trace: str, wire_key: bytes | None) -> Journey | None:
    match = _JOURNEY.fullmatch(packed)
    if match is None:
        _guard.tally(names.PROPAGATION_REJECTED, "journey")
        return None
    flags, created, sent, attempt, cid, *words, mac = match.groups()
    if wire_key is not None and not (mac and hmac.compare_digest(mac, _mac(packed[: -_MAC_CHARS - 1], wire_key))):
        _guard.tally(names.PROPAGATION_REJECTED, "signature")
        return None
    bits = int(flags, 16)
    name = cid if bits & _HAS_CID else trace
    if not name or name == _NO_ID:
        _guard.tally(names.PROPAGATION_REJECTED, "correlation_id")
        return None
    journey = Journey(name, int(created, 16), int(sent, 16), int(attempt, 16) or 1)
    _unpack_words(journey, bits, words)
    return journey


def _unpack_words(journey: Journey, bits: int, words: list[str]) -> None:  # noqa: C901  a word each
    promised, tenant, region, source, channel, intent, kept, ledger = words
    now_tenant, _, then_tenant = tenant.partition("*")
    now_region, _, then_region = region.partition("*")
    if tenant:
        journey.tenant = _word(now_tenant)
    if region:
        journey.region = _word(now_region)
    if promised:
        journey.promised = frozenset(bytes.fromhex(promised))
        journey.promise_tenant = _word(then_tenant) if "*" in tenant else journey.tenant
        journey.promise_region = _word(then_region) if "*" in region else journey.region
        journey.promise_named = bits & _PROMISE_NAMED != 0
    if source:
        journey.source = _word(source)
    if channel:
        journey.channel = _word(channel)
    if intent:
        journey.intent = intent
    if bits & _NAMED:
        journey.named = True
    if bits & _KEPT:
        journey.kept, journey.kept_before = kept or "forwarded", True
    if bits & _REPLAY:
        journey.replay = True
    if ledger:
        journey.ledger = ledger


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
    if not value or (len(value) <= limit and _PLAIN.fullmatch(value)):
        return value
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
    ledger: str = "", span: str = "", wire_key: bytes | None = None,
) -> str:  # fmt: skip
    """Write ``rtobs-journey`` for one message that is sent from *span* at *sent_us* microseconds after the epoch."""
    flags = _NAMED if journey.named else 0
    cid = promised = kept = ""
    if journey.correlation_id != trace_id:
        flags |= _HAS_CID
        cid = journey.correlation_id
    tenant, region, source = journey.tenant, journey.region, journey.source
    if tenant:
        tenant = encode(tenant, TENANT_LIMIT)
    if region:
        region = encode(region, WORD_LIMIT)
    if source:
        source = encode(source, WORD_LIMIT)
    if channel:
        channel = encode(channel, WORD_LIMIT)
    if journey.rare is not None:
        kept = journey.kept
        flags |= (_KEPT if kept else 0) | (_REPLAY if journey.replay else 0)
        if journey.promised:
            promised, named, tenant, region = _pack_promises(journey, tenant, region)
            flags |= _PROMISE_NAMED if named else 0
    packed = (
        f"1{_BYTES[flags]}{_clocks(journey.created_us, sent_us)}{_BYTES[min(attempt, 255)]}.{cid}.{promised}"
        f".{tenant}.{region}.{source}.{channel}.{intent}.{kept}."
    )
    if ledger:
        room = JOURNEY_LIMIT - len(packed) - (_MAC_CHARS + 1 if wire_key is not None else 0)
        packed += ledger if len(ledger) <= room else fit(ledger, room, f"{trace_id}-{span}")
    if wire_key is not None:
        packed = f"{packed}.{_mac(packed, wire_key)}"
    return packed


def _pack_promises(journey: Journey, tenant: str, region: str) -> tuple[str, bool, str, str]:
    """Return the promised channels, whether their tenant is named, and tenant and region with what they were then."""
    promised = bytes(sorted(journey.promised)[:MOST_PROMISES]).hex()
    if journey.promise_tenant is None:
        return promised, journey.named, tenant, region
    if journey.promise_tenant != journey.tenant:
        tenant = f"{tenant}*{encode(journey.promise_tenant, TENANT_LIMIT)}"
    if journey.promise_region != journey.region:
        region = f"{region}*{encode(journey.promise_region or '', WORD_LIMIT)}"
    return promised, journey.promise_named, tenant, region


def _mac(packed: str, wire_key: bytes) -> str:
    digest = hmac.new(wire_key, b"rtobs-journey\0" + packed.encode(), sha256).digest()
    return urlsafe_b64encode(digest[:12]).decode()


def _clocks(created_us: int, sent_us: int) -> str:
    return (created_us << 56 | sent_us).to_bytes(14, "big").hex()


def write(
    journey: Journey, trace: str, span: str, flags: int, sent_us: int, *, attempt: int = 1, channel: str = "",
    intent: str = "", tracestate: str = "", foreign_baggage: str = "", ledger: str = "", wire_key: bytes | None = None,
) -> dict[str, str]:  # fmt: skip
    """Return a journey's headers for one message that is sent now from *span*; ids in hex digits."""
    packed = pack(
        journey, trace, sent_us, attempt=attempt, channel=channel, intent=intent, ledger=ledger, span=span,
        wire_key=wire_key,
    )  # fmt: skip
    headers = {_TRACEPARENT_NAME: f"00-{trace}-{span}-{_BYTES[flags]}", _JOURNEY_NAME: packed}
    if tracestate:
        headers[_TRACESTATE_NAME] = tracestate
    own = _own_baggage(journey)
    headers[_BAGGAGE_NAME] = f"{own},{foreign_baggage}" if foreign_baggage else own
    return headers


def is_plain(journey: Journey, trace: str) -> bool:
    """Tell whether ``write_plain`` says all that there is to say of a journey."""
    tenant = journey.tenant
    return (
        journey.rare is None
        and journey.correlation_id == trace
        and not (journey.region or journey.source)
        and (not tenant or tenant in _simple_tenants or _is_simple(tenant))
    )


def _is_simple(tenant: str) -> bool:
    found = _SIMPLE.fullmatch(tenant) is not None
    if found and len(_simple_tenants) < _MOST_SIMPLE:
        _simple_tenants.add(tenant)
    return found


def write_plain(  # noqa: PLR0917  keywords would cost as much as the work
    journey: Journey, span: str, sampled: bool, sent_us: int, attempt: int, ledger: str = "",  # noqa: FBT001  as above
) -> dict[str, str]:  # fmt: skip
    """Do what ``write`` does, for a plain journey in the trace that carries its name: a third of the work."""
    trace, tenant, created = journey.correlation_id, journey.tenant, journey.created_us
    if journey.named:
        created |= _NAMED << 56
    numbers = _plain_numbers(created, sent_us << 8 | min(attempt, _MOST_ATTEMPT)).hex()
    if len(ledger) > _MOST_PLAIN_LEDGER and len(ledger) > (room := JOURNEY_LIMIT - _PLAIN_JOURNEY - len(tenant)):
        ledger = fit(ledger, room, f"{trace}-{span}")
    return {
        _TRACEPARENT_NAME: f"00-{trace}-{span}-03" if sampled else f"00-{trace}-{span}-02",
        _JOURNEY_NAME: f"1{numbers}...{tenant}......{ledger}",
        _BAGGAGE_NAME: f"{_CID_MEMBER}{trace},{_TENANT_MEMBER}{tenant}" if tenant else _CID_MEMBER + trace,
    }


def _own_baggage(journey: Journey) -> str:
    own = _CID_MEMBER + journey.correlation_id
    tenant = journey.tenant
    if tenant:
        if not _PLAIN.fullmatch(tenant):
            tenant = quote(tenant[:_BAGGAGE_TENANT_LIMIT], safe="", errors="replace")
        if len(tenant) <= _BAGGAGE_TENANT_LIMIT:
            own = f"{own},{names.BAGGAGE_TENANT}={tenant}"
    return own
