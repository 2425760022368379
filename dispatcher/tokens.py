"""API tokens: JWTs signed by this installation (RFC 7519), and what they allow."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import jwt

from dispatcher.errors import ConfigError, Problem
from dispatcher.ids import ACCOUNT_NAME, new_id
from dispatcher.installation import Installation
from dispatcher.store import accounts
from subscriptions.keyring import Keyring, KeyringError

AUDIENCE = "webhook-dispatcher"
ALGORITHM = "HS256"
_PURPOSE = "api-token"

#: what an account's own token may allow
ACCOUNT_SCOPES = (
    "tasks:read",
    "tasks:write",
    "tasks:process",
    "events:read",
    "events:write",
    "subscriptions:read",
    "subscriptions:write",
    "deliveries:read",
    "deliveries:write",
    "account:write",
)
#: what holds for the whole installation: working on every account's tasks, and reading metrics
INSTALLATION_SCOPES = ("processor", "operator")
SCOPES = (*ACCOUNT_SCOPES, *INSTALLATION_SCOPES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who makes a request, and what they may do."""

    account: str
    scopes: frozenset[str]
    jti: str
    #: Unix seconds; None means that the token does not end by itself
    expires_at: int | None


async def issue(
    installation: Installation,
    *,
    account: str,
    scopes: Iterable[str],
    actor: str,
    ttl: float | None = None,
    note: str | None = None,
) -> str:
    """Make a token and record it; the token itself is kept nowhere. `ttl` is seconds, None for no end.

    Raises ConfigError when the account's name or a scope is not valid.
    """
    wanted = list(dict.fromkeys(scopes))
    if not ACCOUNT_NAME.match(account):
        raise ConfigError("an account's name has 1 to 64 letters, digits, dots, dashes and underscores")
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        raise ConfigError(f"name at least one scope of: {', '.join(SCOPES)}")
    now = int(time.time())
    jti = new_id()
    expires_at = None if ttl is None else now + int(ttl)
    await accounts.add_token(
        installation.database,
        jti=jti,
        account=account,
        scopes=wanted,
        note=note,
        expires_at=None if expires_at is None else expires_at * 1000,
        actor=actor,
    )
    kid, key = installation.keyring.signing_key(_PURPOSE)
    claims = {
        "iss": installation.issuer,
        "aud": AUDIENCE,
        "sub": account,
        "iat": now,
        "jti": jti,
        "scope": wanted,
    }
    if expires_at is not None:
        claims["exp"] = expires_at
    return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": kid})


def read(token: str, *, keyring: Keyring, issuer: str) -> Caller:
    """Who a token speaks for. Whether it was revoked is not in it. Raises Problem `unauthorized`."""
    try:
        kid = jwt.get_unverified_header(token).get("kid")
        _, key = keyring.signing_key(_PURPOSE, kid if isinstance(kid, str) else "")
        claims = jwt.decode(
            token,
            key,
            algorithms=[ALGORITHM],
            audience=AUDIENCE,
            issuer=issuer,
            options={"require": ["iss", "aud", "sub", "iat", "jti"]},
        )
        return Caller(
            account=claims["sub"],
            scopes=frozenset(claims["scope"]),
            jti=claims["jti"],
            expires_at=claims.get("exp"),
        )
    except (jwt.InvalidTokenError, KeyringError, KeyError, TypeError, ValueError):
        raise Problem("unauthorized", "The token is not valid.") from None
