"""Patterns: what a text holds that should not leave, recognised by its form or by the name in front of it.

Every pattern takes linear time: a run of characters is entered at its beginning only (look-behind) and not given back
(possessive). Must not know where texts come from.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable
from itertools import pairwise
from urllib.parse import unquote_plus

from rtobs._redaction import identity, names, numbers, placed, spelled

GONE = "[redacted]"


def search(value: str, encoded: int = 2) -> str:
    """Return *value* without what should not leave; the same object where there is nothing.

    Words that are percent-encoded, as often as *encoded* says, are also searched as what they stand for.
    """
    plain = found = spelled.plain(value)
    if encoded and ("%" in found or "+" in found) and _ENCODED.search(found) is not None:
        found = _WORD.sub(lambda match: _decoded(match[0], encoded - 1), found)
    lower = found.lower()
    if "-----BEGIN" in found:
        found = _PEM.sub("[redacted:private_key]", found)
    if any(mark in found for mark in _MARKS) and (
        any(stem in lower for stem in _STEMS) or ("=" in found and _QUERY.search(found) is not None)
    ):
        found = _named(found)
    found = placed.search(found)
    mail = "@" in found or "%40" in found
    if mail and "//" in found:
        found = _USERINFO.sub("[redacted]@", found)
    if "bearer" in lower or "basic" in lower:
        found = _SCHEME.sub(_credential, found)
    found = _RUN.sub(_in_run, found)
    if mail:
        found = _EMAIL.sub(_email, found)
    found = numbers.search(found)
    return value if found == plain else found


_ENCODED = re.compile(r"%[0-9A-Fa-f]{2}|(?<=[?&])[\w.-]++=[^\s&#+]*+\+")
_CODES = frozenset("%+")
_WORD = re.compile(r"[^\s&=?#;\"'<>]++")


def _decoded(word: str, encoded: int) -> str:
    if _CODES.isdisjoint(word):
        return word
    found = "/".join([part if _CODES.isdisjoint(part) else _decoded_part(part, encoded) for part in word.split("/")])
    return _decoded_part(word, encoded) if found == word else found


def _decoded_part(part: str, encoded: int) -> str:
    plain = unquote_plus(part)
    found = search(plain, encoded)
    if found is plain:
        return part
    return found if _HASH.fullmatch(found) else GONE


_HASH = re.compile(r"\[[a-z]+:[0-9a-f]{12}\]")


_RUN = re.compile(r"[\w.+/:~=\[\]-]{15,}+")
"""Where tokens are: prose has few such words, and trying all the forms of tokens at each word takes long."""
_MARKS = ("=", ":", "'", '"', ">", " is ", " was ")
"""What stands between a name and its value."""
_QUERY = re.compile("[?&;#][A-Za-z]+=")

_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----END ).)*+(?:-----END [A-Z0-9 ]{0,40}-----)?",
    re.DOTALL,
)

# name = value ----------------------------------------------------------------------------------------------------

_STEMS = ("pass", "pwd", "secret", "token", "auth", "cookie", "credential", "key", "session", "signature", "bearer",
          "jwt", "csrf", "xsrf", "otp", "pin", "cvv", "cvc", "ssn", "mnemonic", "verification", " code", "kennwort",
          "contrase", "senha", "wachtwoord")  # fmt: skip
_NAME = re.compile(
    r"""([?&;\#]?)(?<![\w.\-])([\w.\-]++(?:[ ](?:key|code))?)(?:
        (?:\\{0,3}["'])?\s{0,3}(?:=>|[:=])\s{0,3}        # name=value   "name": value
        | \\{0,3}["']\s{0,3},\s{0,3}(?=b?\\{0,3}["'])    # ("name", "value")
        | >(?=[^<\s])                                    # <name>value</name>
        | \s{1,3}(?:is\s{1,3})?(?=["'])                  # name 'value'
        | \s{1,3}(?:is|was)\s{1,3}(?=\d{4}|[^\s\d]{0,64}\d\S)(?=\S{4})  # name is value1
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_WHOLE_LINE = frozenset({"authorization", "cookie"})
"""Headers whose value has spaces in it."""
_QUOTE = re.compile(r"""b?(\\{0,3}["'`])""")
_REST_OF_LINE = re.compile(r"(?:=\\{0,3}\"[^\"\r\n]*+\"|[^\r\n\"'<>])*+")
_TO_SEMICOLON = re.compile(r"[^\r\n;\"'<>]*+")
_UNQUOTED = re.compile(
    r"""(?:(?:bearer|basic|digest|token|apikey|negotiate)\s{1,3})?
        (?:[^\s&;"'<>,)\]}]|,(?![\s"'{\[]|$)|[)\]}](?![\s,;)\]}.]|$))*+""",
    re.VERBOSE | re.IGNORECASE,
)
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_HARMLESS = frozenset({"", "true", "false", "none", "null", "yes", "no", "str", "bytes", "...", "…", GONE})


def _named(text: str) -> str:
    parts: list[str] = []
    at = shown = 0
    while (found := _NAME.search(text, at)) is not None:
        at = found.end()
        name = found[2]
        if not names.is_secret(name, in_query=bool(found[1])):
            continue
        begin, end = _value(text, at, _unquoted(name, found[1]))
        if text[begin:end].lower() not in _HARMLESS:
            parts += (text[shown:begin], GONE)
            shown = end
        at = max(end, at)
    if not parts:
        return text
    return "".join((*parts, text[shown:]))


def _unquoted(name: str, before: str) -> re.Pattern[str]:
    """Return how far a value without quotes goes."""
    if before == ";":  # a connection string
        return _TO_SEMICOLON
    return _REST_OF_LINE if name.lower().rpartition("-")[2] in _WHOLE_LINE else _UNQUOTED


def _value(text: str, at: int, unquoted: re.Pattern[str]) -> tuple[int, int]:
    """Return where a value begins and ends, without its quotes."""
    quote = _QUOTE.match(text, at)
    if quote is not None:
        begin, mark = quote.end(), quote[1]
        end = text.find(mark, begin)
        while end > 0 and len(mark) == 1 and text[end - 1] == "\\" and text[end - 2] != "\\":
            end = text.find(mark, end + 1)
        return begin, end if end >= 0 else len(text)
    closing = _CLOSING.get(text[at : at + 1])
    if closing is not None:
        end = text.find(closing, at)
        return at, end + 1 if end >= 0 else len(text)
    found = unquoted.match(text, at)
    return at, found.end() if found is not None else at


# By form ---------------------------------------------------------------------------------------------------------

_USERINFO = re.compile(
    r"(?<=//)(?:[^\s/?#\"'<>@]{1,512}@(?:[^\s/?#\"'<>@]{1,512}@)?"
    r"|[^\s/?#\"'<>@:\[]{0,128}:(?!\d{1,5}(?:[/?#]|$))[^\s\"'<>@]{1,512}@)"
)
_KINDS = {
    "jwt": r"eyJ[\w-]{8,}+\.[\w-]{2,}+(?:\.[\w-]*+){0,4}",
    "aws": r"(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Z0-9])",
    "google": r"AIza[\w-]{35}|ya29\.[\w-]{20,}+|GOCSPX-[\w-]{20,}+|1//0[\w-]{20,}+",
    "stripe": r"(?:sk|rk|pk)_(?:live|test)_\w{10,}+|whsec_[A-Za-z0-9+/=]{16,}+",
    "slack": r"xox[abeoprs]-[A-Za-z0-9-]{10,}+|xapp-[A-Za-z0-9-]{10,}+"
             r"|(?<=hooks\.slack\.com/services/)[A-Za-z0-9]++/[A-Za-z0-9]++/[A-Za-z0-9]++",
    "teams": r"(?<=/IncomingWebhook/)[0-9A-Za-z]{20,}+/[\w-]{8,}+(?:/[\w-]++)?",
    "discord": r"(?<=/api/webhooks/)\d++/[\w-]{20,}+|[MNO][\w-]{23,27}\.[\w-]{6}\.[\w-]{27,}+",
    "github": r"gh[pousr]_[A-Za-z0-9]{30,}+|github_pat_\w{22,}+",
    "gitlab": r"gl(?:pat|dt|rt|cbt|ptt|soat)-[\w-]{20,}+",
    "twilio": r"(?:AC|SK)[0-9a-f]{32}(?![0-9a-f])",
    "sendgrid": r"SG\.[\w-]{16,}+\.[\w-]{16,}+",
    "mailgun": r"key-[0-9a-f]{32}(?![0-9a-f])",
    "mailchimp": r"[0-9a-f]{32}-us\d{1,2}(?!\d)",
    "telegram": r"\d{8,10}:[\w-]{35}(?![\w-])",
    "npm": r"npm_[A-Za-z0-9]{36}",
    "pypi": r"pypi-[\w-]{16,}+",
    "openai": r"sk-[\w-]{20,}+",
    "huggingface": r"hf_[A-Za-z0-9]{20,}+",
    "digitalocean": r"do[opr]_v1_[0-9a-f]{40,}+",
    "shopify": r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",
    "square": r"sq0[a-z]{3}-[\w-]{22,}+",
    "vault": r"hv[sbr]\.[\w-]{20,}+",
    "newrelic": r"NRAK-[A-Z0-9]{20,}+",
    "postman": r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}",
    "age": r"AGE-SECRET-KEY-1[0-9A-Z]{40,}+",
    "device": r"ExponentPushToken\[[^\]\s]{1,64}\]|[\w-]{8,64}:APA91[\w-]{20,}+|[0-9a-fA-F]{64}(?![0-9A-Za-z])",
}  # fmt: skip
_TOKEN = re.compile(r"(?<!\w)(?:" + "|".join(f"(?P<{kind}>{form})" for kind, form in _KINDS.items()) + ")")
_DEVICE = "device"


def _in_run(match: re.Match[str]) -> str:
    found = _TOKEN.sub(_token, match[0])
    return _OPAQUE.sub(_opaque, found) if len(found) >= _SHORTEST_OPAQUE else found


def _token(match: re.Match[str]) -> str:
    kind = str(match.lastgroup)
    return identity.of(kind, match[0]) if kind == _DEVICE else f"[redacted:{kind}]"


_SCHEME = re.compile(r"\b(bearer|basic)([\s+]{1,3})([\w.~+/-]{6,}+=*+)", re.IGNORECASE)
_WORDY = 20


def _credential(match: re.Match[str]) -> str:
    """Tell a credential from the word that follows in a sentence about them."""
    scheme, space, rest = match.groups()
    if scheme.lower() == "basic":
        try:
            secret = b":" in b64decode(rest + "=" * (-len(rest) % 4))
        except ValueError:
            secret = False
    else:
        secret = len(rest) >= _WORDY or not (rest.isalpha() and rest.islower())
    return f"{scheme}{space}{GONE}" if secret else match[0]


_EMAIL = re.compile(
    r"(?:(?<![\w.+\-%])[\w.+\-]++|\"[^\"\r\n@]{1,64}\")(?:@|%40)"
    r"(?:(?:[\w-]++\.)++[\w-]{2,}+|\[(?:IPv6:)?[0-9A-Fa-f:.]{2,45}\])"
)


def _email(match: re.Match[str]) -> str:
    return identity.of("email", match[0].replace("%40", "@").lower())


# Whatever looks drawn ----------------------------------------------------------------------------------------------

_OPAQUE = re.compile(r"(?<![\w+/-])[\w+/-]{32,}+={0,2}+")
_SHORTEST_OPAQUE = 32
_ENOUGH = 128
_FEWEST = 3
_TURNS = 0.3
"""Of 100 neighbours in a text that was drawn from 62 characters, 62 are of different classes; in names, some 20."""
_CLASS: Callable[[str], int] = lambda c: 0 if c.isdigit() else 1 if c.isupper() else 2  # noqa: E731
_AWS_SECRET = re.compile("[A-Za-z0-9+/]{40}")


def _opaque(match: re.Match[str]) -> str:
    found = match[0]
    letters = [_CLASS(c) for c in found[:_ENOUGH] if c.isalnum()]
    if min(letters.count(kind) for kind in range(3)) < (1 if _AWS_SECRET.fullmatch(found) else _FEWEST):
        return found
    turns = sum(a != b for a, b in pairwise(letters))
    return identity.of("opaque", found) if turns >= _TURNS * len(letters) else found
