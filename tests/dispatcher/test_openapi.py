"""The OpenAPI document against its specification, and the live server against the document."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support.api import client_of
from tests.support.receiver import Receiver
from tests.support.server import Server

HANDSHAKE = "/webhooks/handshakes/{delivery_id}/{token}"
#: what schemathesis looks at in every answer
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "ignored_auth",
)
#: test cases for each operation and phase
EXAMPLES = 6
#: seconds
MAX_TIME = 400
SEED = 20_260_101


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose every delivery goes to a proxy on this machine, whatever URL is made up for it."""
    with Receiver() as proxy:
        settings = {
            "egress_proxy": proxy.url,
            "nameservers": "127.0.0.1:1",
            "external_processors": '{"outside": 30}',
        }
        with Server(tmp_path_factory.mktemp("openapi") / "data", settings=settings) as running:
            yield running


@pytest.fixture(scope="module")
def document(served: Server) -> dict[str, Any]:
    answer = httpx.get(f"{served.url}/openapi.json", trust_env=False)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = answer.json()
    return found


def test_the_document_is_valid_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


def test_every_route_is_described_and_guarded(document: dict[str, Any]) -> None:
    calls = {
        (method.upper(), path): call for path, methods in document["paths"].items() for method, call in methods.items()
    }
    assert {path for _, path in calls} == {
        "/tasks",
        "/tasks/batch",
        "/tasks/{id}",
        "/tasks/{id}/cancel",
        "/tasks/{id}/callback",
        "/tasks/lease",
        "/tasks/{id}/renew",
        "/tasks/{id}/result",
        "/events",
        "/events/batch",
        "/events/{id}",
        "/webhooks/subscriptions",
        "/webhooks/subscriptions/{id}",
        "/webhooks/subscriptions/{id}/ping",
        "/webhooks/subscriptions/{id}/enable",
        "/webhooks/subscriptions/{id}/disable",
        "/webhooks/subscriptions/{id}/recover",
        "/webhooks/subscriptions/{id}/deliveries",
        "/webhooks/subscriptions/{id}/secrets",
        "/webhooks/subscriptions/{id}/secrets/{secret_id}",
        HANDSHAKE,
        "/deliveries",
        "/deliveries/redeliver",
        "/deliveries/redeliveries",
        "/deliveries/redeliveries/{id}",
        "/deliveries/{id}",
        "/deliveries/{id}/redeliver",
        "/ledger",
        "/account",
        "/processors",
        "/egress-addresses",
        "/workers",
        "/healthz",
        "/readyz",
    }
    for (_, path), call in calls.items():
        assert call["summary"]
        open_to_all = path in {"/healthz", "/readyz", HANDSHAKE}
        assert call.get("security", []) == ([] if open_to_all else [{"token": []}])
        assert ("401" in call["responses"]) is not open_to_all
    keyed = {
        call
        for call, details in calls.items()
        if any(parameter["name"] == "Idempotency-Key" for parameter in details.get("parameters", ()))
    }
    assert keyed == {
        ("POST", path)
        for path in (
            *("/tasks", "/tasks/batch", "/events", "/events/batch"),
            *("/deliveries/{id}/redeliver", "/deliveries/redeliver"),
            *(
                "/webhooks/subscriptions",
                "/webhooks/subscriptions/{id}/secrets",
                "/webhooks/subscriptions/{id}/recover",
            ),
        )
    }


def test_what_we_send_is_described_as_a_callback(document: dict[str, Any]) -> None:
    for path in ("/tasks", "/tasks/batch"):
        [(expression, methods)] = document["paths"][path]["post"]["callbacks"]["result"].items()
        assert expression.startswith("{$request.body#/")
        headers = {parameter["name"]: parameter["required"] for parameter in methods["post"]["parameters"]}
        assert {name for name, required in headers.items() if required} == {
            "X-Webhook-Delivery",
            "X-Webhook-Attempt",
            "X-Webhook-Event",
            "X-Webhook-Timestamp",
        }
        assert {"X-Hub-Signature", "webhook-signature"} <= headers.keys()
        assert "2XX" in methods["post"]["responses"]


def test_what_we_send_to_subscriptions_is_described_as_webhooks(document: dict[str, Any]) -> None:
    event = document["webhooks"]["event"]["post"]
    headers = {parameter["name"]: parameter["required"] for parameter in event["parameters"]}
    assert {name for name, required in headers.items() if required} == {
        "X-Webhook-Delivery",
        "X-Webhook-Attempt",
        "X-Webhook-Event",
        "X-Webhook-Timestamp",
    }
    assert {"X-Hub-Signature-256", "X-Webhook-Signature", "webhook-signature", "Signature-Input"} <= headers.keys()
    assert {"application/json", "application/cloudevents+json"} <= event["requestBody"]["content"].keys()
    assert {"2XX", "410", "4XX", "default"} == event["responses"].keys()
    asked = {parameter["name"] for parameter in document["webhooks"]["handshake"]["options"]["parameters"]}
    assert asked == {"WebHook-Request-Origin", "WebHook-Request-Callback", "WebHook-Request-Rate"}


@pytest.mark.timeout(MAX_TIME + 60)
def test_the_server_keeps_to_its_document(served: Server, tmp_path: Path) -> None:
    # A member that is too long is answered 413, which is not among what schemathesis takes for a refusal.
    (tmp_path / "schemathesis.toml").write_text(
        "[checks.negative_data_rejection]\nexpected-statuses = [401, 403, 404, 405, 409, 413, 422]\n"
    )
    with client_of(served, "fuzzed") as client:
        authorization = client.headers["Authorization"]
    run = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{served.url}/openapi.json"),
            *("--header", f"Authorization: {authorization}"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--seed", str(SEED), "--max-examples", str(EXAMPLES), "--workers", "1", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=MAX_TIME,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert served.running
    assert '"level": "error"' not in served.log.read_text()


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in {"href", "src"}]


def test_the_page_shows_every_call_and_loads_nothing(served: Server, document: dict[str, Any]) -> None:
    answer = httpx.get(f"{served.url}/docs", trust_env=False)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    page = _Page()
    page.feed(answer.text)
    assert page.links == ["/openapi.json"]
    assert not {"script", "img", "iframe", "link"} & set(page.tags)
    assert page.tags.count("section") == sum(len(methods) for methods in document["paths"].values())
    for path in document["paths"]:
        assert f"<code>{path}</code>" in answer.text
