from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.window import MAX_CANDIDATES, MAX_EXPIRY, MAX_KNOWN_HEADER, MAX_TARGET, Token, TokenKind, find_token

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "jwt.json").read_text())["vectors"]
KEY = "a key of at least thirty-two bytes, for HS256"
END = 1_800_000_000
NOTHING = Token(kind=TokenKind.NONE)
OPAQUE = Token(kind=TokenKind.OPAQUE)
ENDLESS = Token(kind=TokenKind.JWT)
ENDS = Token(kind=TokenKind.JWT, expires_at=END)


def part(text: str | bytes) -> str:
    raw = text.encode() if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def token(payload: str | bytes, header: str | bytes = '{"alg":"HS256"}', signature: str = "c2ln") -> str:
    return f"{part(header)}.{part(payload)}.{signature}"


def at(text: str) -> Token:
    return find_token(f"https://api.example.com/results/42/{text}")


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["source"])
def test_published_tokens(vector: dict[str, Any]) -> None:
    assert at(vector["token"]) == Token(kind=TokenKind.JWT, expires_at=vector["exp"])


def test_a_token_of_pyjwt() -> None:
    assert at(jwt.encode({"sub": "42", "exp": END}, KEY, algorithm="HS256")) == ENDS
    assert at(jwt.encode({"sub": "42"}, KEY, algorithm="HS256")) == ENDLESS


GOOD = token(f'{{"exp":{END}}}')


@pytest.mark.parametrize(
    "target",
    [
        f"https://api.example.com/results/42/{GOOD}",
        f"https://api.example.com/{GOOD}/results",
        f"https://api.example.com?{GOOD}",
        f"https://api.example.com/r?id=1&token={GOOD}&x=2",
        f"https://api.example.com/r?token={GOOD}#part",
        f"/results/{GOOD}",
        f"/results/{GOOD}?next=https://example.com/a/b",
        f"/results?token={GOOD}",
        f"https://api.example.com/r?token={GOOD.replace('.', '%2E')}",
        f"https://api.example.com/{''.join(f'%{byte:02x}' for byte in GOOD.encode())}",
    ],
)
def test_where_a_token_may_stand(target: str) -> None:
    assert find_token(target) == ENDS


@pytest.mark.parametrize(
    "target",
    [
        f"https://{GOOD}/results",
        f"https://api.example.com/results#{GOOD}",
        f"https://api.example.com/results?{GOOD}=1",
    ],
)
def test_where_a_token_does_not_count(target: str) -> None:
    assert find_token(target) == NOTHING


def test_percent_encoding_is_undone_once() -> None:
    assert find_token("/r/" + quote(GOOD.replace(".", "%2E"))).kind is not TokenKind.JWT


def test_of_several_tokens_the_earliest_end_counts() -> None:
    later = token(f'{{"exp":{END + 10}}}')
    assert find_token(f"/r/{later}/{GOOD}?t={later}&u={token('{}')}") == ENDS


@pytest.mark.parametrize(
    ("payload", "end"),
    [
        ('{"exp":0}', 0.0),
        (f'{{"exp":{END}.25}}', END + 0.25),
        ('{"exp":1.8e9}', END),
        (f'{{"exp":{MAX_EXPIRY}}}', MAX_EXPIRY),
        (f'{{"exp":{MAX_EXPIRY + 1}}}', None),
        ('{"exp":-1}', None),
        ('{"exp":-0.5}', None),
        ('{"exp":1e400}', None),
        ('{"exp":NaN}', None),
        ('{"exp":Infinity}', None),
        ('{"exp":-Infinity}', None),
        ('{"exp":' + "9" * 5000 + "}", None),
        ('{"exp":true}', None),
        ('{"exp":false}', None),
        ('{"exp":null}', None),
        (f'{{"exp":"{END}"}}', None),
        (f'{{"exp":[{END}]}}', None),
        ('{"exp":{}}', None),
        (f'{{"EXP":{END}}}', None),
        (f'{{"a":{{"exp":{END}}}}}', None),
        ("{}", None),
    ],
)
def test_what_counts_as_an_end(payload: str, end: float | None) -> None:
    assert at(token(payload)) == Token(kind=TokenKind.JWT, expires_at=end)


