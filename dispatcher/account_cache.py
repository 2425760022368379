"""Accounts' settings in memory: every delivery needs them, and they seldom change."""

from __future__ import annotations

import asyncio
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
        self._reading: dict[str, asyncio.Task[Account]] = {}

    def known(self, account: str) -> Account | None:
        """The account's settings, if they were read within MAX_AGE."""
        cached = self._cached.get(account)
        return cached[1] if cached is not None and cached[0] > monotonic() else None

    async def get(self, account: str) -> Account:
        """The account's settings, at most MAX_AGE old."""
        known = self.known(account)
        if known is not None:
            return known
        reading = self._reading.get(account)
        if reading is None:
            # One for all that wait: a busy account's deliveries would each read the same row.
            reading = self._reading[account] = asyncio.create_task(self._read(account))
        return await asyncio.shield(reading)

    def forget(self, account: str) -> None:
        """Read this account again when it is next asked for."""
        self._cached.pop(account, None)
        self._reading.pop(account, None)

    async def _read(self, account: str) -> Account:
        now = monotonic()
        try:
            fresh = await self._store.account(account)
            if self._is_awaited(account):
                if len(self._cached) >= self.MAX_SIZE:
                    self._cached.clear()
                self._cached[account] = (now + self.MAX_AGE, fresh)
        finally:
            if self._is_awaited(account):
                del self._reading[account]
        return fresh

    def _is_awaited(self, account: str) -> bool:
        """Whether this task reads it for all; told to forget meanwhile, what it read may be out of date."""
        return self._reading.get(account) is asyncio.current_task()
