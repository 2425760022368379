"""Every SQL statement that changes a task, a delivery or an attempt.

Writes go through the committer, which gathers them into transactions:

- `intake` accepts tasks, `work` moves them; `leasing` and `deliveries` move deliveries
- `outbox` has what others asked for by their own transactions accepted
- `changes` is what a caller may ask for
- `upkeep` is what time does; `ledger` counts; `idempotency` remembers answers; `accounts` holds settings and tokens
- `queries` reads; `sealing` encrypts; `tables` and `migrations` say what there is
"""

from dispatcher.store.store import Store

__all__ = ["Store"]
