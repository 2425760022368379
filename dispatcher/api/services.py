"""What the routes work with: one object, made once when the server starts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from dispatcher.account_cache import AccountCache
from dispatcher.api.auth import Authenticator
from dispatcher.api.reading import Reader
from dispatcher.chores import Chores
from dispatcher.config import Settings
from dispatcher.delivery.engine import Engine
from dispatcher.installation import Installation
from dispatcher.processors.engine import TaskEngine
from dispatcher.processors.registry import Registry
from dispatcher.store import Store


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything a request may need."""

    settings: Settings
    installation: Installation
    store: Store
    registry: Registry
    engine: Engine
    chores: Chores
    tasks: TaskEngine
    accounts: AccountCache
    auth: Authenticator
    reader: Reader
    #: requests of each account that wait for what an endpoint answers
    waiting: Counter[str] = field(default_factory=Counter)
