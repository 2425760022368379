"""What is sent verifies with libraries that others wrote, whatever the schemes, the secret, the body and the headers.

Every request is captured at its receiver and handed to tests/support/verifiers.py: Python standardwebhooks, svix and
http-message-signatures; in JavaScript standardwebhooks and @octokit/webhooks-methods. `websub`'s other hashes,
`timestamped` and `servicestack`, for which there is no library, are computed anew there and here.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote_to_bytes

import httpx
import pytest

from tests.support.api import Json
from tests.support.discerning import Known, is_signed
from tests.support.receiver import Received, Receiver
from tests.support.server import Server
from tests.support.subscribers import subscribe
from tests.support.verifiers import Captured, accepted_by

ALONE = (
    "websub",
    "github",
    "standard",
    "standard-ed25519",
    "timestamped",
    "servicestack",
    "rfc9421",
    "rfc9421-ed25519",
)
#: these write one header, so that one of them at most is used
EXCLUSIVE = ({"websub", "github", "servicestack"}, {"rfc9421", "rfc9421-ed25519"})
#: these need a key pair, which tasks do not have
KEY_PAIR = {"standard-ed25519", "rfc9421-ed25519"}
HUB_METHODS = ("sha1", "sha256", "sha384", "sha512")
BODIES = ("raw", "envelope", "form", "cloudevents-binary", "cloudevents-structured")

#: JSON that no parser gives back as it was
PAYLOAD = '{"total" : 1e400, "text":"\\u00e9\\/ é €", "nested":[{"a":1,\t"a":2}], "id":18446744073709551616}'
GIVEN_BASE64 = "whsec_" + base64.b64encode(b"\xfb\xef\xff" + bytes(range(29))).decode()
GIVEN_BARE = base64.b64encode(b"a secret without its prefix").decode()
GIVEN_TEXT = 'no b64: "wörd" & <päss> € / \\ + %41'

HEADERS = {"X-Secret": "s3cr3t/+= value", "Authorization": "Bearer abc.def", "X-Empty-Like": "0"}


def combinations() -> list[tuple[str, ...]]:
    """Every set of schemes that may be used together, in a settled order."""
    sets = itertools.chain.from_iterable(itertools.combinations(ALONE, size) for size in range(1, len(ALONE) + 1))
    return [chosen for chosen in sets if all(len(group & set(chosen)) <= 1 for group in EXCLUSIVE)]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One subscription or task, and what its owner knows."""

    name: str
    schemes: tuple[str, ...]
    known: Known
    fields: Json = field(default_factory=dict)
    is_task: bool = False


class Run:
    """Everything that was sent, by case."""

    def __init__(self) -> None:
        self.cases: dict[str, Case] = {}
        self.received: dict[str, Received] = {}
        self.captured: list[tuple[Case, Captured]] = []

    def subscribe(self, client: httpx.Client, origin: str, name: str, schemes: tuple[str, ...], **fields: Any) -> None:
        path = f"/{len(self.cases)}/hook?a=b&c=%20d"
        asked = dict(fields) if fields.pop("omit_schemes", False) else {**fields, "schemes": list(schemes)}
        asked.pop("omit_schemes", None)
        made = subscribe(client, origin + path, events=["some.thing"], **asked)
        known = Known(secret=made["config"]["secret"], public_key=made["config"]["public_key"])
        given = fields.get("config", {}).get("secret")
        assert given is None or given == known.secret
        self.cases[path] = Case(name=name, schemes=schemes, known=known, fields=fields)

    def task(self, client: httpx.Client, origin: str, name: str, schemes: tuple[str, ...], **fields: Any) -> None:
        path = f"/{len(self.cases)}/callback/{'t' * 30}?x=%2F"
        rest = {"schemes": list(schemes), **fields}
        head = json.dumps({"callback_url": origin + path, **rest})
        answer = client.post("/tasks", content=f'{head[:-1]}, "payload": {PAYLOAD}}}'.encode())
        assert answer.status_code == 202, answer.text
        known = Known(secret=fields["secret"], public_key="")
        self.cases[path] = Case(name=name, schemes=schemes, known=known, fields=fields, is_task=True)

    def capture(self, received: list[Received]) -> None:
        for request in received:
            assert request.target in self.cases, request.target
            assert request.target not in self.received, "it was sent twice"
            self.received[request.target] = request
            case = self.cases[request.target]
            self.captured += [(case, captured(scheme, request, case.known)) for scheme in case.schemes]


