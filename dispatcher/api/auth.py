"""Who is calling: the bearer token of a request, verified, and looked up so that revocation takes effect."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict

from starlette.requests import Request

from dispatcher.api.reading import Asked, header
from dispatcher.errors import Problem
from dispatcher.installation import Installation
from dispatcher.store import accounts
from dispatcher.tokens import Caller, read

#: seconds for which a token that was found live is not looked up again
MAX_AGE = 2.0
#: tokens that are remembered
MAX_KNOWN = 10_000


class Authenticator:
    """Turns requests into callers. Remembers verified tokens for two seconds, by their hash."""

    def __init__(self, installation: Installation) -> None:
        self._installation = installation
        self._known: OrderedDict[bytes, tuple[float, Caller]] = OrderedDict()
        self._looking: dict[bytes, asyncio.Task[Caller]] = {}

    async def caller(self, request: Request, *, scope: str | None = None) -> Caller:
        """Who makes this request. Raises Problem `unauthorized`, or `forbidden` without the scope."""
        token = _token_of(request)
        digest = _digest_of(token)
        return _with_scope(self._remembered(digest) or await self._looked_up(digest, token), scope)

    def known(self, request: Asked, *, scope: str) -> Caller | None:
        """The same, if it is remembered."""
        caller = self._remembered(_digest_of(_token_of(request)))
        return caller and _with_scope(caller, scope)

    async def processor(self, request: Request) -> str | None:
        """The account whose tasks the caller may work on; None for every account's. Raises Problem."""
        caller = await self.caller(request)
        if "processor" in caller.scopes:
            return None
        return (await self.caller(request, scope="tasks:process")).account

    def _remembered(self, digest: bytes) -> Caller | None:
        known = self._known.get(digest)
        return known[1] if known is not None and known[0] > time.monotonic() and not _is_over(known[1]) else None

    async def _looked_up(self, digest: bytes, token: str) -> Caller:
        looking = self._looking.get(digest)
        if looking is None:
            # One for all that wait: each request of a busy caller would verify the token, and read the same row.
            looking = self._looking[digest] = asyncio.create_task(self._look_up(digest, token.strip()))
        return await asyncio.shield(looking)

    async def _look_up(self, digest: bytes, token: str) -> Caller:
        until = time.monotonic() + MAX_AGE
        self._known.pop(digest, None)
        try:
            caller = read(token, keyring=self._installation.keyring, issuer=self._installation.issuer)
            if not await accounts.is_token_live(self._installation.database, caller.jti):
                raise Problem("unauthorized", "The token is not valid.")
        finally:
            del self._looking[digest]
        self._known[digest] = (until, caller)
        if len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return caller


def _token_of(request: Asked) -> str:
    kind, _, token = (header(request, b"authorization") or "").partition(" ")
    if kind.lower() != "bearer" or not token:
        raise Problem("unauthorized", "Send a token as `Authorization: Bearer …`.")
    return token


def _digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _with_scope(caller: Caller, scope: str | None) -> Caller:
    if scope is not None and scope not in caller.scopes:
        raise Problem("forbidden", f"This needs a token with the scope {scope}.")
    return caller


def _is_over(caller: Caller) -> bool:
    return caller.expires_at is not None and caller.expires_at <= time.time()
