"""Bad input, and the nearest input that is still good: every answer names the field, repeats nothing, stores nothing.

The server runs without --dev. What it accepts here goes to an egress proxy that does not exist, on this machine.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.support.api import MARKER, Json, client_of, jwt, problem, stored
from tests.support.server import Server

URL = f"https://api.example.com/results/{MARKER}"
MAX_BODY = 262_144
RENDER_TIMEOUT = 60


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as it is by default, but for its way out."""
    settings = {
        "egress_proxy": "http://127.0.0.1:1",
        "nameservers": "127.0.0.1:1",
        "external_processors": json.dumps({"render": RENDER_TIMEOUT}),
    }
    with Server(tmp_path_factory.mktemp("strict") / "data", dev=False, settings=settings) as running:
        yield running


@pytest.fixture(scope="module")
def client(strict: Server) -> Iterator[httpx.Client]:
    with client_of(strict, "acme") as running:
        yield running


def post(client: httpx.Client, fields: Any, path: str = "/tasks") -> httpx.Response:
    """Post a task: raw bytes as they are, or the base task with fields changed, or left out when they are `...`."""
    if isinstance(fields, bytes):
        return client.post(path, content=fields)
    body = {"payload": {"n": 1}, "callback_url": URL, **fields}
    return client.post(path, json={name: value for name, value in body.items() if value is not ...})


def with_payload(raw: bytes) -> bytes:
    return b'{"payload":%s,"callback_url":"%s"}' % (raw, URL.encode())


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


def text_of(size: int) -> bytes:
    return b'"' + b"x" * (size - 2) + b'"'


NOT_JSON = {
    "empty": b"",
    "cut short": b'{"payload": 1, "callback_url": ',
    "two values": with_payload(b"1") + b" {}",
    "trailing comma": with_payload(b"[1,]"),
    "NaN": with_payload(b"NaN"),
    "Infinity": with_payload(b"-Infinity"),
    "leading zero": with_payload(b"01"),
    "bare point": with_payload(b"1."),
    "bare exponent": with_payload(b"1e"),
    "plus": with_payload(b"+1"),
    "hex": with_payload(b"0x1f"),
    "single quotes": with_payload(b"'a'"),
    "unquoted key": with_payload(b"{a: 1}"),
    "number as key": with_payload(b"{1: 1}"),
    "no comma": with_payload(b'["a" "b"]'),
    "bad escape": with_payload(b'"\\x41"'),
    "bad unicode escape": with_payload(b'"\\u12G4"'),
    "lone surrogate": with_payload(b'"\\ud800"'),
    "control character": with_payload(b'"\x01"'),
    "line end in a string": with_payload(b'"\n"'),
    "vertical tab": with_payload(b"\x0b1"),
    "byte order mark": b"\xef\xbb\xbf" + with_payload(b"1"),
    "bad UTF-8 in the payload": with_payload(b'"\xff"'),
    "overlong UTF-8": with_payload(b'"\xc0\xaf"'),
    "surrogate in UTF-8": with_payload(b'"\xed\xa0\x80"'),
    "UTF-16": json.dumps({"payload": 1}).encode("utf-16"),
    "comment": with_payload(b"1 /* one */"),
}

