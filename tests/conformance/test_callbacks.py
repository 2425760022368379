from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest

from dispatcher.conformance.receiver.callbacks import CallbackIssuer, CallbackRefused, Claims
from dispatcher.errors import ConfigError

NOW = 1_700_000_000
SECRET = "callback-secret-of-32-bytes-----"
#: long enough for any of the algorithms
LONG_SECRET = SECRET * 2
BASE = "https://results.test:8443"


def issuer(**settings: Any) -> CallbackIssuer:
    return CallbackIssuer(SECRET, **settings)


def path_of(url: str) -> str:
    return url.removeprefix(BASE)


def issued(**changed: Any) -> str:
    """The path of a callback URL."""
    values: dict[str, Any] = {"id": "d1", "path": "/results", "res_id": "r1", "ttl": 60, "now": NOW}
    return path_of(issuer().url(BASE, **{**values, **changed}))


def token(claims: dict[str, object] | None = None, *, secret: str = SECRET, algorithm: str = "HS256") -> str:
    values = {"_id": "d1", "path": "/results", "res_id": "r1", "exp": NOW + 60}
    given = {name: value for name, value in {**values, **(claims or {})}.items() if value is not ...}
    return jwt.encode(given, secret, algorithm=algorithm)


def status(found: Claims | CallbackRefused) -> int | None:
    return found.status if isinstance(found, CallbackRefused) else None


def test_a_url_carries_its_permission() -> None:
    url = issuer().url(BASE + "/", id="d1", path="results/json", res_id="r 1/ü", ttl=60, now=NOW)
    assert url.startswith("https://results.test:8443/results/json/r%201%2F%C3%BC/eyJ")
    found = issuer().check(path_of(url), NOW)
    assert found == Claims(id="d1", path="/results/json", res_id="r 1/ü", expires_at=NOW + 60)
    # as any other library reads it
    assert jwt.decode(
        url.rpartition("/")[2], SECRET, algorithms=["HS256"], options={"verify_exp": False, "require": ["exp"]}
    ) == {"_id": "d1", "path": "/results/json", "res_id": "r 1/ü", "exp": NOW + 60}


@pytest.mark.parametrize(
    ("after", "refused"), [(-1e6, None), (0, None), (59.999, None), (60, "expired"), (60.001, "expired")]
)
def test_it_ends_at_its_time(after: float, refused: str | None) -> None:
    found = issuer().check(issued(), NOW + after)
    assert status(found) == (401 if refused else None)
    if isinstance(found, CallbackRefused):
        assert refused
        assert refused in found.reason


def test_a_short_life_is_a_life() -> None:
    path = issued(ttl=0.2, now=NOW + 0.9)
    assert status(issuer().check(path, NOW + 0.9)) is None
    assert status(issuer().check(path, NOW + 2)) == 401


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"/results/r1/{token()}", None),
        # written by others, without the slash
        (f"/results/r1/{token({'path': 'results'})}", None),
        (f"/results/r%31/{token()}", None),
        (f"/results/r2/{token()}", 403),
        (f"/results/R1/{token()}", 403),
        (f"/results/r1%20/{token()}", 403),
        # decoded once, not twice
        (f"/results/r%2531/{token()}", 403),
        (f"/result/r1/{token()}", 403),
        (f"/results//r1/{token()}", 403),
        (f"//results/r1/{token()}", 403),
        (f"/results/results/r1/{token()}", 403),
        (f"/other/../results/r1/{token()}", 403),
        (f"results/r1/{token()}", 403),
        (f"/r1/{token()}", 401),
        (f"/results/r1/{token()}/", 401),
        (f"/results/r1/{token()}x", 401),
        (f"/results/r1/{token()[:-5]}", 401),
        ("/results/r1/", 401),
        ("/results/r1", 401),
        ("/", 401),
        ("", 401),
        ("/results/r1/a.b.c", 401),
        ("/results/r1/" + "a" * 100_000, 401),
        (f"/results/r1/{token()}".replace("eyJ", "eyJ\u2028", 1), 401),
    ],
)
def test_path_and_resource_are_those_of_the_url(path: str, expected: int | None) -> None:
    assert status(issuer().check(path, NOW)) == expected


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": ...},
        {"exp": None},
        {"exp": str(NOW + 60)},
        {"exp": True},
        {"exp": 10**400},
        {"exp": [NOW + 60]},
        {"_id": ...},
        {"_id": ""},
        {"_id": 7},
        {"path": ...},
        {"res_id": ...},
        {"res_id": ["r1"]},
        {"nbf": NOW + 1},
        {"nbf": "soon"},
        {"aud": "somebody else"},
    ],
)
def test_what_a_token_has_to_say(claims: dict[str, object]) -> None:
    assert status(issuer().check(f"/results/r1/{token(claims)}", NOW)) == 401


