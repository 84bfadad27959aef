"""R20, other spellings: a secret is found however it is written, and where only its place tells what it is."""

from __future__ import annotations

import json

import pytest

from rtobs import _redaction as redaction
from rtobs._redaction import patterns, placed, spelled

SECRET = "hunter2secretXYZ"


def wide(digits: str) -> str:
    """Return digits as they are typed with an East Asian keyboard."""
    return "".join(chr(0xFF10 + int(digit)) for digit in digits)


IN_TEXT = {
    "percent signs twice": "redirect=https%253A%252F%252Fx%252F%253Ftoken%253D{}",
    "letters escaped in JSON": '{{"pass\\u0077ord":"{}"}}',
    "JSON in JSON in JSON": json.dumps(json.dumps(json.dumps({"password": "{}"}))).replace("{", "{{").replace("}", "}}")
    .replace("{{}}", "{}"),
    "wide equals sign": "password\uff1d{}", "invisible character": "pass\u200bword={}",
    "soft hyphen": "pass\u00adword={}",
    "slash in a password": "amqp://u:ab/{}@host:5672/", "hash in a password": "redis://:ab#{}@host:6379/0",
    "no scheme": "u:{}@db.internal:5432/orders", "share": "//u:{}@files/x",
    "oracle": "jdbc:oracle:thin:scott/{}@host:1521/x",
    "option": "cmd --password {} --verbose", "option in quotes": "cmd --api-key '{}'", "curl": "curl -u bob:{} https://x",
    "form": 'Content-Disposition: form-data; name="password"\r\n\r\n{}\r\n--b',
    "element with attributes": "<ns:Password type='x'>{}</ns:Password>",
    "digest": 'Authorization: Digest username="Mufasa", response="{}", nonce="x"',
    "cookie in quotes": 'Cookie: a="b"; sid="{}"', "sentence": "the password is {}",
    "German": "Kennwort: {}", "Spanish": "contraseña={}", "French": "mot_de_passe={}", "one word": "signingkey={}",
}  # fmt: skip
FORMS = [
    "4111.1111.1111.1111", "card_4111111111111111_x", wide("4111111111111111"),
    "4111\u00a01111\u00a01111\u00a01111",
    "4111–1111–1111–1111", "de89370400440532013000", "GB29-NWBK-6016-1331-9268-19", "0049 151 23456789",
    "user+4915123456789", "+49/151/23456789", '"ann b"@example.org', "ann@[192.0.2.1]", "ann\uff20example.org",
    "Your OTP is 918273", "verification code: 918273",
    "https://x.webhook.office.com/webhookb2/a@b/IncomingWebhook/0123456789abcdef0123456789abcdef/5f0c1a2b-1111-4222",
]  # fmt: skip
PLAIN = [
    "the password is required", "the token is not valid", "pin is 3 bytes", "Zürich – 東京 – \uff11\uff12",
    "status code: 503",
    "sip:ann", "image:tag@sha256:0af7651916cd43dd", "http://host:8080/a@b", "chown -u 1000:1000 x",
    "--token-type bearer",
    "cmd --verbose --name orders", "2026-11-22T21:11:02+0000", "0.4111111111111111", "take – or leave",
    "<b>bold</b>", "error code: 40 at 12:30", "a -b c -d e", "00 12 34", "12/2026/11", "\\u0041 is a letter",
    "de01000000000000000000",
]  # fmt: skip


@pytest.mark.parametrize("text", IN_TEXT.values(), ids=IN_TEXT)
def test_r20_a_secret_is_found_in_any_spelling(text: str) -> None:
    """R20: nothing of the secret is left, and a second search finds nothing more."""
    found = redaction.redact(text.format(SECRET))
    assert SECRET not in found
    assert redaction.redact(found) == found


@pytest.mark.parametrize("text", FORMS)
def test_r20_numbers_and_addresses_are_found_in_any_spelling(text: str) -> None:
    """R20: cards, accounts, phones, addresses and codes with odd blanks, dashes, digits and letters."""
    found = redaction.redact(f"about {text} here")
    assert text not in found
    assert not {"1111", "5320", "6016", "23456789", "918273", "ann"} & set(found.replace("-", " ").split())
    assert redaction.redact(found) == found


@pytest.mark.parametrize("text", PLAIN)
def test_what_only_looks_like_it_stays(text: str) -> None:
    """Sentences, addresses, options and other scripts stay as they are written."""
    assert redaction.redact(text) == text


@pytest.mark.parametrize(
    "piece", ["%25", "%2525", "\\u0041", "–", "\uff11", " -u ", " --password ", 'name="password" ', "<a b", "</", "a:",
              "a:b@", "//a:", "//a:b/", "is 1", "key is ", '="', 'authorization: ="', ":thin:a/", "00 1 ", "+1/1"],
)  # fmt: skip
def test_no_new_pattern_runs_away(piece: str) -> None:
    """Sixteen times as much text takes at most about sixteen times as long."""
    import time

    def seconds(size: int) -> float:
        text = ("form-data </ " + piece * (size // len(piece)))[:size]
        best = 1e9
        for _ in range(5):
            begun = time.thread_time()
            patterns.search(text)
            placed.search(text)
            spelled.plain(text)
            best = min(best, time.thread_time() - begun)
        return best

    small, large = seconds(4000), seconds(64_000)
    assert large <= 48 * small + 0.002
