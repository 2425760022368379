"""Every SQL statement that changes a task, a delivery or an attempt.

Writes go through the committer, which gathers them into transactions:

- `intake` accepts tasks; `work` moves them; `deliveries` moves deliveries; `changes` is what a caller may ask
- `upkeep` is what time does; `ledger` counts; `idempotency` remembers answers; `accounts` holds settings and tokens
- `queries` reads; `sealing` encrypts; `tables` and `migrations` say what there is
"""

from dispatcher.store.store import Store

__all__ = ["Store"]