def captured(scheme: str, request: Received, known: Known) -> Captured:
    """A request as a verifier gets it."""
    return Captured(
        scheme=scheme,
        method=request.method,
        url=f"http://{request.header('Host')}{request.target}",
        headers=dict(request.headers),
        body=request.body,
        secret=known.secret,
        public_key=known.public_key,
    )


@pytest.fixture(scope="module")
def run(server: Server) -> Iterator[Run]:
    """One event to very many subscriptions, and tasks, each with its own way to sign."""
    done = Run()
    with Receiver() as receiver, server.client() as client:
        origin = receiver.url
        for chosen in combinations():
            done.subscribe(client, origin, f"{'+'.join(chosen)}, generated", chosen)
        for secret, schemes in {
            GIVEN_BASE64: ALONE,
            GIVEN_BARE: ALONE,
            GIVEN_TEXT: tuple(scheme for scheme in ALONE if scheme != "standard"),
        }.items():
            for scheme in schemes:
                done.subscribe(client, origin, f"{scheme}, given", (scheme,), config={"secret": secret})
        # left out: both defaults, or the one that the secret can serve
        done.subscribe(client, origin, "default, generated", ("websub", "standard"), omit_schemes=True)
        done.subscribe(client, origin, "default, text", ("websub",), config={"secret": GIVEN_TEXT}, omit_schemes=True)
        for method in HUB_METHODS:
            for config in ({}, {"secret": GIVEN_TEXT}):
                done.subscribe(client, origin, f"hub {method}", ("websub",), hub_method=method, config=config)
        for body in BODIES:
            for scheme in ALONE:
                done.subscribe(client, origin, f"{scheme} {body}", (scheme,), body=body, headers=HEADERS)
        for scheme in ALONE:
            if scheme not in KEY_PAIR:
                done.task(client, origin, f"task {scheme}", (scheme,), secret=GIVEN_BASE64, headers=HEADERS)
        for scheme in ("github", "servicestack", "timestamped", "rfc9421"):
            done.task(client, origin, f"task {scheme}, text", (scheme,), secret=GIVEN_TEXT, body="form")
        together = ("github", "standard", "timestamped", "rfc9421")
        done.task(client, origin, "task, many", together, secret=GIVEN_BARE, body="cloudevents-structured")

        tasks = sum(case.is_task for case in done.cases.values())
        published = client.post("/events", content=f'{{"type": "some.thing", "payload": {PAYLOAD}}}'.encode())
        assert (published.status_code, published.json()["deliveries"]) == (202, len(done.cases) - tasks)
        done.capture(receiver.wait_for(len(done.cases)))
        yield done


def test_every_delivery_is_accepted_by_every_library_that_knows_its_scheme(run: Run) -> None:
    answers = accepted_by([request for _, request in run.captured])
    refused = [
        f"{case.name}: {request.scheme} by {name}"
        for (case, request), said in zip(run.captured, answers, strict=True)
        for name, accepted in said.items()
        if not accepted
    ]
    assert not refused, "\n".join(refused)
    asked = {(request.scheme, name) for (_, request), said in zip(run.captured, answers, strict=True) for name in said}
    assert asked == {
        *((scheme, "node") for scheme in ALONE if not scheme.startswith("rfc9421")),
        ("standard", "standardwebhooks"),
        ("standard", "svix"),
        ("servicestack", "plain hmac"),
        ("rfc9421", "http-message-signatures"),
        ("rfc9421-ed25519", "http-message-signatures"),
    }
    print(
        f"\n{len(run.cases)} deliveries, {len(run.captured)} signatures, {sum(map(len, answers))} answers of libraries"
    )


def test_a_second_implementation_agrees(run: Run) -> None:
    for case, request in run.captured:
        assert is_signed(request.scheme, run.received[target(request)], case.known), f"{case.name}: {request.scheme}"


def target(request: Captured) -> str:
    """Path and query of a captured request."""
    return httpx.URL(request.url).raw_path.decode()


