"""How else a text may be written: with wide digits, invisible characters, look-alikes, other dashes, or escapes.

Pure. Must not know what is searched for.
"""

from __future__ import annotations

import re
import unicodedata

_ODD = re.compile(
    "[\xa0\xad\u2000-\u200d\u2010-\u2015\u202f\u205f\u2060\u2212\u3000\ufeff\uff01-\uff5e\U0001d400-\U0001d7cb]|(?![0-9])\\d"
)
_ESCAPED = re.compile(r"\\u00([2-7][0-9A-Fa-f])")
_INVISIBLE = frozenset("\xad\u200b\u200c\u200d\u2060\ufeff")
_LOOK_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b\u051d\u04cf\u043a\u0432\u043c\u043d\u0442"
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0423\u0425\u0406\u0408\u0405"
    "\u03b1\u03bf\u03c1\u03bd\u03b9\u03ba\u0391\u0392\u0395\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a7\u03a5\u0396\u0131\u0261",
    "aeopcyxijshdqwlkbmhtABEKMHOPCTYXIJSaopvikABEHIKMNOPTXYZig",
)  # fmt: skip
"""Cyrillic and Greek letters that look like Latin ones."""
_LATIN = re.compile("[A-Za-z]")
_LETTERS = re.compile(r"[^\W\d_]++")
_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2015\u2212")


def plain(value: str) -> str:
    """Return *value* as it reads, in ASCII where it has the same character; the same object where it is so already."""
    if "\\u00" in value:
        value = _ESCAPED.sub(_unescaped, value)
    if value.isascii():
        return value
    if _ODD.search(value) is not None:
        value = _ODD.sub(_ascii, value)
    return value if value.translate(_LOOK_ALIKE) == value else _LETTERS.sub(_latin, value)


def _latin(match: re.Match[str]) -> str:
    """Read a word of two scripts as one of Latin letters; a word of one script is a word of another language."""
    found = match[0]
    return found.translate(_LOOK_ALIKE) if not found.isascii() and _LATIN.search(found) is not None else found


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
