"""What the routes work with: one object, made once when the server starts."""

from __future__ import annotations

from dataclasses import dataclass

from dispatcher.account_cache import AccountCache
from dispatcher.api.auth import Authenticator
from dispatcher.api.reading import Reader
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
    tasks: TaskEngine
    accounts: AccountCache
    auth: Authenticator
    reader: Reader