WRONG_SHAPE: dict[str, tuple[Any, tuple[str, ...]]] = {
    "array": (b"[]", ("",)),
    "number": (b"1", ("",)),
    "null": (b"null", ("",)),
    "string": (f'"{MARKER}"'.encode(), ("",)),
    "no payload": ({"payload": ...}, ("/payload",)),
    "no callback_url": ({"callback_url": ...}, ("/callback_url",)),
    "unknown field": ({"callbackurl": MARKER}, ("/callbackurl",)),
    "unknown field that is a value": ({f"https://x/{MARKER}": 1}, ("/…",)),
    "callback_url: number": ({"callback_url": 5}, ("/callback_url",)),
    "callback_url: null": ({"callback_url": None}, ("/callback_url",)),
    "callback_url: empty": ({"callback_url": ""}, ("/callback_url",)),
    "type: number": ({"type": 1}, ("/type",)),
    "type: space": ({"type": f"{MARKER} x"}, ("/type",)),
    "deliver_before: text": ({"deliver_before": MARKER}, ("/deliver_before",)),
    "deliver_before: naive": ({"deliver_before": "2999-01-01T00:00:00"}, ("/deliver_before",)),
    "deliver_before: number": ({"deliver_before": 32503680000}, ("/deliver_before",)),
    "secret: 7 characters": ({"secret": MARKER[:7]}, ("/secret",)),
    "secret: 256 characters": ({"secret": MARKER + "x" * (256 - len(MARKER))}, ("/secret",)),
    "secret: line end": ({"secret": f"{MARKER}\n"}, ("/secret",)),
    "secret: object": ({"secret": {"a": MARKER}}, ("/secret",)),
    "schemes: none": ({"schemes": []}, ("/schemes",)),
    "schemes: unknown": ({"schemes": ["websub", MARKER]}, ("/schemes/1",)),
    "schemes: twice": ({"schemes": ["websub", "websub"]}, ("/schemes",)),
    "schemes: twice, with a secret": ({"schemes": ["websub", "websub"], "secret": MARKER}, ("/schemes",)),
    "schemes: standard, secret not base64": ({"schemes": ["standard"], "secret": f"{MARKER}!"}, ("/schemes",)),
    "schemes: text": ({"schemes": "websub"}, ("/schemes",)),
    "body: unknown": ({"body": MARKER}, ("/body",)),
    "headers: array": ({"headers": [["X-A", MARKER]]}, ("/headers",)),
    "headers: number": ({"headers": {"X-A": 1}}, ("/headers",)),
    "headers: 21": ({"headers": {f"X-{n}": "1" for n in range(21)}}, ("/headers",)),
    "headers: twice": ({"headers": {"X-Key": MARKER, "x-key": MARKER}}, ("/headers",)),
    "headers: reserved": ({"headers": {"X-Webhook-Attempt": "1"}}, ("/headers/X-Webhook-Attempt",)),
    "headers: reserved, as CGI reads it": (
        {"headers": {"X_Hub_Signature": MARKER}},
        ("/headers/X_Hub_Signature",),
    ),
    "headers: reserved, other case": ({"headers": {"hOsT": MARKER}}, ("/headers/hOsT",)),
    "headers: framing": ({"headers": {"Content-Length": "1"}}, ("/headers/Content-Length",)),
    "headers: CR LF": ({"headers": {"X-A": f"1\r\nX-B: {MARKER}"}}, ("/headers/X-A",)),
    "headers: LF": ({"headers": {"X-A": f"{MARKER}\n"}}, ("/headers/X-A",)),
    "headers: NUL": ({"headers": {"X-A": f"{MARKER}\0"}}, ("/headers/X-A",)),
    "headers: not ASCII": ({"headers": {"X-A": f"{MARKER}é"}}, ("/headers/X-A",)),
    "headers: space at the end": ({"headers": {"X-A": f"{MARKER} "}}, ("/headers/X-A",)),
    "headers: pointer is escaped": ({"headers": {"X~A": "\n"}}, ("/headers/X~0A",)),
    "headers: name with a colon": ({"headers": {f"X-A: {MARKER}": "1"}}, ("/headers",)),
    "headers: name with a line end": ({"headers": {f"X-A\r\n{MARKER}": "1"}}, ("/headers",)),
    "headers: empty name": ({"headers": {"": MARKER}}, ("/headers",)),
    "metadata: array": ({"metadata": [MARKER]}, ("/metadata",)),
    "metadata: text": ({"metadata": MARKER}, ("/metadata",)),
    "payload: 65 deep": (with_payload(nested(65)), ("/payload",)),
    "payload: 65 deep, objects": (with_payload(b'{"a":' * 65 + b"1" + b"}" * 65), ("/payload",)),
    "payload: bottomless": (with_payload(nested(20_000)), ("",)),
    "metadata: 65 deep": (
        b'{"payload":1,"callback_url":"https://a.example","metadata":{"a":%s}}' % nested(64),
        ("/metadata",),
    ),
}

