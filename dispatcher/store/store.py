"""The store as the rest of the program sees it: typed calls, one committer behind them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar, cast, overload
from weakref import WeakValueDictionary

import structlog

from dispatcher.errors import LeaseLost, StoreUnavailable
from dispatcher.rounds import each
from dispatcher.store import (
    accounts,
    changes,
    deliveries,
    holding,
    idempotency,
    intake,
    leasing,
    ledger,
    outbox,
    partitions,
    publishing,
    redelivering,
    rotating,
    sessions,
    settling,
    subscribing,
    telling,
    upkeep,
    work,
)
from dispatcher.store.accounts import Account
from dispatcher.store.committer import Committer, Transaction
from dispatcher.store.database import Database
from dispatcher.store.endpoints import Endpoints
from dispatcher.store.looks import Looks
from dispatcher.store.news import News
from dispatcher.store.records import (
    Callback,
    Endpoint,
    IdempotencyKey,
    LaneClaim,
    LeasedBatch,
    LeasedTask,
    Published,
    Released,
    Replayed,
    Report,
    Settled,
    Submission,
    TaskClaim,
    TaskReport,
    TaskSettled,
)
from dispatcher.store.rosters import Roster, Rosters, Subscriber
from subscriptions.keyring import Keyring, KeyringError
from subscriptions.models import Draft, Movement, Subscription, ValidKey
from subscriptions.secrets import SigningKey

log = structlog.get_logger(__name__)

T = TypeVar("T")
Submitted = TypeVar("Submitted", bound=Submission)

#: times that events are planned before their publisher is told to come back
PLANS = 5


class Store:
    """One process's way to the database. Open it with `open()`; every writing call returns after its commit.

    Any call may raise StoreUnavailable: nothing was stored, and trying again may help.
    """

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        committer: Committer,
        *,
        session_ttl: float,
        alone: bool,
        role: str,
    ) -> None:
        self.database = database
        self.keyring = keyring
        self._committer = committer
        self._session_ttl = session_ttl
        self._alone = alone
        self._role = role
        #: monotonic time of the last heartbeat
        self._beat_at = time.monotonic()
        #: monotonic time until which nobody is taken for dead: they may have been cut off as we were
        self._lenient_until = -math.inf
        self._endpoints = Endpoints(keyring)
        self._looks = Looks(database)
        self._rosters = Rosters()
        self._planning: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @classmethod
    async def open(
        cls, database: Database, keyring: Keyring, *, session_ttl: float, alone: bool, role: str = "all"
    ) -> Store:
        """Begin a session (`alone`: no other process uses this database) and start the committer."""
        session = await sessions.open_session(database, ttl=session_ttl, alone=alone, role=role)
        committer = Committer(database, session=session)
        committer.start()
        return cls(database, keyring, committer, session_ttl=session_ttl, alone=alone, role=role)

    async def close(self) -> None:
        """Commit what has gathered, and end the session."""
        await self._committer.stop()
        try:
            await sessions.close_session(self.database, self._committer.session)
        except StoreUnavailable as exc:
            # It ends by itself, and its leases with it.
            log.warning("session_left", reason=str(exc))

    def now(self) -> float:
        """The database's clock, seconds since the epoch: what moments in the database can be compared with."""
        return self._committer.clock.now()

    async def heartbeat(self) -> bool:
        """Keep this process's leases alive. False when the session is over."""
        lives = await sessions.heartbeat(self.database, self._committer.session, ttl=self._session_ttl)
        now = time.monotonic()
        if now - self._beat_at > self._session_ttl / 2:
            # The database was away, perhaps for all of us: the others have their time to come back.
            self._lenient_until = now + self._session_ttl
        self._beat_at = now
        return lives

    async def renew_session(self) -> None:
        """Begin a new session after the old one was over. What was leased under the old one is lost to us."""
        self._committer.session = await sessions.open_session(
            self.database, ttl=self._session_ttl, alone=False, role=self._role
        )
        self._committer.leases.clear()

    @property
    def session(self) -> str:
        """The session that this process's leases hang on."""
        return self._committer.session

    def on_news(self, hear: Callable[[News], None]) -> None:
        """Have this called with what each commit of this process leaves to be done."""
        self._committer.on_news = hear

    async def leave(self) -> None:
        """Tell others that what is left is theirs: this process takes up nothing any more."""
        await self._committer.write(_leave, None, patient=True)

    def take_waits(self) -> list[float]:
        """How long callers waited for their commits, seconds, since the last call."""
        return self._committer.take_waits()

    # Tasks

    def accept(
        self, submissions: Sequence[Submitted], *, then: Callable[[Submitted, Replayed | Exception | None], None]
    ) -> None:
        """Have the tasks of these requests stored.

        `then` is called once for each: with None when its tasks are on disk; else with the earlier answer to its key,
        or with why nothing was stored. It may be called before this returns.
        """

        def put(one: Submitted) -> None:
            rows = [intake.rows_of(task, self.keyring) for task in one.tasks]
            request = intake.Request(rows=rows, key=one.key, answer=one.answer)
            self._committer.put(intake.accept, request, weight=len(rows), then=partial(then, one))

        each(put, submissions, failed=then)

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
        claims = leasing.Claims(lanes=lanes, keyring=self.keyring, endpoints=self._endpoints, shared=not self._alone)
        return await self._committer.write(
            leasing.lease, claims, weight=sum(claim.limit for claim in lanes), patient=True
        )

    async def due_lanes(self, *, after: str, limit: int) -> dict[str, float]:
        """Lanes beyond `after` that have pending work, with the seconds until it is due."""
        return await self._committer.write(leasing.due_lanes, (after, limit), patient=True)

    async def settle(self, reports: Sequence[Report]) -> list[Settled | LeaseLost]:
        """Record attempts together, and what follows from them."""
        return await self._committer.write(settling.settle_all, reports, weight=len(reports), patient=True)

    async def is_current(self, endpoint: Endpoint) -> bool:
        """Whether an endpoint that was opened a while ago is still as it was, or was so within the last second."""
        if endpoint.subscription_id is None:
            return True
        return await self._looks.version(endpoint.subscription_id) == endpoint.version

    async def release(self, release: deliveries.Release) -> Released | None:
        """Give back the lease of a delivery that was not sent; tells where it waits now, if it does."""
        return await self._committer.write(deliveries.release, release, patient=True)

    async def redeliver(
        self, account: str, delivery_id: str, key: IdempotencyKey | None
    ) -> Replayed | redelivering.Redelivered:
        """Send an ended delivery again, as a new one. Raises Problem."""
        wish = redelivering.Redelivery(account=account, delivery_id=delivery_id, key=key)
        return await self._committer.write(redelivering.redeliver, wish)

    async def redeliver_all(self, wish: redelivering.Bulk) -> Replayed | str:
        """Begin to send all ended deliveries again that fit; returns the wish's id. Raises Problem."""
        return await self._committer.write(redelivering.begin, wish)

    # Events

    async def roster(self, account: str) -> Roster:
        """Who of an account's subscriptions wants which events, as known in memory."""
        return await self._rosters.get(self.database, account)

    def planning(self, account: str) -> asyncio.Lock:
        """To be held while an event is planned: an account's filters have one turn among everybody's, not many."""
        lock = self._planning.get(account)
        if lock is None:
            lock = self._planning[account] = asyncio.Lock()
        return lock

    async def opened(self, subscribers: Mapping[str, Subscriber]) -> dict[str, Subscription]:
        """Subscriptions opened for sending; those that the keyring cannot open are not among them."""
        stamps = [one.stamp for one in subscribers.values()]
        known = self._endpoints.known(stamps)
        if len(known) == len(stamps):
            # An event's subscribers mostly are; a transaction that reads nothing costs as much as one that does.
            return known
        async with self.database.read() as connection:
            try:
                return await self._endpoints.get(connection, stamps)
            except KeyringError:
                return {}

    async def publish(
        self,
        publications: Sequence[publishing.Publication],
        *,
        key: IdempotencyKey | None,
        describe: Callable[[Published], bytes],
        answer: publishing.Join,
        source: str,
        then: Callable[[publishing.Accepted | Replayed | publishing.Outdated | Exception], None],
    ) -> publishing.Accepted | Replayed:
        """Store events and the deliveries to their subscribers, all or none.

        `describe` and `answer` say what the caller is told of one event, and of all. Returns the earlier answer if
        the key was used before. `then` is called with what each try brought: `Outdated`, perhaps, after which nothing
        is handed off any more, and what is returned or raised. Raises Problem when the key belongs to another body.
        """
        request = publishing.Request(
            publications=publications,
            key=key,
            describe=describe,
            answer=answer,
            source=source,
        )
        for _ in range(PLANS):
            weight = publishing.weight(request.publications)
            result: publishing.Accepted | Replayed | publishing.Outdated = await self._committer.write(
                publishing.accept, request, weight=weight, then=then
            )
            if isinstance(result, Replayed):
                return result
            stale = result.accounts if isinstance(result, publishing.Outdated) else result.stale
            try:
                await self._read_rosters(stale)
            except StoreUnavailable:
                # What is on disk is not denied: the next event reads them anew.
                if not isinstance(result, publishing.Accepted):
                    raise
            if isinstance(result, publishing.Accepted):
                return result
            request = replace(request, publications=await self._planned_anew(request))
        raise StoreUnavailable("an account's subscriptions change faster than an event can be planned for them")

    async def _read_rosters(self, accounts: Iterable[str]) -> None:
        for account in accounts:
            async with self.database.read() as connection:
                self._rosters.remember(await self._rosters.read(connection, account))

    async def _planned_anew(self, request: publishing.Request) -> list[publishing.Publication]:
        now = time.time_ns() // 1_000_000
        anew: list[publishing.Publication] = []
        for one in request.publications:
            account = one.event.account
            async with self.planning(account):
                roster = await self.roster(account)
                anew.append(await publishing.plan_anew(roster, one, created_at=now, source=request.source))
        return anew

    # Subscriptions

    @overload
    async def create_subscription(
        self, who: subscribing.Who, draft: Draft, key: SigningKey, *, is_active: bool
    ) -> subscribing.Changed: ...

    @overload
    async def create_subscription(
        self, who: subscribing.Who, draft: Draft, key: SigningKey, *, is_active: bool, once: IdempotencyKey | None
    ) -> subscribing.Changed | Replayed: ...

    async def create_subscription(
        self,
        who: subscribing.Who,
        draft: Draft,
        key: SigningKey,
        *,
        is_active: bool,
        once: IdempotencyKey | None = None,
    ) -> subscribing.Changed | Replayed:
        """Store a new subscription. Replayed under a key that was used before, its answer is the id. Raises Problem."""

        async def create(tx: Transaction) -> subscribing.Changed:
            return await subscribing.create(tx, who, draft, key, is_active=is_active)

        return await self._change(lambda tx: subscribing.once(tx, once, create, lambda made: made.subscription.id))

    async def change_subscription(
        self, who: subscribing.Who, subscription_id: str, edit: Callable[[Subscription], Draft]
    ) -> subscribing.Changed:
        """Change what an owner says of a subscription; `edit` may raise Problem. Raises Problem."""
        return await self._change(lambda tx: subscribing.change(tx, who, subscription_id, edit))

    async def delete_subscription(self, who: subscribing.Who, subscription_id: str) -> None:
        """Delete a subscription. Raises Problem."""
        await self._change(lambda tx: subscribing.delete(tx, who, subscription_id))

    async def enable_subscription(
        self, who: subscribing.Who, subscription_id: str, then: Movement
    ) -> subscribing.Changed:
        """Ask a subscription's endpoint whether it is there, so that it is enabled. Raises Problem."""
        return await self._change(lambda tx: subscribing.enable(tx, who, subscription_id, then))

    async def disable_subscription(self, who: subscribing.Who, subscription_id: str) -> subscribing.Changed:
        """Disable a subscription. Raises Problem."""
        return await self._change(lambda tx: subscribing.disable(tx, who, subscription_id))

    async def ping_subscription(self, who: subscribing.Who, subscription_id: str) -> subscribing.Asked:
        """Send a ping to a subscription. Raises Problem."""
        return await self._change(lambda tx: subscribing.ping(tx, who, subscription_id))

    async def grant_handshake(self, delivery_id: str, rate: float | None) -> None:
        """Enable a subscription whose endpoint grants its handshake later. Raises Problem."""
        await self._change(lambda tx: subscribing.grant(tx, delivery_id, rate))

    async def set_operational(self, who: subscribing.Who, draft: Draft | None, key: SigningKey | None) -> None:
        """Put another operational endpoint in place, or none. Raises Problem."""
        await self._change(lambda tx: subscribing.set_operational(tx, who, draft, key))

    @overload
    async def rotate_secret(
        self,
        who: subscribing.Who,
        subscription_id: str,
        rotation: rotating.Rotation,
        check: Callable[[Subscription, SigningKey], None],
    ) -> ValidKey: ...

    @overload
    async def rotate_secret(
        self,
        who: subscribing.Who,
        subscription_id: str,
        rotation: rotating.Rotation,
        check: Callable[[Subscription, SigningKey], None],
        *,
        once: IdempotencyKey | None,
    ) -> ValidKey | Replayed: ...

    async def rotate_secret(
        self,
        who: subscribing.Who,
        subscription_id: str,
        rotation: rotating.Rotation,
        check: Callable[[Subscription, SigningKey], None],
        *,
        once: IdempotencyKey | None = None,
    ) -> ValidKey | Replayed:
        """Add a secret and let the others end; `check` may raise Problem.

        Replayed under a key that was used before, its answer is the secret's id. Raises Problem.
        """

        async def rotate(tx: Transaction) -> ValidKey:
            return await rotating.rotate(tx, who, subscription_id, rotation, check)

        return await self._change(lambda tx: subscribing.once(tx, once, rotate, lambda made: made.id))

    async def revoke_secret(self, who: subscribing.Who, subscription_id: str, secret_id: str) -> None:
        """End a secret at once. Raises Problem."""
        await self._change(lambda tx: rotating.revoke(tx, who, subscription_id, secret_id))

    async def _change(self, change: Callable[[Transaction], Awaitable[T]]) -> T:
        result = await self._committer.write(subscribing.apply, change)
        self._looks.forget()
        return cast("T", result)

    # Steps of what is too big for one transaction

    async def fan_out(self) -> publishing.FannedOut:
        """Make the next deliveries of an event that is not fanned out yet."""
        return await self._committer.write(publishing.fan_out, None, weight=publishing.STEP, patient=True)

    async def move_deliveries(self, release_limit: int) -> holding.Moved:
        """Hold, release, discard or cancel the next deliveries of subscriptions that changed their state."""
        return await self._committer.write(holding.move, release_limit, weight=holding.STEP, patient=True)

    async def step_redeliveries(self) -> redelivering.Stepped:
        """Send the next deliveries again that somebody asked for in bulk."""
        return await self._committer.write(redelivering.step, None, weight=redelivering.STEP, patient=True)

    async def tell(self, source: str) -> telling.Told:
        """Tell accounts what happened to their subscriptions, by events from this source (CloudEvents)."""
        return await self._committer.write(telling.tell, source, patient=True)

    # The outbox

    async def outbox_waiting(self, *, after: str, max_body: int) -> outbox.Waiting:
        """The rows of the outbox that are next, of accounts beyond `after`."""
        return await outbox.waiting(self.database, self.keyring, after=after, max_body=max_body)

    async def take_outbox(self, batch: outbox.Batch) -> outbox.Taken:
        """Store what rows of the outbox came to, and delete them; those that others were at stay for the next step."""
        taken = await self._committer.write(outbox.take, batch, weight=outbox.weight(batch), patient=True)
        if taken.stale:
            # What is on disk is not denied: where they cannot be read now, the next event reads them.
            with contextlib.suppress(StoreUnavailable):
                await self._read_rosters(taken.stale)
        return taken

    # Upkeep: each returns how many rows it handled

    async def reap(self) -> int:
        """Free the leases of dead sessions and of late remote processors."""
        is_lenient = time.monotonic() < self._lenient_until
        return await self._committer.write(upkeep.reap, is_lenient, patient=True)

    async def end_windows(self) -> int:
        """Expire what waits for a callback whose window is over."""
        return await self._committer.write(upkeep.end_windows, None, weight=upkeep.BATCH, patient=True)

    async def end_holds(self) -> int:
        """Expire what was held for as long as it may be, one batch."""
        return await self._committer.write(holding.end_holds, upkeep.BATCH, weight=upkeep.BATCH, patient=True)

    async def end_secrets(self) -> int:
        """Note secrets that end soon, and delete those that have ended, one batch."""
        return await self._committer.write(rotating.end_secrets, upkeep.BATCH, weight=upkeep.BATCH, patient=True)

    async def delete_old(self, age: float) -> int:
        """Delete what ended more than `age` seconds ago, one batch."""
        return await self._committer.write(upkeep.delete_old, round(age * 1000), weight=upkeep.BATCH, patient=True)

    async def keep_partitions(self, age: float) -> int:
        """Make the partitions of the days to come, and drop those that ended more than `age` seconds ago."""
        return await partitions.keep(self.database, round(age * 1000))

    async def end_abandoned(self) -> int:
        """End transactions that whoever began them has left open. Answers how many."""
        return await self.database.end_abandoned()

    async def forget_answers(self) -> int:
        """Delete old idempotency answers, one batch."""
        return await self._committer.write(upkeep.forget_answers, None, weight=upkeep.BATCH, patient=True)

    async def unknown_leases(self, known: frozenset[str]) -> set[str]:
        """Deliveries leased to this process that are not among those it knows."""
        return await self._committer.write(upkeep.unknown_leases, known, patient=True)

    async def interrupt(self, delivery_ids: Sequence[str]) -> int:
        """Free leases of our own that nobody works on."""
        return await self._committer.write(upkeep.interrupt, delivery_ids, weight=len(delivery_ids), patient=True)

    # Reading

    async def account(self, account: str) -> Account:
        """An account's settings."""
        return await accounts.read_account(self.database, self.keyring, account)

    async def ledger(self, account: str) -> dict[str, int]:
        """An account's counts of deliveries."""
        async with self.database.read() as connection:
            return await ledger.read(connection, account)


async def _leave(tx: Transaction, items: Sequence[None]) -> list[None]:
    tx.news.add(News.of_anything())
    return [None for _ in items]