@pytest.mark.parametrize(
    "text",
    [
        token("[]"),
        token("1"),
        token('"exp"'),
        token("{"),
        token(b"\xff\xfe"),
        token('{"exp":1}'.encode("utf-16")),
        token("[" * 5000),
        token('{"a":' * 2000),
        token("{}", header="[]"),
        token("{}", header="{}"),
        token("{}", header='{"alg":1}'),
        token("{}", header='{"alg":null}'),
        token("{}") + ".more",
        token("{}", signature="s=="),
        token("{}").rpartition(".")[0],
        "." + token("{}"),
        token("{}").replace(".", ".."),
        "x" + token("{}"),
        "a.b.c",
        "...",
        "..",
    ],
)
def test_what_is_no_token(text: str) -> None:
    found = at(text)
    assert found.kind is not TokenKind.JWT
    assert found.expires_at is None


@pytest.mark.parametrize(
    "text",
    [
        "0123456789abcdef",
        "T00000000/B00000000/XXXXXXXXXXX1XXXXXXXabcdefghij",
        "sk-live_9aF3kQ7xT2mV8bLz",
        "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "q83vEjRWeJCrze8SNFZ4kA==",
        "?key=q83vEjRWeJCrze8SNFZ4kA%3D%3D",
        "?q83vEjRWeJCrze8SNFZ4kA",
    ],
)
def test_what_looks_like_a_credential(text: str) -> None:
    assert at(text) == OPAQUE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0123456789abcde",  # 15 characters
        "callback-for-the-orders-of-today",  # no digit
        "1234567890123456",  # no letter
        "aaaaaaaaaaaaaaa1",  # two different characters
        "0192f0c1-7d3a-7c4e-9b1a-3f2d4c5b6a79",
        "0192F0C17D3A7C4E9B1A3F2D4C5B6A79",
        "a sentence with 16 or more letters",
        "é0123456789abcdef",
        "?id=42&state=done",
    ],
)
def test_what_looks_like_none(text: str) -> None:
    assert at(text) == NOTHING


def test_the_host_is_no_credential() -> None:
    assert find_token("https://a1b2c3d4e5f6g7h8.tunnel.example/hook") == NOTHING


def test_what_is_too_far_behind_is_not_looked_at() -> None:
    assert find_token("/" + " " * MAX_TARGET + "/" + GOOD) == NOTHING
    assert find_token("/r?" + "a=b&" * 300 + f"token={GOOD}") == NOTHING


@given(st.one_of(st.text(max_size=400), st.text("%./?#&=:{}[]eyJ0aA1-_", max_size=400)))
def test_any_text_gives_an_answer(target: str) -> None:
    found = find_token(target)
    assert found.expires_at is None or found.kind is TokenKind.JWT


@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=10))
def test_any_three_parts_give_an_answer(header: bytes, payload: bytes, signature: bytes) -> None:
    at(token(payload, header=header, signature=part(signature)))


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()),
        lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(), inner)),
    )
)
def test_any_exp_gives_a_usable_end_or_none(value: object) -> None:
    found = at(token(json.dumps({"exp": value})))
    assert found.kind is TokenKind.JWT
    assert found.expires_at is None or 0 <= found.expires_at <= MAX_EXPIRY


# --- against the definition, read word by word ----------------------------------------------------------------

PART = re.compile(r"[A-Za-z0-9_-]+")


def plainly(target: str) -> Token:
    """What `find_token` promises, with nothing left out to be fast."""
    texts = [unquote(text) for text in written(target[:MAX_TARGET])[:MAX_CANDIDATES]]
    payloads = [payload for payload in map(claims, texts) if payload is not None]
    if payloads:
        exps = [payload.get("exp") for payload in payloads]
        ends = [exp for exp in exps if isinstance(exp, float) and 0 <= exp <= MAX_EXPIRY]
        return Token(kind=TokenKind.JWT, expires_at=min(ends, default=None))
    return OPAQUE if any(map(is_opaque, texts)) else NOTHING


