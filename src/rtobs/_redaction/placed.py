"""Secrets that their place tells: options of commands, fields of forms, elements of XML, users of addresses.

As in ``patterns``, every pattern takes linear time. Must not know where texts come from.
"""

from __future__ import annotations

import re
from functools import partial

from rtobs._redaction import names

GONE = "[redacted]"

_OPTION = re.compile(
    r"(?<![\w-])(--?([A-Za-z][\w-]{0,63})\s{1,3}[\"']?)"
    r"(?!-|(?:is|was|are|and|or|must|may|can|not|to|for|with|in|of)\b)([^\s\"']+)"
)
_USER = re.compile(r"(?<![\w-])((?:-u|--user)\s{1,3}[\"']?[^\s:\"']{1,128}:)(?!\d+(?:\s|$))([^\s\"']+)")
_VALUE = r"(?:\"[^\"]++\"|'[^']++'|[^\s\"'-][^\s\"']*+)"
_COMMANDS = tuple(
    (re.compile(rf"(?<![\w.-])(?:{programs})\s[^\r\n|;&]{{0,512}}+"), re.compile(rf"(\s-{option})({_VALUE})"))
    for programs, option in (
        (r"mysql[a-z]{0,9}|mariadb[a-z-]{0,16}|mycli|7za?", "p"),  # what stands apart is the name of a database
        (r"sshpass|(?:docker|podman|helm|oras) (?:registry )?login|mongo[a-z]{0,9}", r"p\s{0,3}"),
        (r"redis-cli|valkey-cli", r"a\s{0,3}"),
        (r"ldap[a-z]{3,9}", r"w\s{0,3}"),
        (r"sqlcmd|bcp|zip|unzip", r"P\s{0,3}"),
    )
)
"""Programs that take a password by an option of one letter, and that."""
_FORM = re.compile(
    r"(name=\\?\"([\w.\[\]-]{1,64})\\?\"[^\r\n\\]{0,128}(?:\r?\n\r?\n|(?:\\r)?\\n(?:\\r)?\\n))((?:(?!\\[rn])[^\r\n])+)"
)
_ELEMENT = re.compile(r"(<(?:[\w-]{1,64}:)?([\w.-]{1,64})\s[^<>]{0,256}>)([^<>]+)")
_ADDRESS = re.compile(
    r"(?<![\w/:.+%-])((?!mailto:|sips?:|xmpp:|acct:)([\w.+-]{1,64}):)([^\s@/:\"'<>]{3,256})"
    r"(?=@(?!sha\d)[\w.-]{1,253}(?::\d|/))"
)
_ORACLE = re.compile(r"(:(?:thin|oci8?):([^\s/@]{1,128})/)([^\s@]{1,256})(?=@)")


def search(text: str) -> str:
    """Return *text* without such secrets."""
    if " -" in text or text[:1] == "-":
        text = _USER.sub(rf"\1{GONE}", _OPTION.sub(_named, text))
        for command, option in _COMMANDS:
            text = command.sub(partial(_given, option), text)
    if "form-data" in text:
        text = _FORM.sub(_named, text)
    if "</" in text:
        text = _ELEMENT.sub(_named, text)
    if "@" in text and ":" in text:
        text = _ORACLE.sub(rf"\1{GONE}", _ADDRESS.sub(rf"\1{GONE}", text))
    return text


def _given(option: re.Pattern[str], command: re.Match[str]) -> str:
    return option.sub(rf"\1{GONE}", command[0])


def _named(match: re.Match[str]) -> str:
    return f"{match[1]}{GONE}" if names.is_secret(match[2]) else match[0]