def test_no_tampered_delivery_is_accepted(run: Run) -> None:
    tampered = [(case, how, bad) for case, good in run.captured for how, bad in _tampered(good)]
    answers = accepted_by([bad for _, _, bad in tampered])
    wrong = [
        f"{case.name}: {bad.scheme}, {how}, by {name}"
        for (case, how, bad), said in zip(tampered, answers, strict=True)
        for name, accepted in said.items()
        if accepted
    ]
    assert not wrong, "\n".join(wrong)
    print(f"\n{len(tampered)} tampered requests refused")


def _tampered(good: Captured) -> Iterator[tuple[str, Captured]]:
    yield "a byte more", replace(good, body=good.body + b" ")
    yield "a byte changed", replace(good, body=good.body.replace(b"1", b"2", 1))
    if good.scheme in KEY_PAIR:
        other = base64.b64encode(hashlib.sha256(good.public_key.encode()).digest()).decode()
        # not every text of 32 bytes is a point; what is none cannot verify either
        yield "another key", replace(good, public_key=f"whpk_{other}")
    else:
        other = base64.b64encode(hashlib.sha256(good.secret.encode()).digest()).decode()
        yield "another secret", replace(good, secret=f"whsec_{other}")
    for name in SIGNED_HEADERS[good.scheme]:
        value = good.lower_headers()[name]
        yield f"{name} changed", replace(good, headers=_with(good, name, _flipped(value)))
        yield f"{name} left out", replace(good, headers=_with(good, name, None))
    if good.scheme.startswith("rfc9421"):
        yield "another URL", replace(good, url=good.url + "x")
        yield "another method", replace(good, method="PUT")
        yield "another delivery", replace(good, headers=_with(good, "x-webhook-delivery", "0" * 32))
        yield "another type", replace(good, headers=_with(good, "content-type", "text/plain"))


#: by scheme, the headers without which, or with other values in which, nothing verifies
SIGNED_HEADERS = {
    "websub": ("x-hub-signature",),
    "github": ("x-hub-signature", "x-hub-signature-256"),
    "standard": ("webhook-signature", "webhook-id", "webhook-timestamp"),
    "standard-ed25519": ("webhook-signature", "webhook-id", "webhook-timestamp"),
    "timestamped": ("x-webhook-signature",),
    "servicestack": ("x-hub-signature",),
    "rfc9421": ("signature", "signature-input", "content-digest"),
    "rfc9421-ed25519": ("signature", "signature-input", "content-digest"),
}


def _with(good: Captured, name: str, value: str | None) -> dict[str, str]:
    headers = {n: v for n, v in good.headers.items() if n.lower() != name}
    return headers if value is None else {**headers, name: value}


def _flipped(value: str) -> str:
    """The text with one character in the middle of each of its parts changed, its form kept."""

    def flip(part: str) -> str:
        at = len(part) // 2
        old = part[at]
        return part[:at] + ("1" if old != "1" else "2") + part[at + 1 :]

    return " ".join(flip(part) for part in value.split(" "))


# --- what was signed is what was asked for ----------------------------------------------------------------


def test_the_headers_are_those_of_the_schemes_and_no_others(run: Run) -> None:
    for path, case in run.cases.items():
        headers = {name.lower() for name, _ in run.received[path].headers}
        wanted: set[str] = set()
        for scheme in case.schemes:
            wanted |= set(SIGNED_HEADERS[scheme])
        of_signatures = {
            name
            for name in headers
            if name.startswith(("x-hub-", "webhook-", "signature")) or name in {"x-webhook-signature", "content-digest"}
        }
        assert of_signatures == wanted, case.name
        names = [name.lower() for name, _ in run.received[path].headers]
        assert len(names) == len(set(names)), f"{case.name}: a header came twice"


def test_both_standard_schemes_share_their_header(run: Run) -> None:
    shared = [
        run.received[path].header("webhook-signature")
        for path, case in run.cases.items()
        if {"standard", "standard-ed25519"} <= set(case.schemes)
    ]
    assert shared
    for value in shared:
        assert value is not None
        assert sorted(entry.partition(",")[0] for entry in value.split(" ")) == ["v1", "v1a"]


@pytest.mark.parametrize("method", HUB_METHODS)
def test_the_hub_method_is_the_one_that_was_asked_for(run: Run, method: str) -> None:
    found = [path for path, case in run.cases.items() if case.name == f"hub {method}"]
    assert len(found) == 2
    for path in found:
        request, key = run.received[path], run.cases[path].known.secret.encode()
        assert request.header("X-Hub-Signature") == f"{method}={hmac.new(key, request.body, method).hexdigest()}"


