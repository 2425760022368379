"""Who may call what: tokens good and forged, scopes, revocation, accounts apart."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from dispatcher import tokens
from dispatcher.installation import Installation, open_installation
from tests.support.api import Json, client_of, client_with, leading_to, problem, stored, token
from tests.support.leaks import kept_by
from tests.support.ledgers import ask
from tests.support.patience import PROMPTLY
from tests.support.receiver import Receiver
from tests.support.server import Server, until
from tests.support.stores import Home

OTHER = "0" * 32


@pytest.fixture(scope="module")
def installation(server: Server) -> Iterator[Installation]:
    """The server's own keys: what a forger would need."""
    found = asyncio.run(open_installation(leading_to(server)))
    yield found
    asyncio.run(found.database.close())


@pytest.fixture(scope="module")
def true_token(server: Server) -> str:
    return token(server, "acme", *tokens.ACCOUNT_SCOPES)


def parts(bearer: str) -> tuple[Json, Json]:
    return jwt.get_unverified_header(bearer), jwt.decode(bearer, options={"verify_signature": False})


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def unsigned(header: Json, claims: Json, signature: str = "") -> str:
    return f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}.{signature}"


def signed(header: Json, claims: Json, key: bytes) -> str:
    text = unsigned(header, claims).rstrip(".")
    return f"{text}.{b64(hmac.digest(key, text.encode(), hashlib.sha256))}"


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer",
        "Bearer x",
        "Bearer a.b.c",
        "Bearer ..",
        "Bearer eyJhbGciOiJIUzI1NiJ9.e30.",
        "Basic dXNlcjpwYXNz",
        "Bearer \xe9\xff",
        "Bearer " + "x" * 10_000,
        "Bearer W10.W10.W10",
    ],
)
def test_no_token_or_garbage_is_unauthorized(server: Server, authorization: str | None) -> None:
    headers = {} if authorization is None else {b"Authorization": authorization.encode("latin-1")}
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        for method, path in [("POST", "/tasks"), ("POST", "/tasks/batch"), ("GET", "/tasks"), ("GET", "/ledger")]:
            problem(client.request(method, path, headers=headers), 401, "unauthorized")


def test_a_token_of_another_kind_of_header_is_unauthorized(server: Server, true_token: str) -> None:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        problem(client.get("/account", headers={"Authorization": f"Token {true_token}"}), 401, "unauthorized")
        problem(client.get("/account", params={"access_token": true_token}), 401, "unauthorized")
        assert client.get("/account", headers={"Authorization": f"bearer {true_token}"}).status_code == 200


