"""No secret is kept in clear: a run with every kind of secret and every kind of trouble, then a search of all it left.

Searched are the files of the data directory, or all that PostgreSQL has and says, both output streams of the server,
and every answer of its API.
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
import secrets
import socket
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jwt
import pytest

from subscriptions.keyring import Keyring
from tests.conftest import of_the_file
from tests.support import postgres
from tests.support.dns import NameServerThread
from tests.support.leaks import Echo, Evidence, a_jwt, end_of, files_of, fresh, kept_by, long_texts, search
from tests.support.ledgers import ask
from tests.support.receiver import Received, Receiver, Reply
from tests.support.server import Server, until

Start = Callable[..., Server]

ENDED = {"delivered", "exhausted", "rejected", "expired", "cancelled"}


# --- the search -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "plant"),
    [
        ("clear", lambda secret: secret.encode()),
        ("clear", lambda secret: secret.swapcase().encode()),
        ("clear", lambda secret: secret.upper().encode()),
        ("base64", lambda secret: base64.b64encode(f"a{secret}".encode())),
        ("base64", lambda secret: base64.urlsafe_b64encode(f'{{"url": "{secret}"}}'.encode())),
        ("base64", lambda secret: base64.b64encode(secret.encode())),
        ("hex", lambda secret: secret.encode().hex().upper().encode()),
        ("percent", lambda secret: quote(secret, safe="").lower().encode()),
        ("percent", lambda secret: "".join(f"%{byte:02X}" for byte in secret.encode()).encode()),
        ("json", lambda secret: json.dumps(secret).encode()),
        ("json", lambda secret: json.dumps(secret).replace("/", "\\/").encode()),
        ("html", lambda secret: html.escape(secret).encode()),
        ("utf-16", lambda secret: secret.encode("utf-16-le")),
    ],
)
def test_the_search_finds_what_is_planted(form: str, plant: Callable[[str], bytes]) -> None:
    # other letters than ASCII are searched for in their own case only
    secret = ("wé" if form in {"json", "percent", "utf-16"} else "we") + '/b"h+00k&=' + secrets.token_urlsafe(12)
    noise = os.urandom(4096)
    assert search(noise, {"planted": secret}) == []
    assert f"planted ({form})" in search(noise + plant(secret) + noise, {"planted": secret})


@of_the_file
def test_the_search_finds_what_is_planted_in_a_database(tmp_path: Path) -> None:
    secret = secrets.token_urlsafe(24)
    with closing(sqlite3.connect(tmp_path / "some.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE t (c)")
        assert search(files_of(tmp_path), {"planted": secret}) == []
        database.execute("INSERT INTO t VALUES (?)", (secret,))
        database.commit()
        assert search(files_of(tmp_path), {"planted": secret}) != []


def test_the_search_finds_what_is_planted_in_a_database_of_postgresql(bare_postgres_url: str) -> None:
    name, secret = postgres.name_of(bare_postgres_url), secrets.token_urlsafe(24)
    postgres.shared().execute("CREATE SCHEMA s; CREATE TABLE s.t (c text, b bytea)", database=name)
    assert search(postgres.kept_in(bare_postgres_url), {"planted": secret}) == []
    for value in ((secret, None), (None, secret.encode())):
        postgres.shared().execute("DELETE FROM s.t", database=name)
        postgres.change(bare_postgres_url, "INSERT INTO s.t VALUES (?, ?)", value)
        assert search(postgres.kept_in(bare_postgres_url), {"planted": secret}) != []
    postgres.shared().execute(f"DO $$ BEGIN RAISE WARNING '{secret}-logged'; END $$", database=name)
    assert search(postgres.kept_in(bare_postgres_url), {"planted": f"{secret}-logged"}) != []


# --- the run ----------------------------------------------------------------------------------------------


PROCESSORS = """
from dispatcher.errors import ProcessorError
from dispatcher.processors import processor

@processor("raises", tries=2, backoff=0.01)
async def raises(payload):
    raise ValueError(f"cannot work on {payload!r}")

@processor("raises.thread", tries=1)
def raises_in_a_thread(payload):
    secret = payload["secret"]
    raise KeyError(secret)

@processor("raises.process", tries=1, cpu=True)
def raises_in_a_process(payload):
    raise RuntimeError(str(payload))

@processor("tells", tries=1)
async def tells(payload):
    raise ProcessorError("the payload has no total")
