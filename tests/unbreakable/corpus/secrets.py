"""Secrets of every kind that messages and their surroundings hold, made up from a seed.

They are made here rather than written down, because what looks like a real key in a repository sets off the alarms of
those who look for them. ``shown`` is what must not be found anywhere; ``name`` is there where only a name can tell.
"""

from __future__ import annotations

import random
import string
from base64 import b64encode, urlsafe_b64encode
from typing import NamedTuple
from uuid import UUID

LETTERS = string.ascii_letters + string.digits
HEX = "0123456789abcdef"


class Secret(NamedTuple):
    """One made-up secret."""

    kind: str
    text: str
    """As it is found in a text."""
    shown: str
    """The part that must not be seen."""
    name: str = ""
    """Name of the field without which nothing tells that it is one."""


def _luhn(digits: str) -> str:
    total = 0
    for place, digit in enumerate(reversed(digits + "0")):
        number = int(digit) * (1 + place % 2)
        total += number - 9 * (number > 9)
    return digits + str(-total % 10)


def _iban(country: str, rest: str) -> str:
    number = int("".join(str(int(c, 36)) for c in f"{rest}{country}00"))
    return f"{country}{98 - number % 97:02d}{rest}"


def secrets(seed: int = 1) -> list[Secret]:  # noqa: PLR0915 - a line for each kind
    """Return one secret of each kind, the same ones for the same seed."""
    chance = random.Random(seed)

    def some(number: int, alphabet: str = LETTERS) -> str:
        return "".join(chance.choices(alphabet, k=number))

    def segment(size: int) -> str:
        return urlsafe_b64encode(chance.randbytes(size)).decode().rstrip("=")

    found: list[Secret] = []

    def add(kind: str, text: str, shown: str = "") -> None:
        found.append(Secret(kind, text, shown or text))

    def named(kind: str, name: str, value: str) -> None:
        found.append(Secret(kind, f"{name}={value}", value, name))

    # By form ---------------------------------------------------------------------------------------------------------
    add("jwt", f"eyJ{segment(24)}.{segment(90)}.{segment(32)}")
    add("jwe", f"eyJ{segment(24)}.{segment(60)}.{segment(12)}.{segment(60)}.{segment(12)}")
    add("aws access key", f"AKIA{some(16, string.ascii_uppercase + string.digits)}")
    add("aws temporary key", f"ASIA{some(16, string.ascii_uppercase + string.digits)}")
    add("aws secret key", b64encode(chance.randbytes(30)).decode())
    add("google api key", f"AIza{some(35)}")
    add("google access token", f"ya29.{some(60)}")
    add("google client secret", f"GOCSPX-{some(28)}")
    add("stripe secret key", f"sk_live_{some(24)}")
    add("stripe restricted key", f"rk_live_{some(24)}")
    add("stripe webhook secret", f"whsec_{some(32)}")
    add("slack bot token", f"xoxb-{some(12, string.digits)}-{some(12, string.digits)}-{some(24)}")
    add("slack user token", f"xoxp-{some(12, string.digits)}-{some(24)}")
    hook = f"T{some(8, LETTERS.upper())}/B{some(8, LETTERS.upper())}/{some(24)}"
    add("slack webhook", f"https://hooks.slack.com/services/{hook}", hook)
    hook = f"{some(18, '123456789')}/{some(68)}"
    add("discord webhook", f"https://discord.com/api/webhooks/{hook}", hook)
    add("github token", f"ghp_{some(36)}")
    add("github fine-grained token", f"github_pat_{some(22)}_{some(59)}")
    add("gitlab token", f"glpat-{some(20)}")
    add("twilio key", f"SK{some(32, HEX)}")
    add("sendgrid key", f"SG.{some(22)}.{some(43)}")
    add("mailgun key", f"key-{some(32, HEX)}")
    add("mailchimp key", f"{some(32, HEX)}-us12")
    add("telegram bot token", f"{some(9, '123456789')}:{some(35)}")
    add("npm token", f"npm_{some(36)}")
    add("pypi token", f"pypi-{some(90)}")
    add("openai key", f"sk-proj-{some(48)}")
    add("hugging face token", f"hf_{some(34)}")
    add("digitalocean token", f"dop_v1_{some(64, HEX)}")
    add("shopify token", f"shpat_{some(32, HEX)}")
    add("vault token", f"hvs.{some(24)}")
    add("fcm device token", f"{some(22)}:APA91b{some(134)}")
    add("apns device token", some(64, HEX))
    add("expo push token", f"ExponentPushToken[{some(22)}]", f"[{found[-1].text[:0]}")
    found[-1] = found[-1]._replace(shown=found[-1].text.partition("[")[2])
    token = some(40)
    add("bearer", f"Bearer {token}", token)
    token = b64encode(f"ann:{some(12)}".encode()).decode()
    add("basic", f"Basic {token}", token)
    lines = "\n".join(b64encode(chance.randbytes(48)).decode() for _ in range(12))
    add("private key", f"-----BEGIN RSA PRIVATE KEY-----\n{lines}\n-----END RSA PRIVATE KEY-----", lines[:40])
    password = some(14)
    add("url with password", f"amqp://app:{password}@mq.internal:5672/v", password)
    password = f"{some(6)}@{some(6)}"
    add("url with at sign", f"postgresql://app:{password}@db.internal/orders", password[7:])
    signature = some(43, LETTERS + "-_")
    add("signed url", f"https://store.internal/a.pdf?sv=2026-01-01&sig={signature}&se=9", signature)
    signature = some(64, "0123456789abcdef")
    add("presigned url", f"https://b.s3.amazonaws.com/k?X-Amz-Signature={signature}&X-Amz-Date=9", signature)
    password = some(12)
    add("connection string", f"Server=db.internal;User Id=sa;Password={password};Encrypt=true", password)
    card = _luhn(f"4{some(14, string.digits)}")
    add("card", card)
    card = _luhn(f"52{some(13, string.digits)}")
    add("card in groups", " ".join(card[at : at + 4] for at in range(0, 16, 4)))
    add("iban", _iban("DE", some(18, string.digits)))
    iban = _iban("GB", f"WEST{some(14, string.digits)}")
    add("iban in groups", " ".join(iban[at : at + 4] for at in range(0, len(iban), 4)))
    add("e-mail", f"{some(8).lower()}.{some(6).lower()}@mail.example.org")
    address = f"{some(9).lower()}%40mail.example.org"
    add("e-mail in a url", f"https://crm.internal/u/{address}", address)
    add("phone", f"+49 151 {some(3, '123456789')} {some(5, '123456789')}")
    add("phone with brackets", f"({some(3, '23456789')}) {some(3, '23456789')}-{some(4, '123456789')}")
    add("social security number", f"{some(3, '123456')}-{some(2, '123456789')}-{some(4, '123456789')}")
    add("phone without its country", f"0151 {some(4, '123456789')} {some(4, '123456789')}")
    password = some(12)
    add("password of a program", f"mysql -u app -p{password} orders", password)
    # By name ---------------------------------------------------------------------------------------------------------
    named("password", "password", some(9).lower())
    named("database password", "DB_PASSWORD", some(11))
    named("api key", "x-api-key", some(12))
    named("client secret", "clientSecret", some(13))
    named("refresh token", "refresh_token", some(15))
    named("session", "sessionid", some(14).lower())
    named("one-time password", "otp", some(8, "GHJKMNPQRSTVWXYZ"))
    named("card code", "cvv", some(8, "GHJKMNPQRSTVWXYZ"))
    named("auth token of twilio", "auth_token", some(32, HEX))
    named("csrf token", "csrf-token", some(10))
    cookie = some(18)
    found.append(Secret("cookie", f"Cookie: sid={cookie}; theme=dark", cookie, "cookie"))
    digest = some(20)
    found.append(Secret("authorization", f"Authorization: Custom {digest} x", digest, "authorization"))
    named("signing key", "signing_key", str(UUID(int=chance.getrandbits(128))))
    named("password in look-alike letters", "p\u0430ssword", some(10))
    return found
