"""All routes but the hot ones, each resource in a module of its own."""

from __future__ import annotations

from fastapi import APIRouter

from dispatcher.api import (
    account,
    deliveries,
    events,
    handshakes,
    health,
    installation,
    secrets,
    subscriptions,
    tasks,
    work,
    workers,
)
from dispatcher.api.services import Services


def build(services: Services) -> APIRouter:
    """All routes, over these services."""
    router = APIRouter()
    for resource in (
        *(tasks, work, events, subscriptions, secrets, handshakes, deliveries, account),
        *(installation, workers, health),
    ):
        resource.add_routes(router, services)
    return router
