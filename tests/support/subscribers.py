"""What tests say of subscriptions again and again."""

from __future__ import annotations

import itertools
from typing import Any

import httpx

from tests.support.api import Json

PATH = "/webhooks/subscriptions"

_numbers = itertools.count(1)


def body_of(url: str, **fields: Any) -> Json:
    """A request for a subscription: the least that is asked for, with fields changed, or left out when they are `...`.

    `config` is merged into the one with the URL.
    """
    config = {"url": url, **fields.pop("config", {})}
    body = {"name": "shop", "events": ["order.*"], "config": config, **fields}
    body["config"] = {name: value for name, value in config.items() if value is not ...}
    return {name: value for name, value in body.items() if value is not ...}


def other(url: str) -> str:
    """A URL at the same receiver that no subscription has yet."""
    return f"{url}/hooks/{next(_numbers)}"


def post(client: httpx.Client, url: str, *, key: str | None = None, **fields: Any) -> httpx.Response:
    """Ask for a subscription."""
    headers = {} if key is None else {"Idempotency-Key": key}
    return client.post(PATH, json=body_of(url, **fields), headers=headers)


def subscribe(client: httpx.Client, url: str, **fields: Any) -> Json:
    """Create a subscription."""
    answer = post(client, url, **fields)
    assert answer.status_code == 201, answer.text
    made: Json = answer.json()
    assert answer.headers["Location"] == f"{PATH}/{made['id']}"
    return made


def subscription(client: httpx.Client, subscription_id: str) -> Json:
    """A subscription as it stands."""
    answer = client.get(f"{PATH}/{subscription_id}")
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def publish(client: httpx.Client, type_: str = "order.paid", payload: Any = None) -> Json:
    """Publish an event."""
    answer = client.post("/events", json={"type": type_, "payload": {"n": 1} if payload is None else payload})
    assert answer.status_code == 202, answer.text
    published: Json = answer.json()
    return published
