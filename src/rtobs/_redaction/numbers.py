"""Numbers that say who somebody is, or that money can be had with: phones, cards, bank accounts.

As in ``patterns``, every pattern takes linear time. Must not know where texts come from.
"""

from __future__ import annotations

import re

from rtobs._redaction import identity

_DIGITS = re.compile(r"\d(?:[ ()./-]{0,3}\d){7}|[A-Z]{2}\d{2}[ -]?[A-Z0-9]{4}")
_LONG_NUMBER = re.compile(r"(?<![^\W_])(?<!\.)\d(?:[ -]?\d){12,60}+(?![^\W_])|(?<![\w.])\d{4}(?:\.\d{4}){3}(?![\w.])")
_PHONE = re.compile(
    r"(?<![\d.+])\+[1-9](?:[ ().-]{0,2}\d|/\d){7,14}+(?!\d)"
    r"|(?<![\w.+])(?:00[1-9]\d{0,2}[ ./-](?:[ ()./-]{0,2}\d){7,12}+(?![\w-])"
    r"|\(\d{3}\) ?\d{3}[- ]\d{4}(?![\w-])|\d{3}[-. ]\d{3}[-. ]\d{4}(?![\w-]))"
)
_NATIONAL = re.compile(
    r"(?<![\w.+:/-])(?:\(0[1-9]\d{1,4}\) ?\d{2,8}(?:[ -]\d{2,6}){0,3}+"  # (030) 123 45 67
    r"|0[1-9]\d{1,4}(?: ?[/-] ?| )\d{3,8}(?:[ -]\d{2,6}){0,3}+"  # 030 1234567, 07700 900123, 089/1234567
    r"|(?<!\d[ .])0[1-9](?:[ .]\d{2}){4}"  # 06 12 34 56 78
    r"|0[1-9]\d{8,10})(?![ .-]?\d|[\w:/-])"  # 015112345678
)
_FEWEST_DIGITS, _MOST_DIGITS = 9, 13
_SAID = re.compile(
    r"(\b(?:phone|telephone|tele?fon|tel|mobile?|handy|cell|msisdn|fax|whatsapp|sms to|call(?:ed|ing)?|dial(?:l?ed)?)"
    r"(?:[ _-]?(?:number|nummer|no|nr))?\\{0,3}[\"']?[ ]{0,2}[.:=]{0,2}[ ]{0,2}\\{0,3}[\"']?)"
    r"(\(?\d(?:[ ().-]{0,2}\d){6,14}+)(?![\w:-]|\.\d)",
    re.IGNORECASE,
)
"""A number that is said to be a phone's: "call 415 555 26 71"."""
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])")
_IBAN = re.compile(
    r"(?<![A-Za-z0-9])(?:[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,4})?"
    r"|[a-z]{2}\d{2}(?:[ -]?\d{4}){2,7}(?:[ -]?\d{1,4})?)(?![A-Za-z0-9])"
)
_ISSUERS = (
    (r"4\d{12}(?:\d{3}){0,2}"), (r"5[1-5]\d{14}"), (r"2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}"),
    (r"3[47]\d{13}"), (r"3(?:0[0-5]|[68]\d)\d{11}"), (r"6(?:011|5\d\d|4[4-9]\d)\d{12}"), (r"35\d{14}"),
    (r"62\d{14,17}"), (r"(?:50|5[6-9]|6[0-9])\d{10,17}"),
)  # fmt: skip
_CARD = re.compile("|".join(_ISSUERS))
_FIRST_OF_CARD = "23456"
_SHORTEST_CARD, _MOST_GROUPS = 12, 6
_NOT_A_DIGIT = re.compile(r"\D+")


def search(text: str) -> str:
    """Return *text* without such numbers."""
    if _DIGITS.search(text) is None:
        return text
    text = _SSN.sub("[redacted:ssn]", _IBAN.sub(_iban, text))
    text = _PHONE.sub(lambda match: identity.of("phone", f"+{_NOT_A_DIGIT.sub('', match[0])}"), text)
    text = _NATIONAL.sub(_national, text)
    text = _SAID.sub(lambda match: f"{match[1]}{_local(match[2])}", text)
    return _LONG_NUMBER.sub(_card, text)


def _national(match: re.Match[str]) -> str:
    return _local(match[0]) if _FEWEST_DIGITS <= sum(map(str.isdigit, match[0])) <= _MOST_DIGITS else match[0]


def _local(number: str) -> str:
    """Stand for a number without its country, which is another hash than that of the same number with it."""
    return identity.of("phone", _NOT_A_DIGIT.sub("", number))


def _iban(match: re.Match[str]) -> str:
    found = match[0]
    if _is_iban(found):
        return "[redacted:iban]"
    shorter, _, rest = found.rpartition(" ")  # a word in capitals may follow
    return f"[redacted:iban] {rest}" if _is_iban(shorter) else found


def _is_iban(found: str) -> bool:
    plain = found.replace(" ", "").replace("-", "")
    return len(plain) >= 15 and int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1  # noqa: PLR2004  ISO 13616


def _card(match: re.Match[str]) -> str:
    """Redact a card number, which may stand among other groups of digits."""
    groups = re.split("([ .-])", match[0])
    for first in range(0, len(groups), 2):
        if groups[first][0] not in _FIRST_OF_CARD:
            continue
        digits = ""
        for last in range(first, min(first + 2 * _MOST_GROUPS, len(groups)), 2):
            digits += groups[last]
            if len(digits) >= _SHORTEST_CARD and _CARD.fullmatch(digits) and _luhn(digits):
                return "".join((*groups[:first], "[redacted:card]", *groups[last + 1 :]))
    return match[0]


def _luhn(digits: str) -> bool:
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0
