"""Label guard: every metric label has a budget of names; beyond it only that label becomes `other`.

Declared values are pinned, others come first served, raw identifiers never become labels. Whether a tenant is named
is decided once, by the hop that first sets it, and obeyed downstream. Must not know what is measured.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Mapping

from rtobs import _conventions as names
from rtobs import _guard
from rtobs import _redaction as redaction
from rtobs._conventions import OTHER, UNKNOWN, Label
from rtobs._journey import carrier

BUDGETS: Mapping[str, int] = {
    Label.TENANT: 200,
    Label.PROVIDER: 32,
    Label.DESTINATION: 64,
    Label.MESSAGING_DESTINATION: 64,
    Label.CHANNEL: 16,
    Label.REGION: 32,
    Label.SOURCE: 32,
    Label.ROUTE: 64,
    Label.STAGE: 48,
    Label.CONNECTOR: 32,
    Label.EVENT: 64,
    Label.ERROR_TYPE: 32,
    Label.SYSTEM: 16,
    Label.SITE: 64,
    Label.REASON: 64,
    Label.WORKER: 32,
}
"""Names that one process admits per label; labels not listed here are closed sets of our own."""

_ROOM: Mapping[str, int] = {
    Label.TENANT: carrier.TENANT_LIMIT,
    Label.REGION: carrier.WORD_LIMIT,
    Label.SOURCE: carrier.WORD_LIMIT,
    Label.CHANNEL: carrier.WORD_LIMIT,
}
"""Labels whose value travels; one that does not fit into the header is `other` here, as it will be downstream."""

_OBEYED_TIMES = 4
"""How far beyond its own tenant budget a process obeys decisions made upstream."""
_LONGEST = 64

_RAW_WITHIN = re.compile(
    r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"  # UUID
    r"|[^@\s]@[^@\s]+\.[^@\s]"  # e-mail
    r"|(?<![0-9a-z])(?=[a-f]*[0-9])[0-9a-f]{16,}(?![0-9a-z])"  # long hex
    r"|\[redacted[:\]]|\[[a-z]+:[0-9a-f]{12}\]",  # what somebody's was
    re.IGNORECASE,
)
_RAW = re.compile(
    r"\+?\(?[0-9][0-9 ()./-]{5,}[0-9]"  # phone, long number, date
    r"|[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?::[0-9]{1,5})?"  # IPv4
    r"|\[?[0-9a-f:]*:[0-9a-f:]*:[0-9a-f:.]*(?:%[\w.]+)?(?:\]:[0-9]{1,5})?"  # IPv6
    r"|[0-7][0-9a-hjkmnp-tv-z]{25}",  # ULID
    re.IGNORECASE | re.ASCII,
)


def is_raw_identifier(value: str) -> bool:
    """Tell whether *value* is a phone number, IP address, ULID or long number, or holds a UUID, e-mail or long hex."""
    return _RAW.fullmatch(value) is not None or _RAW_WITHIN.search(value) is not None


def _is_name(value: str) -> bool:
    return len(value) <= _LONGEST and value.isprintable()


class LabelGuard:
    """The admitted names of one process. Look-ups of admitted names take no lock."""

    def __init__(self, pinned: Mapping[Label, Iterable[str]] | None = None) -> None:
        """Pin the declared values; they count towards the budget and are never refused."""
        self._lock = threading.RLock()
        self._admitted: dict[str, set[str]] = {label: set() for label in BUDGETS}
        self._obeyed: set[str] = set()
        self.limited = 0
        """How often a value was refused so far."""
        self.pinned: Mapping[str, frozenset[str]] = {
            label: frozenset(values) for label, values in (pinned or {}).items()
        }
        for label, values in self.pinned.items():
            self._admitted[label].update(values)

    def label(self, label: str, value: str) -> str:
        """Return *value* if it may be a label, `other` if not, `unknown` if nobody set it."""
        admitted = self._admitted.get(label)
        if admitted is None or value in admitted:
            return value
        if not value:
            return UNKNOWN if label in (Label.TENANT, Label.REGION, Label.SOURCE) else ""
        return value if self._admit(label, value, admitted) else OTHER

    def admit_tenant(self, tenant: str) -> bool:
        """Decide whether a tenant is named from here on."""
        admitted = self._admitted[Label.TENANT]
        return tenant in admitted or self._admit(Label.TENANT, tenant, admitted)

    def tenant(self, tenant: str, *, named: bool) -> str:
        """Return the label of a tenant about which it was decided before, here or upstream."""
        if not tenant:
            return UNKNOWN
        if not named:
            return OTHER
        admitted = self._admitted[Label.TENANT]
        if tenant in admitted or tenant in self._obeyed:
            return tenant
        if not _is_name(tenant):  # a raw identifier is obeyed: upstream it was declared
            self._limited(Label.TENANT, "invalid")
            return OTHER
        with self._lock:
            if len(admitted) + len(self._obeyed) < _OBEYED_TIMES * BUDGETS[Label.TENANT]:
                self._obeyed.add(tenant)
                return tenant
        self._limited(Label.TENANT, "budget")
        return OTHER

    def _admit(self, label: str, value: str, admitted: set[str]) -> bool:
        if value in (OTHER, UNKNOWN, names.NONE):
            return True
        if not _is_name(value) or (label in _ROOM and not carrier.travels(value, _ROOM[label])):
            self._limited(label, "invalid")
            return False
        if label not in (Label.ERROR_TYPE, Label.SITE, Label.REASON) and is_raw_identifier(value):
            self._limited(label, "raw_identifier")
            return False
        if not redaction.is_clean(value):
            self._limited(label, "redacted")
            return False
        with self._lock:
            if value in admitted or len(admitted) < BUDGETS[label]:
                admitted.add(value)
                return True
        self._limited(label, "budget")
        return False

    def _limited(self, label: str, reason: str) -> None:
        self.limited += 1
        _guard.tally(names.LABELS_LIMITED, str(label), reason)
        if reason == "budget":
            _guard.tell(
                f"labels.{label}",
                "metric label %s has used up its budget of %d names; further ones are counted under `other`; "
                "declare the ones that matter: rtobs.configure(tenants=[...])",
                str(label),
                BUDGETS[label],
            )

    def reset_after_fork(self) -> None:
        """Give a forked child a lock of its own; it keeps the names, so that both processes use the same ones."""
        self._lock = threading.RLock()

    def usage(self) -> dict[str, tuple[int, int]]:
        """Return names used and names allowed, by label."""
        return {label: (len(found), BUDGETS[label]) for label, found in self._admitted.items() if found}