TOO_LARGE: dict[str, tuple[Any, str]] = {
    "payload: one byte over": (with_payload(text_of(MAX_BODY + 1)), "/payload"),
    "payload: one byte over, spaces inside": (with_payload(b"[" + b" " * (MAX_BODY - 1) + b"]"), "/payload"),
    "callback_url: 8193": ({"callback_url": "https://a.example/" + "a" * (8193 - 18)}, "/callback_url"),
    "headers: 4097 bytes": ({"headers": {"X-A": "x" * 4094}}, "/headers/X-A"),
    "metadata: one byte over": ({"metadata": {"a": "x" * (16 * 1024 - 7)}}, "/metadata"),
    "request": (with_payload(text_of(MAX_BODY)) + b" " * 200_000, ""),
}

NOT_SENT_TO = {
    "private": "https://10.0.0.1/cb",
    "private, last": "https://172.31.255.255/cb",
    "loopback": "https://127.0.0.1/cb",
    "loopback, 6": "https://[::1]/cb",
    "unspecified": "https://0.0.0.0/cb",
    "metadata": "https://169.254.169.254/latest/meta-data",
    "mapped": "https://[::ffff:8.8.8.8]/cb",
    "unique local": "https://[fd00::1]/cb",
    "zone": "https://[fe80::1%25eth0]/cb",
    "decimal": "https://2130706433/cb",
    "octal": "https://0177.0.0.1/cb",
    "hexadecimal": "https://0x7f.0.0.1/cb",
    "short": "https://127.1/cb",
    "full width": "https://\uff11\uff12\uff17.0.0.1/cb",
    "trailing dot": "https://127.0.0.1./cb",
    "percent": "https://%31%32%37.0.0.1/cb",
    "user": f"https://{MARKER}@api.example.com/cb",
    "user and password": f"https://user:{MARKER}@api.example.com/cb",
    "http": "http://api.example.com/cb",
    "other scheme": "ftp://api.example.com/cb",
    "port": "https://api.example.com:8444/cb",
    "port 22": "https://api.example.com:22/cb",
    "port 65536": "https://api.example.com:65536/cb",
    "no scheme": "api.example.com/cb",
    "relative": "/cb",
    "no host": "https:///cb",
    "fragment": f"https://api.example.com/cb#{MARKER}",
    "backslash": "https://api.example.com\\@evil.example/cb",
    "space": "https://api.example.com/a b",
    "line end": "https://api.example.com/a\r\nX-A: b",
    "tab": "https://api.exam\tple.com/",
    "path not ASCII": "https://api.example.com/é",
}


