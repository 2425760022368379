"""What is kept of an answer holds nothing of the request's URL or secrets."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote, unquote

import pytest

from dispatcher.delivery import scrub
from dispatcher.delivery.scrub import KEPT_BODY, KEPT_HEADERS, MAX_NEEDLES, MAX_PLAIN, REDACTED, Scrubber, is_plain
from subscriptions.models import Headers
from subscriptions.secrets import Secret

TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJyZXNfaWQiOiI0MiJ9.c2lnbmF0dXJl"
PATH = f"/results/42/{TOKEN}?key=caf%C3%A9-s3cr3t&n=1"
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw4V"

HEADERS = (("X-Secret", "header-value-1"), ("Authorization", "Bearer opaque-thing"))
SECRETS = (Secret(SECRET), Secret("the-account-default"))


@pytest.fixture
def scrubber() -> Scrubber:
    return Scrubber(HEADERS, path=PATH, secrets=SECRETS)


@pytest.mark.parametrize(
    "echo",
    [
        PATH,
        TOKEN,
        TOKEN.split(".")[1],
        TOKEN.upper(),
        unquote(PATH),
        "café-s3cr3t",
        "caf%C3%A9-s3cr3t",
        "caf%c3%a9-s3cr3t",
        SECRET,
        SECRET.removeprefix("whsec_"),
        "the-account-default",
        "header-value-1",
        "opaque-thing",
    ],
)
def test_an_echo_is_taken_out_of_body_and_headers(scrubber: Scrubber, echo: str) -> None:
    headers, body = scrubber.answer((("Location", f"https://api.example.com{echo}"),), f"<p>{echo}</p>".encode())
    assert body is not None
    for kept in (body, headers[0][1]):
        assert REDACTED in kept
        assert echo.lower() not in kept.lower()


@pytest.mark.parametrize(
    "echo",
    [
        json.dumps({"path": 'a/"quoted"-s3cr3t'}),
        PATH.replace("/", r"\/"),
        quote(PATH, safe=""),
        quote(quote(PATH, safe=""), safe=""),
        "".join(f"&#{ord(character)};" for character in TOKEN),
        "".join(f"\\u{ord(character):04x}" for character in SECRET),
        TOKEN[:30],
        SECRET[:20],
        TOKEN[:20] + "…",
    ],
)
def test_an_echo_that_is_escaped_or_cut_is_taken_out_too(echo: str) -> None:
    headers = (("X-Secret", 'a/"quoted"-s3cr3t'),)
    scrubber = Scrubber(headers, path=PATH, secrets=SECRETS)
    _, body = scrubber.answer((), f"you sent {echo} to us".encode())
    assert body is not None
    assert REDACTED in body
    for rest in (TOKEN[12:20], SECRET[12:18], "s3cr3t"):
        assert rest not in unquote(unquote(body))


def test_what_does_not_identify_stays(scrubber: Scrubber) -> None:
    headers, body = scrubber.answer((("Content-Type", "text/plain"),), b"result 42 was stored")
    assert headers == (("Content-Type", "text/plain"),)
    assert body == "result 42 was stored"


def test_a_token_across_the_cut_is_taken_out_before_it(scrubber: Scrubber) -> None:
    padding = "x" * (KEPT_BODY - 10)
    _, body = scrubber.answer((), f"{padding}{TOKEN}".encode())
    assert body is not None
    assert TOKEN[:8] not in body
    assert len(body) == KEPT_BODY


def test_name_and_password_of_basic_are_taken_out() -> None:
    basic = base64.b64encode(b"hook-user:hook-password").decode()
    headers = (("Authorization", f"Basic {basic}"),)
    _, body = Scrubber(headers, path=PATH, secrets=SECRETS).answer((), f"{basic} is hook-user:hook-password".encode())
    assert body is not None
    assert "hook-user" not in body
    assert "hook-password" not in body
    assert basic not in body


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_text_in_which_nothing_would_be_found_is_not_kept(scrubber: Scrubber, encoding: str) -> None:
    assert scrubber.answer((), f"you sent {PATH}".encode(encoding)) == ((), REDACTED)


def test_with_too_much_to_look_for_nothing_is_kept() -> None:
    words = " ".join(f"word-{number:05}" for number in range(MAX_NEEDLES + 1))
    scrubber = Scrubber((("X-Words", words),), path=PATH, secrets=())
    assert scrubber.answer((("X", "anything"),), b"anything") == (((REDACTED, REDACTED),), REDACTED)


def test_cookies_are_not_kept(scrubber: Scrubber) -> None:
    assert scrubber.answer((("Set-Cookie", "session=1"),), b"")[0] == ()


def test_bytes_that_are_no_text_do_no_harm(scrubber: Scrubber) -> None:
    _, body = scrubber.answer((), b"\xff\xfe" + base64.b64encode(b"anything"))
    assert body is not None


@pytest.mark.parametrize(
    ("name", "value", "stays"),
    [
        ("Content-Length", "12345", True),
        ("Content-Length", "123456", False),
        ("Connection", "keep-alive", True),
        ("Connection", "keep-alive-1", False),
        ("X-Connection", "keep-alive", False),
        ("Date", "Sat, 28 Nov 2026 15:18:48 GMT", True),
        ("Date", "Sat, 28 Nov 2026 15:18:48 GMT 123456", False),
    ],
)
def test_values_that_any_server_sends_stay_and_the_nearest_others_are_looked_at(
    name: str, value: str, stays: bool
) -> None:
    scrubber = Scrubber((), path="/123456/keep-alive", secrets=())
    [(_, kept)] = scrubber.answer(((name, value),), b"")[0]
    assert (kept == value) is stays


PLAIN = (("Server", "nginx/1.22"), ("Date", "Sat, 28 Nov 2026 22:00:00 GMT"), ("Content-Length", "0"))


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (PLAIN, b"", True),
        ((), b"", True),
        (PLAIN, b"x", False),
        ((*PLAIN, ("Server", "the-token")), b"", False),
        ((*PLAIN, ("Set-Cookie", "a=b")), b"", False),
        (PLAIN[:1] * KEPT_HEADERS, b"", True),
        (PLAIN[:1] * (KEPT_HEADERS + 1), b"", False),
    ],
)
def test_an_answer_that_can_tell_nothing_is_known_each_time(headers: Headers, body: bytes, *, expected: bool) -> None:
    for _ in range(3):
        assert is_plain(headers, body) is expected
    if expected:
        assert Scrubber((), path="/the-token", secrets=()).answer(headers, body) == (headers, None)


def test_of_plain_answers_so_many_are_remembered() -> None:
    for number in range(MAX_PLAIN + 2):
        assert is_plain((("Content-Length", str(number)),), b"")
        assert len(scrub._seen_plain) <= MAX_PLAIN
