"""Names of fields that say what their value is: a secret, a person, somebody's message.

Pure. Must not know values.
"""

from __future__ import annotations

import re
from enum import Enum, auto
from itertools import pairwise

from rtobs._redaction import spelled


class Kind(Enum):
    """What a field's name says of its value."""

    SECRET = auto()
    """Whoever knows it can do something."""
    PERSON = auto()
    """It says who."""
    CONTENT = auto()
    """It is what people write to one another."""


_SECRET = frozenset({
    "accesskey", "accesstoken", "apikey", "apitoken", "auth", "authkey", "authorization", "authtoken", "bearer",
    "contrase", "contrasena", "cookie", "cookies", "credential", "credentials", "csrf", "csrftoken", "cvc", "cvv",
    "idtoken", "jwt", "kennwort", "mnemonic", "otp", "pass", "passcode", "passe", "passphrase", "passwd", "password",
    "passwords", "passwort", "pin", "privatekey", "pwd", "refreshtoken", "secret", "secretkey", "secrets", "senha",
    "sessionid", "signature", "ssn", "token", "wachtwoord", "xsrf", "xsrftoken",
})  # fmt: skip
_SECRET_PAIRS = frozenset({
    ("access", "key"), ("account", "key"), ("api", "key"), ("auth", "key"), ("encryption", "key"), ("master", "key"),
    ("private", "key"), ("secret", "key"), ("server", "key"), ("service", "key"), ("session", "id"),
    ("access", "code"), ("login", "code"), ("security", "code"), ("verification", "code"),
    ("session", "key"), ("shared", "key"), ("signing", "key"), ("ssh", "key"), ("storage", "key"), ("wire", "key"),
})  # fmt: skip
_SECRET_WORDS = _SECRET | {"".join(pair) for pair in _SECRET_PAIRS}
"""Pairs are written as one word, too."""
_SECRET_IN_QUERY = frozenset({"code", "hmac", "key", "sig", "sid", "hash"})
_ABOUT = frozenset({
    "age", "algorithm", "category", "class", "count", "counts", "endpoint", "error", "expires", "expiry", "failed",
    "kind", "length", "limit", "method", "mode", "name", "present", "provider", "required", "scheme", "size", "status",
    "ttl", "type", "valid", "version",
})  # fmt: skip
"""A last word that makes the name say something about the secret, not the secret itself."""
_PERSON = frozenset({"email", "mail", "mobile", "msisdn", "phone", "recipient", "recipients", "telephone"})
_PERSON_WHOLE = frozenset({"to", "cc", "bcc", "mail_to", "rcpt_to", "phone_number", "email_address", "mobile_number"})
_CONTENT = frozenset({"body", "payload"})

_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_LONGEST = 64
"""Characters from the end that are looked at: what a name is stands there."""
_MOST_KNOWN = 2048
_known: dict[str, Kind | None] = {}


def kind(name: str) -> Kind | None:
    """Return what a field's name says of its value, or nothing."""
    try:
        return _known[name]
    except KeyError:
        found = _kind(name)
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        if len(name) <= _LONGEST:
            _known[name] = found
        return found


def is_secret(name: str, *, in_query: bool = False) -> bool:
    """Tell whether *name* names a secret; in the query of a URL some short names do too."""
    return kind(name) is Kind.SECRET or (in_query and name.lower() in _SECRET_IN_QUERY)


def _kind(name: str) -> Kind | None:
    words = [word.lower() for word in _WORD.findall(spelled.plain(name[-_LONGEST:]))]
    if not words:
        return None
    last = words[-1]
    if last not in _ABOUT and (
        not _SECRET_WORDS.isdisjoint(words) or any(pair in _SECRET_PAIRS for pair in pairwise(words))
    ):
        return Kind.SECRET
    if last in _PERSON or name.lower() in _PERSON_WHOLE:
        return Kind.PERSON
    return Kind.CONTENT if last in _CONTENT else None
