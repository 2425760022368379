"""The store as the rest of the program sees it: typed calls, one committer behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dispatcher.store import accounts, changes, deliveries, idempotency, intake, leasing, ledger, sessions, upkeep, work
from dispatcher.store.accounts import Account
from dispatcher.store.committer import Committer
from dispatcher.store.database import Database
from dispatcher.store.records import (
    Callback,
    IdempotencyKey,
    LaneClaim,
    LeasedBatch,
    LeasedTask,
    NewTask,
    Released,
    Replayed,
    Report,
    Settled,
    TaskClaim,
    TaskReport,
    TaskSettled,
)
from subscriptions.keyring import Keyring


class Store:
    """One process's way to the database. Open it with `open()`; every writing call returns after its commit.

    Any call may raise StoreUnavailable: nothing was stored, and trying again may help.
    """

    def __init__(self, database: Database, keyring: Keyring, committer: Committer, *, session_ttl: float) -> None:
        self.database = database
        self.keyring = keyring
        self._committer = committer
        self._session_ttl = session_ttl

    @classmethod
    async def open(cls, database: Database, keyring: Keyring, *, session_ttl: float, alone: bool) -> Store:
        """Begin a session (`alone`: no other process uses this database) and start the committer."""
        session = await sessions.open_session(database, ttl=session_ttl, alone=alone)
        committer = Committer(database, session=session)
        committer.start()
        return cls(database, keyring, committer, session_ttl=session_ttl)

    async def close(self) -> None:
        """Commit what has gathered, and end the session."""
        await self._committer.stop()
        await sessions.close_session(self.database, self._committer.session)

    async def heartbeat(self) -> bool:
        """Keep this process's leases alive. False when the session is over."""
        return await sessions.heartbeat(self.database, self._committer.session, ttl=self._session_ttl)

    async def renew_session(self) -> None:
        """Begin a new session after the old one was over. What was leased under the old one is lost to us."""
        self._committer.session = await sessions.open_session(self.database, ttl=self._session_ttl, alone=False)

    # Tasks

    async def accept(
        self,
        tasks: Sequence[NewTask],
        *,
        key: IdempotencyKey | None,
        answer: bytes,
        then: Callable[[Replayed | Exception | None], None],
    ) -> Replayed | None:
        """Store tasks, all or none. Returns the earlier answer if the key was used before.

        `then` is called once, with None when these tasks were stored, and with anything else when they were not.
        Raises Problem when the key belongs to another body.
        """
        try:
            rows = [intake.rows_of(task, self.keyring) for task in tasks]
        except Exception as exc:
            then(exc)
            raise
        request = intake.Request(rows=rows, key=key, answer=answer)
        return await self._committer.write(intake.accept, request, weight=len(rows), then=then)

    async def earlier_answer(self, key: IdempotencyKey) -> Replayed | None:
        """What an earlier request under this key was answered. Raises Problem when it had another body."""
        return await idempotency.earlier_answer(self.database, key)

    async def lease_tasks(self, claim: TaskClaim) -> list[LeasedTask]:
        """Lease due tasks."""
        return await self._committer.write(work.lease, claim, weight=claim.limit)

    async def renew_task(self, renewal: work.Renewal) -> int:
        """Prolong a remote lease; returns its new end. Raises LeaseLost."""
        return await self._committer.write(work.renew, renewal)

    async def finish_task(self, report: TaskReport) -> TaskSettled:
        """Store a result, or queue another try. Raises LeaseLost."""
        return await self._committer.write(work.finish, report)

    async def release_task(self, release: work.TaskRelease) -> None:
        """Give a task back that was not begun."""
        await self._committer.write(work.release, release)

    async def cancel_task(self, account: str, task_id: str) -> None:
        """Withdraw a task. Raises Problem."""
        await self._committer.write(changes.cancel, changes.Cancellation(account=account, task_id=task_id))

    async def replace_callback(self, account: str, task_id: str, callback: Callback) -> str:
        """Give a task another callback; returns the lane of its delivery. Raises Problem."""
        wish = changes.NewCallback(account=account, task_id=task_id, callback=callback, keyring=self.keyring)
        return await self._committer.write(changes.replace_callback, wish)

    # Deliveries

    async def lease(self, lanes: Sequence[LaneClaim]) -> LeasedBatch:
        """Lease due deliveries, lane by lane."""
        claims = leasing.Claims(lanes=lanes, keyring=self.keyring)
        return await self._committer.write(leasing.lease, claims, weight=sum(claim.limit for claim in lanes))

    async def due_lanes(self, *, after: str, limit: int) -> dict[str, float]:
        """Lanes beyond `after` that have pending work, with the seconds until it is due."""
        return await self._committer.write(leasing.due_lanes, (after, limit))

    async def settle(self, report: Report) -> Settled:
        """Record an attempt and what follows from it. Raises LeaseLost."""
        return await self._committer.write(deliveries.settle, report)

    async def release(self, release: deliveries.Release) -> Released | None:
        """Give back the lease of a delivery that was not sent; tells where it waits now, if it does."""
        return await self._committer.write(deliveries.release, release)

    async def redeliver(
        self, account: str, delivery_id: str, key: IdempotencyKey | None
    ) -> Replayed | changes.Redelivered:
        """Send an ended delivery again, as a new one. Raises Problem."""
        wish = changes.Redelivery(account=account, delivery_id=delivery_id, key=key)
        return await self._committer.write(changes.redeliver, wish)

    # Upkeep: each returns how many rows it handled

    async def reap(self) -> int:
        """Free the leases of dead sessions and of late remote processors."""
        return await self._committer.write(upkeep.reap, None)

    async def end_windows(self) -> int:
        """Expire what waits for a callback whose window is over."""
        return await self._committer.write(upkeep.end_windows, None, weight=upkeep.BATCH)

    async def delete_old(self, age: float) -> int:
        """Delete what ended more than `age` seconds ago, one batch."""
        return await self._committer.write(upkeep.delete_old, round(age * 1000), weight=upkeep.BATCH)

    async def forget_answers(self) -> int:
        """Delete old idempotency answers, one batch."""
        return await self._committer.write(upkeep.forget_answers, None, weight=upkeep.BATCH)

    async def unknown_leases(self, known: frozenset[str]) -> set[str]:
        """Deliveries leased to this process that are not among those it knows."""
        return await self._committer.write(upkeep.unknown_leases, known)

    async def interrupt(self, delivery_ids: Sequence[str]) -> int:
        """Free leases of our own that nobody works on."""
        return await self._committer.write(upkeep.interrupt, delivery_ids, weight=len(delivery_ids))

    # Reading

    async def account(self, account: str) -> Account:
        """An account's settings."""
        return await accounts.read_account(self.database, self.keyring, account)

    async def ledger(self, account: str) -> dict[str, int]:
        """An account's counts of deliveries."""
        async with self.database.read() as connection:
            return await ledger.read(connection, account)