@pytest.mark.parametrize("claims", [{"exp": NOW + 0.5}, {"nbf": NOW}, {"iat": NOW + 100}, {"extra": {"a": 1}}])
def test_what_a_token_may_say(claims: dict[str, object]) -> None:
    assert status(issuer().check(f"/results/r1/{token(claims)}", NOW)) is None


def unsigned(header: dict[str, object]) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part(header)}.{part({'_id': 'd1', 'path': '/results', 'res_id': 'r1', 'exp': NOW + 60})}."


@pytest.mark.parametrize(
    "given",
    [
        unsigned({"alg": "none", "typ": "JWT"}),
        unsigned({"alg": "None"}),
        unsigned({"alg": "HS256"}),
        unsigned({}),
        # right, with the same secret, by another algorithm
        token(secret=LONG_SECRET, algorithm="HS512"),
        token(secret=LONG_SECRET, algorithm="HS384"),
        token(secret=LONG_SECRET[:-1] + "_"),
    ],
)
def test_the_algorithm_is_ours_to_choose(given: str) -> None:
    one = CallbackIssuer(LONG_SECRET)
    assert status(one.check(f"/results/r1/{given}", NOW)) == 401
    assert status(one.check(f"/results/r1/{token(secret=LONG_SECRET)}", NOW)) is None


def test_single_use() -> None:
    one = issuer(single_use=True)
    path = issued()
    assert status(one.read(path, NOW)) is None, "reading uses nothing up"
    found = one.check(path, NOW)
    assert isinstance(found, Claims)
    again = one.check(path, NOW)
    assert again == CallbackRefused(status=403, reason="the token has been used")
    assert status(one.read(path, NOW, is_repeat=True)) is None
    assert status(one.check(issued(id="d2"), NOW)) is None
    one.release(found)
    assert status(one.check(path, NOW)) is None
    assert [status(issuer().check(path, NOW)) for _ in range(2)] == [None, None]


def test_a_token_written_in_another_way_is_still_the_same() -> None:
    one = issuer(single_use=True)
    path = issued()
    # 256 bits are 43 characters of base64, and 2 bits of the last are not used
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = alphabet.index(path[-1])
    variants = [path[:-1] + alphabet[last ^ change] for change in range(4)]
    assert len(set(variants)) == 4
    assert [status(one.check(variant, NOW)) for variant in variants].count(None) == 1


def test_what_was_used_is_bounded_and_remembered_until_it_expires() -> None:
    one = issuer(single_use=True, capacity=2)
    first, second, third = issued(id="1", ttl=60), issued(id="2", ttl=120), issued(id="3", ttl=300)
    assert [status(one.check(path, NOW)) for path in (second, first, third)] == [None, None, 503]
    assert status(one.check(first, NOW + 59)) == 403
    assert status(one.check(third, NOW + 61)) is None
    assert status(one.check(second, NOW + 61)) == 403


@pytest.mark.parametrize(
    "changed",
    [
        {"path": ""},
        {"path": "/results/../admin"},
        {"path": "/results/./a"},
        {"path": "/results//a"},
        {"path": "/results?x=1"},
        {"path": "/results%2Fa"},
        {"path": "/results\n"},
        {"res_id": ""},
        {"res_id": ".."},
        {"id": ""},
        {"ttl": 0},
        {"ttl": -1},
        {"ttl": float("inf")},
        {"ttl": float("nan")},
    ],
)
def test_what_no_url_is_made_of(changed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        issued(**changed)


@pytest.mark.parametrize(
    "base",
    ["", "results.test", "ftp://results.test", "https://", "https://a:b@results.test", "https://results.test/x",
     "https://results.test?x=1", "https://results.test#x", "https://[::1", "https://results.test:port"],
)  # fmt: skip
def test_what_is_no_base(base: str) -> None:
    with pytest.raises(ConfigError) as caught:
        issuer().url(base, id="d1", path="/results", res_id="r1", ttl=60)
    assert "results.test" not in str(caught.value)


def test_secrets_are_long_and_stay_hidden() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        CallbackIssuer("x" * 31)
    with pytest.raises(ConfigError, match="capacity"):
        CallbackIssuer(SECRET, single_use=True, capacity=0)
    assert SECRET not in repr(issuer())


@pytest.mark.parametrize("path", [f"/results/r2/{token()}", "/results/r1/" + "canary.canary.canary", "/canary"])
def test_a_reason_repeats_nothing(path: str) -> None:
    found = issuer().check(path, NOW)
    assert isinstance(found, CallbackRefused)
    assert not [part for part in (*path.split("/"), "canary") if part and part in found.reason]