"""

FORMS = ("plain", "json", "php", "ascii", "percent", "html", "upper")


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory, a_database: str | None) -> Evidence:
    """A whole run, and what it left."""
    folder = tmp_path_factory.mktemp("leaks")
    (folder / "leaky_processors.py").write_text(PROCESSORS)
    found = Evidence()
    echo = Echo()
    zone = {"good.test": ["127.0.0.1"]}
    with pytest.MonkeyPatch.context() as patch, NameServerThread(zone) as names, Receiver(echo) as receiver:
        patch.setenv("PYTHONPATH", str(folder))
        settings = {
            "log_level": "debug",
            "log_format": "json",
            "retry_schedule": "[0.05, 0.05]",
            "send_timeout": "1",
            "nameservers": names.address,
        }
        options = ("--processors", "leaky_processors")
        with Server(folder / "data", settings=settings, options=options, database_url=a_database) as server:
            _run(server, receiver, echo, found)
            found.places["database while it runs"] = kept_by(server)
            if server.database_url is None:
                with closing(sqlite3.connect(server.data_dir / "dispatcher.db")) as database:
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            rows = ask(
                server.place,
                "SELECT d.id, t.callback_url, t.callback_secret, t.callback_headers "
                "FROM deliveries d JOIN tasks t ON t.id = d.source_id",
            )
            found.wiped = {row[0]: row[1:] for row in rows}
            found.places["database after a checkpoint"] = kept_by(server)
            found.places["stdout"] = end_of(server)
        found.places["database after the end"] = kept_by(server)
        found.places["stderr"] = server.log.read_bytes()
        found.places["answers"] = b"\n".join(found.answers)
        keys = json.loads((server.data_dir / "keyring.json").read_text())
        for n, key in enumerate(long_texts(keys)):
            found.secret(f"key {n}", key)
        found.on_the_wire = b"\n".join(
            "\n".join([r.target, *(f"{n}: {v}" for n, v in r.headers)]).encode() for r in receiver.received
        )
    return found


def _run(server: Server, receiver: Receiver, echo: Echo, found: Evidence) -> None:
    found.secret("dev token", server.token)
    made = server.cli("token", "create", "--account", "dev", "--scope", "tasks:read", "--note", "for a test")
    found.secret("made token", made.stdout.strip())
    assert found.secrets["made token"] not in server.cli("token", "list", "--json").stdout
    with server.client(event_hooks={"response": [found.keep]}) as client:
        _deliver(client, receiver, echo, found)
        _deliver_nowhere(client, receiver, found)
        _process(client, receiver, found)
        _change(client, receiver, found)
        _ask_badly(client, receiver, found)
        _speak_badly(server, found)
        _wait_and_read(client, found)
    with httpx.Client(base_url=server.url, event_hooks={"response": [found.keep]}, trust_env=False) as client:
        for authorization in (f"Bearer x{server.token}", f"Basic {server.token}", f"bearer {server.token[:-1]}"):
            assert client.get("/tasks", headers={"Authorization": authorization}).status_code == 401
        assert client.get("/tasks", params={"access_token": server.token}).status_code == 401
        made_token = {"Authorization": f"Bearer {found.secrets['made token']}"}
        assert client.get("/deliveries", headers=made_token).status_code == 403


def _post(client: httpx.Client, **task: Any) -> str:
    answer = client.post("/tasks", json={"payload": {"n": 1}} | task)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def _deliver(client: httpx.Client, receiver: Receiver, echo: Echo, found: Evidence) -> None:
    """Callbacks with credentials everywhere, to a receiver that tells them all."""
    default = found.secret("account secret", "whsec_" + base64.b64encode(b"\xfb\xef\xff" + os.urandom(24)).decode())
    assert client.patch("/account", json={"default_secret": default}).status_code == 200
    for form in FORMS:
        for status in (200, 302, 404, 500) if form == "plain" else (200, 404):
            name = f"{form} {status}"
            path = found.secret(f"path token, {name}", fresh("p"))
            query = found.secret(f"query token, {name}", fresh("q"))
            token = a_jwt()
            for part, text in zip(("header", "claims", "signature"), token.split("."), strict=True):
                if part != "header":
                    found.secret(f"jwt {part}, {name}", text)
            odd = f"{fresh('o')}/+ ={fresh('O')}"
            found.secret(f"odd token, {name}", odd)
            target = f"/{status}/{form}/{path}/{token}/{quote(odd, safe='')}/x?sig={query}&a=b"
            url = f"http://good.test:{receiver.port}{target}"
            secret = default
            extra: dict[str, Any] = {}
            if status != 404:
                secret = "whsec_" + base64.b64encode(b"\xfb\xef\xff" + os.urandom(24)).decode()
                if form in {"php", "html"}:
                    secret = f'p"a/s\\s<wörd>&{fresh("t")}'
                found.secret(f"secret, {name}", secret)
                extra["secret"] = secret
            value = f'{fresh("h")}/"q\\uo<te>&{fresh("H")}'
            found.secret(f"header value, {name}", value)
            bearer = found.secret(f"bearer, {name}", fresh("b"))
            extra["headers"] = {"X-Secret": value, "Authorization": f"Bearer {bearer}"}
            echo.known[target] = [secret]
            _post(client, callback_url=url, **extra)


def _deliver_nowhere(client: httpx.Client, receiver: Receiver, found: Evidence) -> None:
    """Errors of DNS, TLS and TCP."""
    with closing(socket.socket()) as closed, closing(socket.create_server(("127.0.0.1", 0))) as plain:
        closed.bind(("127.0.0.1", 0))
        threading.Thread(target=_greet, args=(plain, 3), daemon=True).start()
        for name, origin in {
            "dns": "https://no.such.test",
            "tls": f"https://127.0.0.1:{plain.getsockname()[1]}",
            "timeout": f"https://127.0.0.1:{receiver.port}",
            "refused": f"http://127.0.0.1:{closed.getsockname()[1]}",
        }.items():
            token = found.secret(f"token, {name}", fresh("n"))
            _post(client, callback_url=f"{origin}/{token}?key={found.secret(f'key, {name}', fresh('k'))}")
        _wait(client)


def _greet(listener: socket.socket, times: int) -> None:
    """Speak first, as a mail server does: no TLS handshake can follow."""
    for _ in range(times):
        with listener.accept()[0] as connection:
            connection.sendall(b"220 mail.test ESMTP\r\n")


def _process(client: httpx.Client, receiver: Receiver, found: Evidence) -> None:
    """Processors that raise with what they were given."""
    for type_ in ("raises", "raises.thread", "raises.process", "tells"):
        token = found.secret(f"token, {type_}", fresh("r"))
        payload = found.payload_secrets[type_] = fresh("y")
        url = f"http://127.0.0.1:{receiver.port}/200/plain/{token}"
        _post(client, type=type_, payload={"secret": payload}, callback_url=url)


def _change(client: httpx.Client, receiver: Receiver, found: Evidence) -> None:
    """Callbacks that are replaced, cancelled, and sent again."""
    base = f"http://127.0.0.1:{receiver.port}"
    first = found.secret("replaced token", fresh("f"))
    second = found.secret("replacing token", fresh("g"))
    task = _post(
        client, callback_url=f"https://no.such.test/{first}", secret=found.secret("old secret", fresh("whsec_"))
    )
    answer = client.put(
        f"/tasks/{task}/callback",
        json={
            "callback_url": f"{base}/200/plain/{second}",
            "secret": found.secret("new secret", fresh("whsec_")),
            "headers": {"X-New": found.secret("new header", fresh("w"))},
        },
    )
    assert answer.status_code == 200
    cancelled = _post(client, callback_url=f"{base}/500/json/{found.secret('cancelled token', fresh('c'))}")
    client.post(f"/tasks/{cancelled}/cancel")
    bad = {"callback_url": f"ftp://{found.secret('bad replacement', fresh('v'))}/x"}
    assert client.put(f"/tasks/{task}/callback", json=bad).status_code == 422
    again = _post(client, callback_url=f"{base}/200/html/{found.secret('token sent again', fresh('z'))}")
    delivery = client.get(f"/tasks/{again}").json()["delivery_id"]
    until(lambda: client.get(f"/deliveries/{delivery}").json()["state"] == "delivered")
    assert client.post(f"/deliveries/{delivery}/redeliver").json()["type"] == "/problems/callback-wiped"


def _ask_badly(client: httpx.Client, receiver: Receiver, found: Evidence) -> None:
    """Requests that are wrong in every way, each with a token in its wrong place."""
    good = f"http://127.0.0.1:{receiver.port}/200/plain/"

    def token(place: str) -> str:
        # with a dot, as a JWT has: a plain word in the place of a field's name is taken to be one
        return found.secret(f"bad request, {place}", f"{fresh('e')}.{fresh('m')}")

    urls = {
        "scheme": "gopher://h/{}",
        "user": "https://user:{}@h.test/",
        "host": "https://{}_(/x",
        "port": "https://h.test:{}/",
        "space": "https://h.test/ {}",
        "control": "https://h.test/\n{}",
        "fragment": "https://h.test/#{}",
        "literal": "http://10.0.0.1/{}",
        "number": "http://0x7f.1/{}",
        "relative": "/{}",
        "non-ascii": "https://h.test/ä{}",
        "long": "https://h.test/{}" + "a" * 9000,
    }
    bodies: dict[str, Any] = {
        place: {"payload": 1, "callback_url": url.format(token(place))} for place, url in urls.items()
    }
    expired = jwt.encode({"exp": 1, "sub": token("expired claims")}, "k" * 32, algorithm="HS256")
    found.secret("bad request, expired jwt", expired)
    bodies |= {
        "expired": {"payload": 1, "callback_url": good + expired},
        "type": {"payload": 1, "callback_url": good, "type": token("type")},
        "no type": {"payload": 1, "callback_url": good, "type": [token("no type")]},
        "unknown type": {"payload": 1, "callback_url": good, "type": token("unknown type").replace(".", "-")},
        "unknown field": {"payload": 1, "callback_url": good, token("unknown field"): 1},
        "unknown field's value": {"payload": 1, "callback_url": good, "x": token("unknown field's value")},
        "number as url": {"payload": token("number as url"), "callback_url": 1},
        "list as url": {"payload": 1, "callback_url": [token("list as url")]},
        "no payload": {"callback_url": good + token("no payload")},
        "before": {"payload": 1, "callback_url": good, "deliver_before": token("before")},
        "short secret": {"payload": 1, "callback_url": good + token("short secret"), "secret": "short"},
        "long secret": {"payload": 1, "callback_url": good, "secret": token("long secret") * 20},
        "control secret": {"payload": 1, "callback_url": good, "secret": token("control secret") + "\n"},
        "list secret": {"payload": 1, "callback_url": good, "secret": [token("list secret")]},
        "schemes": {"payload": 1, "callback_url": good, "schemes": [token("schemes")]},
        "scheme for secret": {
            "payload": 1,
            "callback_url": good,
            "schemes": ["standard"],
            "secret": token("scheme for secret"),
        },
        "body": {"payload": 1, "callback_url": good, "body": token("body")},
        "metadata": {"payload": 1, "callback_url": good, "metadata": token("metadata")},
        "deep": json.loads("[" * 80 + "]" * 80),
        "header list": {"payload": 1, "callback_url": good, "headers": [token("header list")]},
        "header number": {"payload": 1, "callback_url": good, "headers": {"X-A": 1, "X-B": token("header number")}},
        "header object": {"payload": 1, "callback_url": good, "headers": {"X-A": {"b": token("header object")}}},
        "header line": {"payload": 1, "callback_url": good, "headers": {"X-A": token("header line") + "\r\nX: y"}},
        "header long": {"payload": 1, "callback_url": good, "headers": {"X-A": token("header long") * 200}},
        "header reserved": {"payload": 1, "callback_url": good, "headers": {"Host": token("header reserved")}},
        "header name": {"payload": 1, "callback_url": good, "headers": {token("header name") + " ": "x"}},
        "top level": [token("top level")],
        "top text": token("top text"),
    }
    for place, body in bodies.items():
        answer = client.post("/tasks", json=body)
        assert answer.status_code in {413, 422}, (place, answer.text)
    batch = client.post("/tasks/batch", json={"tasks": list(bodies.values())})
    assert batch.status_code == 202
    assert {item["status"] for item in batch.json()["items"]} <= {413, 422}
    text = token("text")
    for raw in (
        f'{{"callback_url": "{good}{text}", "payload": }}',
        f'{{"callback_url": "{good}{text}", "payload": NaN}}',
        f'{{"callback_url": "{good}{text}"',
        f"{text}",
        f'{{"{text}": "\\ud800',
        f'{{"callback_url": "{good}{text}\\x"}}',
    ):
        for path in ("/tasks", "/tasks/batch"):
            assert client.post(path, content=raw.encode()).status_code == 422
    latin = f'{{"callback_url": "{good}ä{text}"}}'.encode("latin-1")
    assert client.post("/tasks", content=latin).status_code == 422
    assert client.post("/tasks", json={"payload": token("size") * 9000, "callback_url": good}).status_code == 413
    assert client.patch("/account", json={"default_secret": token("account") * 20}).status_code == 422
    assert client.patch("/account", json={"schemes": [token("account schemes")]}).status_code == 422
    assert client.patch("/account", json={"retry_schedule": [token("schedule")]}).status_code == 422
    assert client.post("/tasks/lease", json={"types": [token("lease")]}).status_code == 422
    inquiry = token("query")
    for parameter in ("state", "cursor", "limit", "type", "task_id"):
        client.get("/tasks", params={parameter: inquiry})
        client.get("/deliveries", params={parameter: inquiry})
    path = token("path")
    for method, route in (
        ("GET", "/tasks/{}"),
        ("POST", "/tasks/{}/cancel"),
        ("PUT", "/tasks/{}/callback"),
        ("POST", "/tasks/{}/renew"),
        ("POST", "/tasks/{}/result"),
        ("GET", "/deliveries/{}"),
        ("POST", "/deliveries/{}/redeliver"),
        ("GET", "/{}"),
        ("DELETE", "/tasks/{}"),
        ("GET", "/tasks/{}/"),
    ):
        body = {"attempt": 1, "callback_url": good} if method == "PUT" else {"attempt": 1, "result": path}
        answer = client.request(method, route.format(path), json=None if method == "GET" else body)
        assert 400 <= answer.status_code < 500
    long = token("long key")
    assert client.post("/tasks", json={}, headers={"Idempotency-Key": long * 9}).status_code == 422


def _speak_badly(server: Server, found: Evidence) -> None:
    """What is not HTTP at all, or breaks off."""
    address = httpx.URL(server.url)
    for place, message in {
        "no method": "{}\r\n\r\n",
        "no version": "GET /{} HTTP/9\r\n\r\n",
        "bad header": "GET /x HTTP/1.1\r\nHost: x\r\n{}\x01\r\n\r\n",
        "bad length": "POST /tasks HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
        "long header": "GET /x HTTP/1.1\r\nHost: x\r\nX-A: {}" + "a" * 200_000 + "\r\n\r\n",
        "broken off": f"POST /tasks HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
        "Content-Length: 1000\r\n\r\n{}",
    }.items():
        token = found.secret(f"not HTTP, {place}", fresh("u"))
        with closing(socket.create_connection((address.host, address.port or 0), 5)) as connection:
            try:
                connection.sendall(message.replace("{}", token).encode())
                if place == "broken off":
                    connection.shutdown(socket.SHUT_WR)
                connection.settimeout(0.5)
                found.answers.append(connection.recv(65536))
            except OSError:
                continue


def _wait(client: httpx.Client) -> None:
    """Until all has ended."""
    until(lambda: not any(client.get("/ledger").json()[state] for state in ("pending", "leased")), every=0.1)


def _wait_and_read(client: httpx.Client, found: Evidence) -> None:
    """Until all has ended; then read everything there is to read."""
    _wait(client)
    for path in ("/tasks", "/deliveries"):
        cursor: str | None = None
        for _ in range(20):
            page = client.get(path, params={"limit": 200} | ({"cursor": cursor} if cursor else {})).json()
            for item in page["items"]:
                one = client.get(f"{path}/{item['id']}").json()
                if path == "/deliveries":
                    found.deliveries[item["id"]] = one
                    found.attempts += one["attempts"]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    routes = ["/ledger", "/account", "/processors", "/egress-addresses", "/healthz", "/readyz", "/metrics", "/docs"]
    for route in [*routes, "/openapi.json"]:
        assert client.get(route).status_code == 200, route


# --- what it showed ---------------------------------------------------------------------------------------


def test_the_run_was_a_real_one(evidence: Evidence) -> None:
    """The secrets did go over the wire, the answers did tell them, and every kind of end was reached."""
    sent = {name: text for name, text in evidence.secrets.items() if name.startswith(("path token", "jwt", "bearer"))}
    assert {found.rpartition(" (")[0] for found in search(evidence.on_the_wire, sent)} == set(sent)
    outcomes = {attempt["outcome"] for attempt in evidence.attempts}
    assert outcomes >= {"success", "http_error", "dns_error", "tls_error", "connection_error", "timeout"}
    states = {delivery["state"] for delivery in evidence.deliveries.values()}
    assert states >= {"delivered", "exhausted", "rejected"}
    echoes = [attempt for attempt in evidence.attempts if attempt["response_body"]]
    assert len(echoes) > 15
    assert all("[redacted]" in attempt["response_body"].lower() for attempt in echoes)
    assert b'"event": "attempt"' in evidence.places["stderr"]
    assert len(evidence.places["database while it runs"]) > 100_000
    print(
        f"\n{len(evidence.secrets)} secrets, {len(evidence.deliveries)} deliveries, {len(evidence.attempts)} attempts, "
        f"{len(evidence.answers)} answers; searched {sum(map(len, evidence.places.values())) / 1e6:.1f} MB"
    )


@pytest.mark.parametrize(
    "place",
    [
        "database while it runs",
        "database after a checkpoint",
        "database after the end",
        "stderr",
        "stdout",
        "answers",
    ],
)
def test_no_secret_is_found(evidence: Evidence, place: str) -> None:
    found = search(evidence.places[place], evidence.secrets)
    assert not found, "\n".join(found)


def test_what_a_processor_raised_is_told_to_nobody(evidence: Evidence) -> None:
    assert search(evidence.places["answers"], evidence.payload_secrets) == []
    assert b"the processor failed" in evidence.places["answers"]
    assert b"the payload has no total" in evidence.places["answers"]


def test_a_callback_is_wiped_with_its_delivery(evidence: Evidence) -> None:
    assert set(evidence.wiped) == set(evidence.deliveries)
    kept = set()
    for delivery, columns in evidence.wiped.items():
        state = evidence.deliveries[delivery]["state"]
        if state == "delivered":
            assert columns == (None, None, None)
        else:
            kept.add(state)
            assert columns[0] is not None, "what was not delivered can be sent again"
    assert kept >= {"exhausted", "rejected"}


@pytest.mark.parametrize("cut", ["by the receiver", "by us"])
def test_no_part_of_a_token_is_found_where_an_echo_was_cut(start_server: Start, cut: str) -> None:
    token = secrets.token_hex(3000)

    def answer(request: Received) -> Reply:
        if cut == "by the receiver":
            return Reply(status=404, body=f"no such page: {request.target[:200]}…".encode())
        return Reply(status=404, body=(request.target * 20).encode())

    with Receiver(answer) as receiver, start_server().client() as client:
        task = client.post("/tasks", json={"payload": 1, "callback_url": f"{receiver.url}/cb/{token}"}).json()
        path = f"/deliveries/{task['delivery_id']}"
        delivery = until(lambda: (found := client.get(path).json())["state"] == "rejected" and found)
        body = delivery["attempts"][0]["response_body"]
    leaked = max((len(run) for run in re.findall("[0-9a-f]+", body) if run in token), default=0)
    assert leaked < 16, f"{leaked} characters of the token"


# --- the keyring ------------------------------------------------------------------------------------------


def serve_refused(server: Server) -> str:
    """Start it, see it refuse, and return what it said."""
    said = server.cli("serve", "--port", "0", "--dev", check=False)
    assert (said.returncode, said.stdout) == (2, "")
    assert "Traceback" not in said.stderr
    return said.stderr


def test_the_keyring_is_private_and_never_made_beside_rows(tmp_path: Path, start_server: Start) -> None:
    server = start_server()
    other = tmp_path / "other.json"
    Keyring.create(other)
    keyring = server.data_dir / "keyring.json"
    for file in server.data_dir.iterdir():
        assert file.stat().st_mode & 0o077 == 0, f"{file.name} can be read by others"
    assert server.data_dir.stat().st_mode & 0o077 == 0
    assert keyring.stat().st_mode & 0o777 == 0o600
    with Receiver() as receiver, server.client() as client:
        assert client.post("/tasks", json={"payload": 1, "callback_url": receiver.url}).status_code == 202
        receiver.wait_for(1)
    server.stop()

    kept = keyring.read_bytes()
    keyring.unlink()
    said = serve_refused(server)
    assert "keyring.json is missing" in said
    assert "restore it from a backup" in said
    assert not keyring.exists(), "a keyring was made beside a database that has rows"
    token = server.cli("token", "create", "--account", "a", "--scope", "tasks:read", check=False)
    assert token.returncode == 2
    assert not keyring.exists()

    keyring.write_bytes(other.read_bytes())
    keyring.chmod(0o644)
    assert "run chmod 600 on it" in serve_refused(server)
    keyring.chmod(0o600)
    assert "does not belong to this database" in serve_refused(server)
    for damage in (b"", kept[: len(kept) // 2]):
        keyring.write_bytes(damage)
        assert "keyring" in serve_refused(server)
        assert keyring.read_bytes() == damage, "a keyring is never overwritten"

    keyring.write_bytes(kept)
    with server.start().client() as client:
        assert client.get("/ledger").json()["delivered"] == 1