FORGERIES: dict[str, Callable[[Json, Json, bytes], str]] = {
    "alg none": lambda header, claims, key: unsigned(header | {"alg": "none"}, claims),
    "alg None": lambda header, claims, key: unsigned(header | {"alg": "None"}, claims),
    "alg none, with the signature": lambda header, claims, key: unsigned(header | {"alg": "none"}, claims, "AAAA"),
    "no alg": lambda header, claims, key: signed({"kid": header["kid"]}, claims, key),
    "no signature": lambda header, claims, key: unsigned(header, claims),
    "another HMAC": lambda header, claims, key: jwt.encode(
        claims, key * 2, algorithm="HS512", headers={"kid": header["kid"]}
    ),
    "alg RS256 over an HMAC": lambda header, claims, key: signed(header | {"alg": "RS256"}, claims, key),
    "empty key": lambda header, claims, key: signed(header, claims, b""),
    "kid as key": lambda header, claims, key: signed(header, claims, str(header["kid"]).encode()),
    "issuer as key": lambda header, claims, key: signed(header, claims, claims["iss"].encode()),
    "no kid": lambda header, claims, key: signed({"alg": "HS256"}, claims, key),
    "empty kid": lambda header, claims, key: signed(header | {"kid": ""}, claims, b""),
    "unknown kid": lambda header, claims, key: signed(header | {"kid": "k-unknown"}, claims, key),
    "kid is a path": lambda header, claims, key: signed(header | {"kid": "../../../dev/null"}, claims, b""),
    "kid is a number": lambda header, claims, key: signed(header | {"kid": 1}, claims, key),
    "kid is an object": lambda header, claims, key: signed(header | {"kid": {}}, claims, key),
    "key brought along": lambda header, claims, key: signed(
        header | {"jwk": {"kty": "oct", "k": b64(b"k" * 32)}}, claims, b"k" * 32
    ),
    "critical extension": lambda header, claims, key: signed(header | {"crit": ["x"], "x": 1}, claims, key),
    "other issuer": lambda header, claims, key: signed(header, claims | {"iss": OTHER}, key),
    "other audience": lambda header, claims, key: signed(header, claims | {"aud": "dispatcher"}, key),
    "expired": lambda header, claims, key: signed(header, claims | {"exp": int(time.time()) - 1}, key),
    "exp is text": lambda header, claims, key: signed(header, claims | {"exp": "never"}, key),
    "not yet": lambda header, claims, key: signed(header, claims | {"nbf": int(time.time()) + 600}, key),
    "unknown jti": lambda header, claims, key: signed(header, claims | {"jti": OTHER}, key),
    "jti is an object": lambda header, claims, key: signed(header, claims | {"jti": {"a": 1}}, key),
    "sub is a list": lambda header, claims, key: signed(header, claims | {"sub": ["acme"]}, key),
    "scope is a number": lambda header, claims, key: signed(header, claims | {"scope": 1}, key),
    **{
        f"no {name}": lambda header, claims, key, name=name: signed(  # type: ignore[misc]  # a default binds the name
            header, {claim: value for claim, value in claims.items() if claim != name}, key
        )
        for name in ("iss", "aud", "sub", "iat", "jti", "scope")
    },
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
def test_a_forged_token_is_unauthorized(
    server: Server, installation: Installation, true_token: str, forge: Callable[[Json, Json, bytes], str]
) -> None:
    header, claims = parts(true_token)
    _, key = installation.keyring.signing_key("api-token", header["kid"])
    assert signed(header, claims, key).count(".") == 2
    with client_with(server, signed(header, claims, key)) as known_good:
        assert known_good.get("/account").json()["id"] == "acme"
    with client_with(server, forge(header, claims, key)) as forger:
        problem(forger.get("/account"), 401, "unauthorized")
        problem(forger.post("/tasks", json={}), 401, "unauthorized")


def test_a_key_of_another_purpose_signs_no_token(server: Server, installation: Installation, true_token: str) -> None:
    header, claims = parts(true_token)
    for purpose in ("callback_url", "fingerprint", ""):
        try:
            _, key = installation.keyring.signing_key(purpose, header["kid"])
        except Exception:  # noqa: BLE001 - whatever the keyring refuses is no key
            continue
        with client_with(server, signed(header, claims, key)) as forger:
            problem(forger.get("/account"), 401, "unauthorized")


def test_changed_claims_are_unauthorized(server: Server, true_token: str) -> None:
    head, body, signature = true_token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    for change in ({"sub": "other"}, {"scope": ["operator"]}, {"exp": 9_999_999_999}):
        with client_with(server, f"{head}.{b64(json.dumps(claims | change).encode())}.{signature}") as forger:
            problem(forger.get("/account"), 401, "unauthorized")


def test_a_token_of_another_installation_is_unauthorized(server: Server, tmp_path: Path) -> None:
    with client_with(server, token(Home(data_dir=tmp_path / "other"), "acme", *tokens.ACCOUNT_SCOPES)) as stranger:
        problem(stranger.get("/account"), 401, "unauthorized")


def test_a_token_ends_by_itself(server: Server) -> None:
    with client_with(server, token(server, "acme", "tasks:read", ttl=2)) as client:
        assert client.get("/account").status_code == 200
        refused = until(lambda: (now := client.get("/account")).status_code != 200 and now, within=PROMPTLY)
        problem(refused, 401, "unauthorized")


def test_a_revoked_token_is_refused_within_seconds(server: Server) -> None:
    bearer = token(server, "acme", "tasks:read")
    with client_with(server, bearer) as client:
        assert client.get("/account").status_code == 200
        server.cli("token", "revoke", parts(bearer)[1]["jti"])
        refused = until(lambda: (now := client.get("/account")).status_code != 200 and now, within=PROMPTLY)
        problem(refused, 401, "unauthorized")


def test_no_token_is_stored(server: Server, true_token: str) -> None:
    assert ask(server.place, "SELECT * FROM tokens")
    content = kept_by(server)
    for piece in true_token.split(".")[1:]:
        assert piece.encode() not in content


# --- scopes -----------------------------------------------------------------------------------------------

#: what each call needs; the ones with None need any token
CALLS: list[tuple[str, str, str | None]] = [
    ("POST", "/tasks", "tasks:write"),
    ("POST", "/tasks/batch", "tasks:write"),
    ("GET", "/tasks", "tasks:read"),
    ("GET", f"/tasks/{OTHER}", "tasks:read"),
    ("POST", f"/tasks/{OTHER}/cancel", "tasks:write"),
    ("PUT", f"/tasks/{OTHER}/callback", "tasks:write"),
    ("POST", "/tasks/lease", "tasks:process"),
    ("POST", f"/tasks/{OTHER}/renew", "tasks:process"),
    ("POST", f"/tasks/{OTHER}/result", "tasks:process"),
    ("GET", "/deliveries", "deliveries:read"),
    ("GET", f"/deliveries/{OTHER}", "deliveries:read"),
    ("POST", f"/deliveries/{OTHER}/redeliver", "deliveries:write"),
    ("GET", "/ledger", "deliveries:read"),
    ("PATCH", "/account", "account:write"),
    ("GET", "/metrics", "operator"),
    ("GET", "/account", None),
    ("GET", "/processors", None),
    ("GET", "/egress-addresses", None),
]


@pytest.fixture(scope="module")
def by_scopes(server: Server) -> Callable[..., httpx.Client]:
    made: dict[tuple[str, ...], str] = {}

    def client(*scopes: str) -> httpx.Client:
        if scopes not in made:
            made[scopes] = token(server, "scoped", *scopes)
        return client_with(server, made[scopes])

    return client


@pytest.mark.parametrize(("method", "path", "scope"), CALLS)
def test_each_call_needs_its_scope_and_no_other(
    by_scopes: Callable[..., httpx.Client], method: str, path: str, scope: str | None
) -> None:
    if scope is None:
        with by_scopes("tasks:process") as any_client:
            assert any_client.request(method, path).status_code == 200
        return
    stand_in = {"tasks:process": {"processor"}}.get(scope, set())
    without = [name for name in tokens.SCOPES if name != scope and name not in stand_in]
    with by_scopes(*without) as client:
        details = problem(client.request(method, path), 403, "forbidden")
        assert scope in details["detail"]
    for enough in (scope, *stand_in):
        with by_scopes(enough) as client:
            assert client.request(method, path).status_code not in {401, 403}


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json", "/docs"])
def test_what_is_open_to_all_needs_no_token(server: Server, path: str) -> None:
    assert httpx.get(server.url + path, trust_env=False).status_code == 200


def test_metrics_are_the_operators(by_scopes: Callable[..., httpx.Client]) -> None:
    with by_scopes("operator") as client:
        answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "dispatcher_" in answer.text


def test_accounts_see_only_their_own(server: Server, receiver: Receiver) -> None:
    with client_of(server, "left") as left, client_of(server, "right") as right:
        body: dict[str, Any] = {"payload": 1, "callback_url": receiver.url}
        mine = left.post("/tasks", json=body).json()
        theirs = right.post("/tasks", json=body).json()
        assert stored(left) == {"accepted": 1, "tasks": [mine["id"]], "deliveries": [mine["delivery_id"]]}
        assert stored(right) == {"accepted": 1, "tasks": [theirs["id"]], "deliveries": [theirs["delivery_id"]]}
        # equal URLs of two accounts cannot be told to be equal
        prints = [
            c.get(f"/tasks/{t['id']}").json()["callback"]["fingerprint"] for c, t in [(left, mine), (right, theirs)]
        ]
        assert len(set(prints)) == 2
