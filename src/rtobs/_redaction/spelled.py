"""How else a text may be written: with wide digits, invisible characters, other dashes and blanks, or escapes.

Pure. Must not know what is searched for.
"""

from __future__ import annotations

import re
import unicodedata

_ODD = re.compile("[\xa0\xad\u2000-\u200d\u2010-\u2015\u202f\u205f\u2060\u2212\u3000\ufeff\uff01-\uff5e]|(?![0-9])\\d")
_ESCAPED = re.compile(r"\\u00([2-7][0-9A-Fa-f])")
_INVISIBLE = frozenset("\xad\u200b\u200c\u200d\u2060\ufeff")
_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2015\u2212")


def plain(value: str) -> str:
    """Return *value* as it reads, in ASCII where it has the same character; the same object where it is so already."""
    if "\\u00" in value:
        value = _ESCAPED.sub(_unescaped, value)
    if value.isascii() or _ODD.search(value) is None:
        return value
    return _ODD.sub(_ascii, value)


def _unescaped(match: re.Match[str]) -> str:
    found = chr(int(match[1], 16))
    return match[0] if found in '"\\\x7f' else found  # what ends a string in JSON must not do so here


def _ascii(match: re.Match[str]) -> str:
    found = match[0]
    if found in _INVISIBLE:
        return ""
    if found in _DASHES:
        return "-"
    if found.isdecimal():
        return str(unicodedata.decimal(found))
    return " " if found.isspace() else unicodedata.normalize("NFKC", found)
