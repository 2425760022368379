"""Accounts' settings in memory: every delivery needs them, and they seldom change."""

from __future__ import annotations

from time import monotonic

from dispatcher.store import Store
from dispatcher.store.accounts import Account


class AccountCache:
    """Accounts' settings, read again after a moment, so that a change takes effect everywhere soon."""

    #: seconds
    MAX_AGE = 2.0
    #: accounts
    MAX_SIZE = 10_000

    def __init__(self, store: Store) -> None:
        self._store = store
        self._cached: dict[str, tuple[float, Account]] = {}

    async def get(self, account: str) -> Account:
        """The account's settings, at most MAX_AGE old."""
        now = monotonic()
        cached = self._cached.get(account)
        if cached is not None and cached[0] > now:
            return cached[1]
        fresh = await self._store.account(account)
        if len(self._cached) >= self.MAX_SIZE:
            self._cached.clear()
        self._cached[account] = (now + self.MAX_AGE, fresh)
        return fresh

    def forget(self, account: str) -> None:
        """Read this account again when it is next asked for."""
        self._cached.pop(account, None)
