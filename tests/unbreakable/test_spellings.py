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
    "mysql": "mysql -u root -p{} orders", "mysqldump": "$ mysqldump -p'{}' --all", "sshpass": "sshpass -p {} ssh x",
    "two programs": "sshpass -pa mysql -p{}", "redis-cli": "redis-cli -h x -a {} ping",
    "docker": "docker login -p {} x",
    "mongo": "mongosh -u a -p {}", "ldap": "ldapsearch -x -w {}", "zip": "unzip -P {} a.zip",
    "blanks of a query": "https://x/?q=1&note=mysql+-u+app+-p{}+orders", "and a sentence": "/a?note=the+password+is+{}",
    "Cyrillic letter": "p\u0430ssword={}", "Greek letter": '{{"t\u03bfken": "{}"}}',
    "more of them": "\u0455e\u0441ret: {}",
    "mathematical letters": "\U0001d429\U0001d41a\U0001d42c\U0001d42c\U0001d430\U0001d428\U0001d42b\U0001d41d={}",
}  # fmt: skip
NAMES = ["p\u0430ssword", "\u0430piKey", "X-\u0391uth-Token", "\uff50\uff41\uff53\uff53\uff57\uff44", "pass\u200bword",
         "cl\u0456ent_s\u0435cret"]  # fmt: skip
FORMS = [
    "030 1234567", "(030) 123 45 67", "089/1234567", "0151-23456789", "015123456789", "06 12 34 56 78",
    "06.12.34.56.78",
    "07700 900123", "0171 / 2345 678", "phone 4155552671", "tel.: 415 555 26 71", '"mobile": "4155552671"',
    "call 612-345-678", "Telefonnummer 30 901820",
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
    "de01000000000000000000", "mysql -u root -p orders", "mkdir -p a/b", "ssh -p 2222 host", "redis-cli -n 2",
    "cp -a b c",
    "docker run -p 8080:80 x", "\u043f\u0430\u0440\u043e\u043b\u044c \u043d\u0435 \u0432\u0435\u0440\u0435\u043d",
    "0.0123456789", "01-02-2026", "2026-01-02 03:04:05",
    "took 0123 ms", "1763845862123", "order 0000123456", "01 02 03 04 05 06 07 08", "10.0.0.1", "09:30 0815 4711",
    "called 3 times in 250 ms", "cell 12 of 200", "called 1000000 times", "code 0123 4567",
]  # fmt: skip


@pytest.mark.parametrize("text", IN_TEXT.values(), ids=IN_TEXT)
def test_r20_a_secret_is_found_in_any_spelling(text: str) -> None:
    """R20: nothing of the secret is left, and a second search finds nothing more."""
    found = redaction.redact(text.format(SECRET))
    assert SECRET not in found
    assert redaction.redact(found) == found


@pytest.mark.parametrize("name", NAMES)
def test_r20_a_field_is_known_by_its_name_in_any_spelling(name: str) -> None:
    """R20: letters of other scripts that look the same, wide and invisible ones hide no field's name."""
    assert redaction.field(name, SECRET) == "[redacted]"


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
              "a:b@", "//a:", "//a:b/", "is 1", "key is ", '="', "0", "01 ", "(01) ", "phone ", "tel 1", "mysql -p",
              "mysql ", " -p",
              "p\u0430", "\u0430", "?a=+", "&a=", "?a=b+c",
              'authorization: ="', ":thin:a/", "00 1 ", "+1/1"],
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
