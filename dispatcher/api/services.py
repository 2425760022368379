"""What the routes work with: one object, made once when the server starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dispatcher.account_cache import AccountCache
from dispatcher.api.auth import Authenticator
from dispatcher.api.reading import Reader
from dispatcher.config import Settings
from dispatcher.installation import Installation
from dispatcher.processors.registry import Registry
from dispatcher.store import Store
from dispatcher.store.records import LeasedDelivery


class Delivering(Protocol):
    """Who delivers, as those see it who accept: `delivery.engine.Engine` tells what each of these is for."""

    def reserve(self, lane: str, size: int) -> bool: ...
    def cancel_reservation(self, lane: str, size: int) -> None: ...
    def hand_off(self, deliveries: Sequence[LeasedDelivery]) -> None: ...
    def expect(self, count: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a request may need."""

    settings: Settings
    installation: Installation
    store: Store
    registry: Registry
    engine: Delivering
    accounts: AccountCache
    auth: Authenticator
    reader: Reader
    #: requests of each account that wait for what an endpoint answers
    waiting: Counter[str] = field(default_factory=Counter)