def written(target: str) -> list[str]:
    rest = re.sub(r"\A[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*", "", target).partition("#")[0]
    path, _, query = rest.partition("?")
    return path.split("/") + [pair.partition("=")[2] if "=" in pair else pair for pair in query.split("&")]


def claims(text: str) -> dict[str, object] | None:
    parts = text.split(".")
    if len(parts) != 3 or not all(map(PART.fullmatch, parts[:2])) or (parts[2] and not PART.fullmatch(parts[2])):
        return None
    header, payload = map(unpacked, parts[:2])
    if not isinstance(header, dict) or not isinstance(header.get("alg"), str):
        return None
    return payload if isinstance(payload, dict) else None


def unpacked(part: str) -> object:
    try:
        return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)).decode(), parse_int=float)
    except (ValueError, RecursionError):
        return None


def is_opaque(text: str) -> bool:
    if len(text) < 16 or len(set(text)) < 10:
        return False
    if not (any(character.isalpha() for character in text) and any(character.isdigit() for character in text)):
        return False
    if not all(character.isascii() and (character.isalnum() or character in "._~+/=:-") for character in text):
        return False
    return not re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text.lower())


TEXTS = st.one_of(
    st.text(st.sampled_from("abcXYZ019._~+/=:-%é "), min_size=0, max_size=40),
    st.sampled_from([GOOD, token("{}"), token('{"exp":17}', header='{"alg":""}', signature=""), "0123456789abcdef"]),
    st.builds(
        lambda header, payload, signature: token(payload, header=header, signature=signature),
        st.sampled_from(['{"alg":""}', '{"alg":"HS256","typ":"JWT"}', '{"alg":1}', "{}", "[]", '{"alg":"none"']),
        st.sampled_from(["{}", '{"exp":5}', '{"exp":1.5}', '{"exp":-1}', '{"exp":"5"}', "[]", "{"]),
        st.sampled_from(["", "c2ln", "="]),
    ),
    st.uuids().map(str),
)


@given(
    st.sampled_from(["", "https://api.example.com", "https://0123456789abcdef/", "x:/"]),
    st.lists(TEXTS, max_size=5),
    st.lists(st.tuples(st.sampled_from(["", "k=", "=", "0123456789abcdef="]), TEXTS), max_size=4),
    st.sampled_from(["", "#" + GOOD]),
)
def test_short_cuts_change_nothing(origin: str, path: list[str], query: list[tuple[str, str]], rest: str) -> None:
    target = origin + "/".join(["", *path]) + ("?" + "&".join(map("".join, query)) if query else "") + rest
    assert find_token(target) == plainly(target)
    assert find_token("".join(f"%{byte:02x}" for byte in target.encode())) == plainly(quote(target, safe=""))


@pytest.mark.parametrize("before", [MAX_CANDIDATES - 2, MAX_CANDIDATES - 1])
def test_short_texts_count_among_those_looked_at(before: int) -> None:
    # the path begins with "/", so an empty text comes first
    assert find_token("/a" * before + "/" + GOOD) == (ENDS if before < MAX_CANDIDATES - 1 else NOTHING)


@pytest.mark.parametrize("length", [MAX_KNOWN_HEADER - 1, MAX_KNOWN_HEADER, MAX_KNOWN_HEADER + 1])
def test_a_header_of_any_length_is_read_the_same_twice(length: int) -> None:
    size = length * 3 // 4
    header = '{"alg":"HS256","x":"' + "y" * (size - 22) + '"}'
    assert len(part(header)) in {length, length - 1}
    for exp in (END, END + 1):
        assert at(token(f'{{"exp":{exp}}}', header=header)) == Token(kind=TokenKind.JWT, expires_at=exp)
        assert at(token(f'{{"exp":{exp}}}', header="x" + header)).kind is not TokenKind.JWT


def test_the_shortest_token_is_found() -> None:
    shortest = token("{}", header='{"alg":""}', signature="")
    assert len(shortest) == 19
    assert find_token("/" + shortest) == ENDLESS