def test_servicestack_is_what_its_receivers_compute(run: Run) -> None:
    """`sha1=` by its label, SHA-256 in truth, keyed with the base64 text as it stands (DESIGN, section 5)."""
    found = [path for path, case in run.cases.items() if "servicestack" in case.schemes]
    assert len(found) > 10
    for path in found:
        request, secret = run.received[path], run.cases[path].known.secret
        assert request.header("X-Hub-Signature") == "sha1=" + _sha256_hmac(secret.encode("utf-8"), request.body).hex()
        assert len((request.header("X-Hub-Signature") or "").partition("=")[2]) == 64


def _sha256_hmac(key: bytes, message: bytes) -> bytes:
    """HMAC (RFC 2104) from nothing but a hash."""
    key = (hashlib.sha256(key).digest() if len(key) > 64 else key).ljust(64, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key) + message).digest()
    return hashlib.sha256(bytes(byte ^ 0x5C for byte in key) + inner).digest()


def test_the_standard_id_and_timestamp_are_those_of_the_delivery(run: Run) -> None:
    for path, case in run.cases.items():
        request = run.received[path]
        if {"standard", "standard-ed25519"} & set(case.schemes):
            assert request.header("webhook-id") == request.delivery
            assert request.header("webhook-timestamp") == request.header("X-Webhook-Timestamp")


def test_the_key_of_a_message_signature_is_named(run: Run, server: Server) -> None:
    with server.client() as client:
        for path, case in run.cases.items():
            given = run.received[path].header("Signature-Input")
            if given is None or case.is_task:
                continue
            delivery = client.get(f"/deliveries/{run.received[path].delivery}").json()
            algorithm = "ed25519" if "rfc9421-ed25519" in case.schemes else "hmac-sha256"
            assert given.startswith("webhook=(")
            assert f';keyid="{delivery["subscription_id"]}"' in given
            assert f';alg="{algorithm}"' in given


def test_custom_headers_go_along(run: Run) -> None:
    found = [path for path, case in run.cases.items() if case.fields.get("headers")]
    assert len(found) > len(BODIES) * len(ALONE)
    for path in found:
        assert {name: run.received[path].header(name) for name in HEADERS} == HEADERS


def test_a_raw_body_is_the_payload_byte_for_byte_and_the_others_carry_it(run: Run) -> None:
    for path, case in run.cases.items():
        body, mode = run.received[path].body, case.fields.get("body", "raw")
        if mode in {"raw", "cloudevents-binary"}:
            assert body == PAYLOAD.encode(), case.name
        elif mode == "form":
            assert body.startswith(b"payload=")
            assert unquote_to_bytes(body.removeprefix(b"payload=")) == PAYLOAD.encode()
        else:
            assert PAYLOAD.encode() in body, case.name
            json.loads(body)
        has_attributes = run.received[path].header("ce-specversion") is not None
        assert has_attributes == (mode == "cloudevents-binary")


# --- without a secret of its own --------------------------------------------------------------------------


def test_a_task_without_a_secret_is_signed_with_the_accounts_or_not_at_all(start_server: Callable[..., Server]) -> None:
    with Receiver() as receiver, start_server().client() as client:
        assert client.post("/tasks", json={"payload": 1, "callback_url": f"{receiver.url}/no"}).status_code == 202
        [unsigned] = receiver.wait_for(1)
        names = {name.lower() for name, _ in unsigned.headers}
        assert not names & {name for signed in SIGNED_HEADERS.values() for name in signed}

        wanted = {"default_secret": GIVEN_BASE64, "schemes": ["github", "standard", "rfc9421"]}
        assert client.patch("/account", json=wanted).status_code == 200
        assert client.post("/tasks", json={"payload": 1, "callback_url": f"{receiver.url}/yes"}).status_code == 202
        signed = receiver.wait_for(2)[1]
    known = Known(secret=GIVEN_BASE64, public_key="")
    answers = accepted_by([captured(scheme, signed, known) for scheme in wanted["schemes"]])
    assert all(all(said.values()) for said in answers), answers