@pytest.mark.parametrize("raw", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_what_is_not_json_is_refused(client: httpx.Client, raw: bytes) -> None:
    before = stored(client)
    problem(post(client, raw), 422, "invalid-json")
    assert stored(client) == before


@pytest.mark.parametrize(("fields", "pointers"), WRONG_SHAPE.values(), ids=WRONG_SHAPE.keys())
def test_a_wrong_shape_is_refused_by_its_field(client: httpx.Client, fields: Any, pointers: tuple[str, ...]) -> None:
    before = stored(client)
    problem(post(client, fields), 422, "validation", *pointers)
    assert stored(client) == before


@pytest.mark.parametrize(("fields", "pointer"), TOO_LARGE.values(), ids=TOO_LARGE.keys())
def test_what_is_too_large_is_refused(client: httpx.Client, fields: Any, pointer: str) -> None:
    before = stored(client)
    problem(post(client, fields), 413, "too-large", pointer)
    assert stored(client) == before


@pytest.mark.parametrize("url", NOT_SENT_TO.values(), ids=NOT_SENT_TO.keys())
def test_a_url_that_is_not_sent_to_is_refused(client: httpx.Client, url: str) -> None:
    before = stored(client)
    problem(post(client, {"callback_url": url}), 422, "egress", "/callback_url")
    assert stored(client) == before


def test_refused_addresses_read_alike(client: httpx.Client) -> None:
    texts = {
        post(client, {"callback_url": NOT_SENT_TO[name]}).text
        for name in ("private", "loopback", "unspecified", "metadata", "mapped", "unique local")
    }
    assert len(texts) == 1


def test_an_unknown_type_is_refused(client: httpx.Client) -> None:
    before = stored(client)
    problem(post(client, {"type": f"render.{MARKER}"}), 422, "unknown-type", "/type")
    problem(post(client, {"type": "Render"}), 422, "unknown-type", "/type")
    assert stored(client) == before


GOOD: dict[str, Any] = {
    "nothing but what is needed": {},
    "every field at once": {
        "type": "render",
        "deliver_before": "2999-01-01T00:00:00+02:00",
        "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw4V",
        "schemes": ["standard", "websub"],
        "body": "cloudevents-structured",
        "headers": {"Authorization": "Bearer abc"},
        "metadata": {"order": 1},
    },
    "nulls where nothing is meant": {
        "deliver_before": None,
        "secret": None,
        "schemes": None,
        "body": None,
        "headers": None,
        "metadata": None,
    },
    "payload: null": {"payload": None},
    "payload: exactly max_body": with_payload(text_of(MAX_BODY)),
    "payload: 64 deep": with_payload(nested(64)),
    "payload: brackets in a string": with_payload(b'"' + b'[{\\"' * 100 + b'"'),
    "payload: 1e400": with_payload(b"1e400"),
    "callback_url: 8192": {"callback_url": "https://a.example/" + "a" * (8192 - 18)},
    "callback_url: port 8443": {"callback_url": "https://api.example.com:8443/cb"},
    "callback_url: public, beside 10/8": {"callback_url": "https://11.0.0.1/cb"},
    "callback_url: public, beside 172.16/12": {"callback_url": "https://172.32.0.1/cb"},
    "headers: 20": {"headers": {f"X-{n}": "1" for n in range(20)}},
    "headers: 4096 bytes": {"headers": {"X-A": "x" * 4093}},
    "headers: tab inside": {"headers": {"X-A": "a\tb"}},
    "headers: empty value": {"headers": {"X-A": ""}},
    "secret: 8 characters": {"secret": "12345678"},
    "secret: 255 characters": {"secret": "x" * 255},
    "secret: not base64, websub": {"secret": "not base64!", "schemes": ["websub"]},
    "schemes without a secret": {"schemes": ["standard", "websub"]},
    "metadata: exactly its limit": {"metadata": {"a": "x" * (16 * 1024 - 8)}},
    "deliver_before: the last second there is": {"deliver_before": "9999-12-31T23:59:59Z"},
    "deliver_before: beyond it, by its offset": {"deliver_before": "9999-12-31T23:59:59-23:59"},
}


@pytest.mark.parametrize("fields", GOOD.values(), ids=GOOD.keys())
def test_the_nearest_good_input_is_taken(client: httpx.Client, fields: Any) -> None:
    before = stored(client)
    answer = post(client, fields)
    assert answer.status_code == 202, answer.text
    assert stored(client)["accepted"] == before["accepted"] + 1
    assert client.get(answer.headers["Location"]).status_code == 200


# --- windows ----------------------------------------------------------------------------------------------


def expiring(seconds: float) -> Json:
    return {"callback_url": f"https://api.example.com/r/{jwt(sub=MARKER, exp=int(time.time()) + seconds)}"}


def before(seconds: float) -> Json:
    return {"deliver_before": (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()}


@pytest.mark.parametrize(
    ("kind", "window", "pointers"),
    [
        ("relay", lambda: expiring(-1), ("/callback_url",)),
        ("relay", lambda: expiring(10), ("/callback_url",)),
        ("render", lambda: expiring(RENDER_TIMEOUT + 10), ("/callback_url",)),
        ("relay", lambda: {"callback_url": f"https://a.example/{jwt(exp=0)}"}, ("/callback_url",)),
        ("relay", lambda: {"callback_url": f"https://a.example/?token={jwt(exp=1.5)}"}, ("/callback_url",)),
        ("relay", lambda: before(-1), ("/deliver_before",)),
        ("relay", lambda: before(9.9), ("/deliver_before",)),
        ("relay", lambda: {"deliver_before": "0001-01-01T00:00:00+23:59"}, ("/deliver_before",)),
        ("render", lambda: before(RENDER_TIMEOUT + 9.9), ("/deliver_before",)),
        ("relay", lambda: expiring(3600) | before(5), ("/deliver_before",)),
        ("relay", lambda: expiring(5) | before(3600), ("/callback_url",)),
        ("relay", lambda: expiring(5) | before(5), ("/callback_url", "/deliver_before")),
    ],
)
def test_a_window_that_ends_too_soon_is_refused(
    client: httpx.Client, kind: str, window: Any, pointers: tuple[str, ...]
) -> None:
    untouched = stored(client)
    started = time.time()
    details = problem(post(client, {"type": kind, **window()}), 422, "token-expired", *pointers)
    assert stored(client) == untouched
    earliest = datetime.fromisoformat(details["earliest_exp"])
    needed = 10 + (RENDER_TIMEOUT if kind == "render" else 0)
    assert started + needed <= earliest.timestamp() <= time.time() + needed + 1.1
    # what the answer says is good is good
    assert post(client, {"type": kind, "deliver_before": details["earliest_exp"]}).status_code == 202


@pytest.mark.parametrize(
    ("kind", "window"),
    [
        ("relay", lambda: expiring(12)),
        ("relay", lambda: before(11)),
        ("render", lambda: expiring(RENDER_TIMEOUT + 12)),
        ("relay", lambda: {"callback_url": f"https://a.example/{jwt(exp='soon')}"}),
        ("relay", lambda: {"callback_url": f"https://a.example/{jwt(exp=-1)}"}),
        ("relay", lambda: {"callback_url": "https://a.example/eyJhbGciOiJIUzI1NiJ9.e30x.c2ln"}),
    ],
)
def test_a_window_that_is_long_enough_or_unreadable_is_taken(client: httpx.Client, kind: str, window: Any) -> None:
    answer = post(client, {"type": kind, **window()})
    assert answer.status_code == 202, answer.text


def test_the_answer_tells_what_was_understood_of_the_callback(client: httpx.Client) -> None:
    end = int(time.time()) + 3600
    with_end = post(client, {"callback_url": f"https://a.example:8443/{jwt(exp=end)}"}).json()["callback"]
    assert datetime.fromisoformat(with_end.pop("expires_at")).timestamp() == end
    assert with_end == {"host": "a.example:8443", "token": "jwt", "warnings": []}
    without = post(client, {"callback_url": f"https://a.example/{jwt(sub='x')}"}).json()["callback"]
    assert (without["token"], without["expires_at"], len(without["warnings"])) == ("jwt", None, 1)
    opaque = post(client, {"callback_url": "https://a.example/k3yQ9x7Lm2Vb8Rt5"}).json()["callback"]
    assert (opaque["token"], opaque["warnings"]) == ("opaque", [])
    none = post(client, {"callback_url": "https://a.example/cb"}).json()["callback"]
    assert (none["token"], none["warnings"]) == ("none", [])


# --- batches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "status", "slug", "pointers"),
    [
        (b"[]", 422, "validation", ("",)),
        (b"{}", 422, "validation", ("/tasks",)),
        (b'{"tasks": []}', 422, "validation", ("/tasks",)),
        (b'{"tasks": {}}', 422, "validation", ("/tasks",)),
        (b'{"tasks": [1], "more": 1}', 422, "validation", ("/more",)),
        (b'{"tasks": [%s1]}' % (b"1," * 1000), 422, "validation", ("/tasks",)),
        (b'{"tasks": [{"payload": NaN}]}', 422, "invalid-json", ()),
        (b'{"tasks": ["\xff"]}', 422, "invalid-json", ()),
        (b" " * (8 * 1024 * 1024 + 1), 413, "too-large", ("",)),
    ],
    ids=["array", "empty", "none", "object", "unknown", "1001", "NaN", "bad UTF-8", "one byte over"],
)
def test_a_bad_batch_is_refused_as_a_whole(
    client: httpx.Client, content: bytes, status: int, slug: str, pointers: tuple[str, ...]
) -> None:
    untouched = stored(client)
    problem(client.post("/tasks/batch", content=content), status, slug, *pointers)
    assert stored(client) == untouched


def test_bad_items_of_a_batch_are_refused_one_by_one(client: httpx.Client) -> None:
    good = {"payload": 1, "callback_url": URL}
    bad: list[tuple[Any, int, str, list[str]]] = [
        ({"payload": 1, "callback_url": f"https://127.0.0.1/{MARKER}"}, 422, "egress", ["/tasks/1/callback_url"]),
        ({"payload": 1}, 422, "validation", ["/tasks/2/callback_url"]),
        (MARKER, 422, "validation", ["/tasks/3"]),
        ({**good, "headers": {"Host": MARKER}}, 422, "validation", ["/tasks/4/headers/Host"]),
        ({**good, "payload": "x" * MAX_BODY}, 413, "too-large", ["/tasks/5/payload"]),
        ({**good, **expiring(5)}, 422, "token-expired", ["/tasks/6/callback_url"]),
        ({**good, "type": MARKER}, 422, "unknown-type", ["/tasks/7/type"]),
        ({**good, "schemes": ["websub", "x"]}, 422, "validation", ["/tasks/8/schemes/1"]),
    ]
    untouched = stored(client)
    answer = client.post("/tasks/batch", json={"tasks": [good, *(item for item, *_ in bad), good]})
    assert answer.status_code == 202
    assert MARKER not in answer.text
    items = answer.json()["items"]
    assert [item["index"] for item in items] == list(range(10))
    for item, (_, status, slug, fields) in zip(items[1:9], bad, strict=True):
        details = item["problem"]
        found = [error["field"] for error in details["errors"]]
        assert (item["status"], details["status"], details["type"]) == (status, status, f"/problems/{slug}")
        assert found == fields
        assert "task" not in item
    assert [item["status"] for item in (items[0], items[9])] == [202, 202]
    now = stored(client)
    assert now["accepted"] == untouched["accepted"] + 2
    assert now["tasks"][:2] == [items[9]["task"]["id"], items[0]["task"]["id"]]


def test_a_batch_of_a_thousand_is_taken(client: httpx.Client) -> None:
    untouched = stored(client)
    answer = client.post("/tasks/batch", json={"tasks": [{"payload": 1, "callback_url": URL}] * 1000})
    assert answer.status_code == 202
    assert {item["status"] for item in answer.json()["items"]} == {202}
    assert stored(client)["accepted"] == untouched["accepted"] + 1000


# --- requests on the wire ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True], ids=["Content-Length", "chunked"])
@pytest.mark.parametrize("path", ["/tasks", "/tasks/batch", "/tasks/lease"])
def test_a_request_far_too_large_is_refused_and_the_connection_stays_usable(
    strict: Server, client: httpx.Client, path: str, chunked: bool
) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(strict.url.rpartition(":")[2]), timeout=20)
    headers = {"Authorization": client.headers["Authorization"]}
    parts = [b"[" * 65_536] * 200
    try:
        if chunked:
            connection.request(
                "POST", path, iter(parts), {**headers, "Transfer-Encoding": "chunked"}, encode_chunked=True
            )
        else:
            connection.request("POST", path, b"".join(parts), headers)
        refused = connection.getresponse()
        assert refused.status == 413
        assert json.loads(refused.read())["type"] == "/problems/too-large"
        connection.request("GET", "/account", headers=headers)
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def test_what_is_not_http_ends_its_own_connection_only(strict: Server, client: httpx.Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", int(strict.url.rpartition(":")[2]), timeout=10)
    connection.connect()
    assert connection.sock is not None
    connection.sock.sendall(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
    assert connection.sock.recv(1024).startswith(b"HTTP/1.1 400")
    connection.close()
    assert client.get("/healthz").json() == {"status": "ok"}


# --- parameters and other routes --------------------------------------------------------------------------

OTHER = "0" * 32

ROUTES: list[tuple[str, str, Any, int, str, tuple[str, ...]]] = [
    ("GET", "/tasks?limit=0", None, 422, "validation", ("/limit",)),
    ("GET", "/tasks?limit=201", None, 422, "validation", ("/limit",)),
    ("GET", f"/tasks?limit={MARKER}", None, 422, "validation", ("/limit",)),
    ("GET", f"/tasks?state={MARKER}", None, 422, "validation", ("/state",)),
    ("GET", f"/tasks?cursor={MARKER}", None, 422, "validation", ("/cursor",)),
    ("GET", "/tasks?cursor=" + "A" * 32, None, 422, "validation", ("/cursor",)),
    ("GET", "/deliveries?limit=0", None, 422, "validation", ("/limit",)),
    ("GET", "/deliveries?limit=201", None, 422, "validation", ("/limit",)),
    ("GET", f"/deliveries?state={MARKER}", None, 422, "validation", ("/state",)),
    ("GET", f"/deliveries?cursor={MARKER}", None, 422, "validation", ("/cursor",)),
    ("GET", f"/tasks/{OTHER}", None, 404, "not-found", ()),
    ("GET", f"/tasks/{MARKER}", None, 404, "not-found", ()),
    ("GET", "/tasks/%00", None, 404, "not-found", ()),
    ("GET", f"/deliveries/{OTHER}", None, 404, "not-found", ()),
    ("GET", f"/deliveries/{MARKER}", None, 404, "not-found", ()),
    ("GET", f"/{MARKER}", None, 404, "not-found", ()),
    ("POST", "/tasks/", {"payload": 1, "callback_url": URL}, 404, "not-found", ()),
    ("POST", f"/tasks/{OTHER}/cancel", None, 404, "not-found", ()),
    ("POST", f"/deliveries/{OTHER}/redeliver", None, 404, "not-found", ()),
    ("POST", f"/deliveries/{OTHER}/redeliver", {"a": MARKER}, 422, "validation", ("",)),
    ("PUT", f"/tasks/{OTHER}/callback", {"callback_url": URL}, 404, "not-found", ()),
    ("PUT", f"/tasks/{OTHER}/callback", {"callback_url": 1}, 422, "validation", ("/callback_url",)),
    ("PUT", f"/tasks/{OTHER}/callback", {"callback_url": URL, "payload": 1}, 422, "validation", ("/payload",)),
    ("POST", "/tasks/lease", {"types": []}, 422, "validation", ("/types",)),
    ("POST", "/tasks/lease", {"types": ["render"], "limit": 0}, 422, "validation", ("/limit",)),
    ("POST", "/tasks/lease", {"types": ["render"], "limit": 101}, 422, "validation", ("/limit",)),
    ("POST", "/tasks/lease", {"types": ["render", "relay"]}, 422, "unknown-type", ("/types/1",)),
    ("POST", "/tasks/lease", {"types": [MARKER]}, 422, "unknown-type", ("/types/0",)),
    ("POST", f"/tasks/{OTHER}/renew", {"attempt": 1}, 404, "not-found", ()),
    ("POST", f"/tasks/{OTHER}/renew", {"attempt": 0}, 422, "validation", ("/attempt",)),
    ("POST", f"/tasks/{OTHER}/result", {"attempt": 1}, 422, "validation", ("/result",)),
    (
        "POST",
        f"/tasks/{OTHER}/result",
        {"attempt": 1, "result": MARKER, "error": {"message": MARKER}},
        422,
        "validation",
        ("/result",),
    ),
    ("POST", f"/tasks/{OTHER}/result", {"attempt": 1, "error": MARKER}, 422, "validation", ("/error",)),
    (
        "POST",
        f"/tasks/{OTHER}/result",
        {"attempt": 1, "error": {"message": ""}},
        422,
        "validation",
        ("/error/message",),
    ),
    ("POST", f"/tasks/{OTHER}/result", {"attempt": 1, "result": MARKER}, 404, "not-found", ()),
    ("PATCH", "/account", {"default_secret": MARKER[:7]}, 422, "validation", ("/default_secret",)),
    ("PATCH", "/account", {"schemes": ["websub", "websub"]}, 422, "validation", ("/schemes",)),
    (
        "PATCH",
        "/account",
        {"schemes": ["standard"], "default_secret": f"{MARKER}!"},
        422,
        "validation",
        ("/schemes",),
    ),
    ("PATCH", "/account", {"retry_schedule": [0]}, 422, "validation", ("/retry_schedule/0",)),
    ("PATCH", "/account", {"retry_schedule": [604801]}, 422, "validation", ("/retry_schedule/0",)),
    ("PATCH", "/account", {"retry_schedule": [1] * 51}, 422, "validation", ("/retry_schedule",)),
    ("PATCH", "/account", {"limits": {}}, 422, "validation", ("/limits",)),
]


def test_a_method_that_is_not_there_says_which_are(client: httpx.Client) -> None:
    answer = client.request("DELETE", "/tasks")
    assert (answer.status_code, answer.headers["content-type"]) == (405, "application/problem+json")
    assert answer.json() == {"type": "about:blank", "title": "Method Not Allowed", "status": 405}
    assert "POST" in answer.headers["allow"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "slug", "pointers"),
    ROUTES,
    ids=[f"{n}-{r[1][:30]}" for n, r in enumerate(ROUTES)],
)
def test_other_routes_refuse_alike(
    client: httpx.Client, method: str, path: str, body: Any, status: int, slug: str, pointers: tuple[str, ...]
) -> None:
    untouched = stored(client), client.get("/account").json()
    content = None if body is None else json.dumps(body).encode()
    problem(client.request(method, path, content=content), status, slug, *pointers)
    assert (stored(client), client.get("/account").json()) == untouched


@pytest.mark.parametrize("content", [b"", b"{", b'{"callback_url": "\xff"}', b"\x00"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", f"/tasks/{OTHER}/callback"), ("POST", "/tasks/lease"), ("PATCH", "/account"), ("POST", "/tasks/batch")],
)
def test_broken_json_is_refused_everywhere(client: httpx.Client, method: str, path: str, content: bytes) -> None:
    problem(client.request(method, path, content=content), 422, "invalid-json")


def test_another_accounts_objects_are_not_found(strict: Server, client: httpx.Client) -> None:
    mine = post(client, {}).json()
    with client_of(strict, "other") as other:
        for method, path, body in [
            ("GET", f"/tasks/{mine['id']}", None),
            ("POST", f"/tasks/{mine['id']}/cancel", None),
            ("PUT", f"/tasks/{mine['id']}/callback", {"callback_url": URL}),
            ("POST", f"/tasks/{mine['id']}/renew", {"attempt": 1}),
            ("POST", f"/tasks/{mine['id']}/result", {"attempt": 1, "result": 1}),
            ("GET", f"/deliveries/{mine['delivery_id']}", None),
            ("POST", f"/deliveries/{mine['delivery_id']}/redeliver", None),
        ]:
            answer = other.request(method, path, content=None if body is None else json.dumps(body).encode())
            problem(answer, 404, "not-found")
        assert stored(other) == {"accepted": 0, "tasks": [], "deliveries": []}
        params = {"task_id": mine["id"]}
        assert other.get("/deliveries", params=params).json() == {"items": [], "next_cursor": None}
    assert client.get(f"/deliveries/{mine['delivery_id']}").json()["state"] != "cancelled"
