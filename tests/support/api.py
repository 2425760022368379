"""What tests say to the API again and again, and what they look for in its answers."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import httpx

from dispatcher import tokens
from dispatcher.config import Settings
from dispatcher.installation import open_installation
from tests.support.patience import PATIENCE
from tests.support.server import NO_TLS, Server, until
from tests.support.stores import Home

#: part of every value that must never come back in an answer
MARKER = "Zx9-never-shown"
#: states that a delivery leaves again
LIVE = {"pending", "leased", "held"}

Json = dict[str, Any]


def leading_to(home: Server | Home) -> Settings:
    """The settings that lead to an installation."""
    return Settings(data_dir=home.data_dir, database_url=home.database_url)


def token(home: Server | Home, account: str, *scopes: str, ttl: float | None = None) -> str:
    """A token of an installation, made beside the running server as `dispatcher token create` does."""

    async def make() -> str:
        installation = await open_installation(leading_to(home))
        try:
            return await tokens.issue(installation, account=account, scopes=scopes, actor="test", ttl=ttl)
        finally:
            await installation.database.close()

    return asyncio.run(make())


def client_of(server: Server, account: str, *scopes: str) -> httpx.Client:
    """A client that speaks for an account; for all scopes if none are named."""
    return client_with(server, token(server, account, *(scopes or tokens.ACCOUNT_SCOPES)))


def client_with(server: Server, bearer: str) -> httpx.Client:
    """A client with this token."""
    headers = {"Authorization": f"Bearer {bearer}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=30, trust_env=False, verify=NO_TLS)


def jwt(**claims: Any) -> str:
    """A JWT of somebody else's, as callback URLs carry them."""

    def part(value: Json) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.c2lnbmF0dXJl"


def accept(client: httpx.Client, url: str, *, key: str | None = None, **fields: Any) -> Json:
    """Have a task accepted; `payload` is a small object unless it is given."""
    headers = {} if key is None else {"Idempotency-Key": key}
    answer = client.post("/tasks", json={"payload": {"n": 1}, "callback_url": url, **fields}, headers=headers)
    assert answer.status_code == 202, answer.text
    accepted: Json = answer.json()
    return accepted


def task(client: httpx.Client, task_id: str) -> Json:
    """A task as it is now."""
    answer = client.get(f"/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def delivery(client: httpx.Client, delivery_id: str) -> Json:
    """A delivery as it is now."""
    answer = client.get(f"/deliveries/{delivery_id}")
    assert answer.status_code == 200, answer.text
    found: Json = answer.json()
    return found


def in_state(client: httpx.Client, delivery_id: str, *states: str, within: float = PATIENCE) -> Json:
    """Wait until a delivery is in one of these states."""
    found: Json = until(lambda: (now := delivery(client, delivery_id))["state"] in states and now, within=within)
    return found


def ended(client: httpx.Client, delivery_id: str, *, within: float = PATIENCE) -> Json:
    """Wait until a delivery has ended."""
    found: Json = until(lambda: (now := delivery(client, delivery_id))["state"] not in LIVE and now, within=within)
    return found


def worked(client: httpx.Client, task_id: str, *, within: float = PATIENCE) -> Json:
    """Wait until a task has a result or is given up."""
    found: Json = until(
        lambda: (now := task(client, task_id))["state"] not in {"queued", "processing"} and now, within=within
    )
    return found


def outcomes(found: Json) -> list[tuple[int, str, int | None]]:
    """The attempts of a delivery: number, outcome, status."""
    return [(attempt["number"], attempt["outcome"], attempt["status"]) for attempt in found["attempts"]]


def requested(found: Json) -> list[int]:
    """The attempts of a delivery as its receiver saw them: one comes twice when a kept connection broke under it."""
    return [
        attempt["number"] for attempt in found["attempts"] for _ in range(2 if attempt["timing"]["reconnected"] else 1)
    ]


def problem(answer: httpx.Response, status: int, slug: str, *fields: str) -> Json:
    """Check that an answer is this problem about these fields, and that it repeats no value of the request."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json"), answer.text
    details: Json = answer.json()
    assert details["type"] == f"/problems/{slug}", details
    assert details["status"] == status
    assert details["title"]
    assert [error["field"] for error in details.get("errors", [])] == list(fields), details
    assert all(error["detail"] for error in details.get("errors", []))
    assert MARKER.lower() not in answer.text.lower()
    assert (answer.headers.get("www-authenticate") == "Bearer") == (status == 401)
    return details


def stored(client: httpx.Client) -> Json:
    """All that an account has in store, as far as it can be seen: its ledger and its newest tasks and deliveries."""
    ledger: Json = client.get("/ledger").json()
    assert ledger["reconciles"], ledger
    return {
        "accepted": ledger["accepted"],
        "tasks": [item["id"] for item in client.get("/tasks", params={"limit": 5}).json()["items"]],
        "deliveries": [item["id"] for item in client.get("/deliveries", params={"limit": 5}).json()["items"]],
    }
