"""No secret of a subscription is kept in clear, or told by anything but the one answer that made it.

As tests/e2e/test_leaks.py does for callbacks: a run with every kind of secret and of trouble, then a search of the
files of the data directory, of both output streams, of every answer of the API, of what the command line prints, and
of the `repr` of what holds them.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from dispatcher.installation import open_installation
from dispatcher.store.records import Endpoint
from dispatcher.store.rotating import Rotation
from subscriptions import store as subscription_store
from subscriptions.secrets import SigningKey
from tests.support.api import Json, leading_to
from tests.support.dns import NameServerThread
from tests.support.leaks import Echo, Evidence, Wanted, a_jwt, end_of, fresh, kept_by, long_texts, search
from tests.support.receiver import Receiver, Reply
from tests.support.server import Server, until
from tests.support.subscribers import PATH, body_of

FORMS = ("plain", "json", "php", "ascii", "percent", "html", "upper")
#: nothing that is asked for fails for any other reason than the receiver's answer
ACCOUNT = "dev"


class Story:
    """What is done to a dispatcher, and what must not be found afterwards."""

    def __init__(self, server: Server, receiver: Receiver, echo: Echo, found: Evidence) -> None:
        self.server = server
        self.received = receiver.received
        self.found = found
        self.echo = echo
        self.origin = f"http://good.test:{receiver.port}"
        self.ids: list[str] = []
        #: answers that show a secret, which only this one request may see
        self.shown = 0
        self.printed: list[bytes] = []
        self.reprs: list[str] = []

    # --- the means

    def secret(self, name: str, text: str) -> str:
        """Note a text that must not be found, and the key in it, if it is base64."""
        self.found.secret(name, text)
        bare = text.removeprefix("whsec_")
        if bare != text:
            self.found.secret(f"{name}, without prefix", bare)
        with suppress(ValueError):
            key = base64.b64decode(bare, validate=True)
            if len(key) >= 12:
                self.found.keys[f"{name}, decoded"] = key
        return text

    def url(self, status: int, form: str, name: str) -> str:
        """A URL with credentials everywhere; its path says how the receiver answers."""
        path = self.secret(f"path token, {name}", fresh("p"))
        query = self.secret(f"query token, {name}", fresh("q"))
        odd = self.secret(f"odd token, {name}", f"{fresh('o')}/+ ={fresh('O')}")
        token = a_jwt()
        self.secret(f"jwt signature, {name}", token.rpartition(".")[2])
        return f"{self.origin}/{status}/{form}/{path}/{token}/{quote(odd, safe='')}/x?sig={query}&a=b"

    def headers(self, name: str) -> Json:
        """Custom headers with credentials."""
        bearer = self.secret(f"bearer, {name}", fresh("b"))
        password = self.secret(f"password, {name}", fresh("w"))
        basic = base64.b64encode(f"user:{password}".encode()).decode()
        return {
            "X-Secret": self.secret(f"header value, {name}", f'{fresh("h")}/"q\\uo<te>&{fresh("H")}'),
            "Authorization": f"Bearer {bearer}",
            "X-Basic": f"Basic {basic}",
        }

    def created(self, answer: httpx.Response, where: str, name: str) -> Json:
        """The answer to a request that made a secret: it is shown there, and is secret from then on."""
        assert answer.status_code in {200, 201}, answer.text
        made: Json = answer.json()
        holder: Any = made
        for part in where.split("."):
            holder = holder[part]
        self.secret(f"secret, {name}", holder)
        self.shown += 1
        return made

    def subscribe(self, quiet: httpx.Client, url: str, name: str, **fields: Any) -> str:
        """Create a subscription with a client whose answers are not kept, since this one shows a secret."""
        given = fields.get("config", {}).get("secret")
        key = {"Idempotency-Key": name.encode().hex()}
        body = body_of(url, name=name.partition(",")[0], **{"events": ["order.*"], **fields})
        made = self.created(quiet.post(PATH, json=body, headers=key), "config.secret", name)
        assert given is None or made["config"]["secret"] == given
        # The same request again is answered, but never with the secret.
        again = quiet.post(PATH, json=body, headers=key)
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
        assert "secret" not in again.json()["config"]
        self.found.keep(again)
        self.ids.append(made["id"])
        return str(made["id"])

    def rotate(self, quiet: httpx.Client, id_: str, name: str, **fields: Any) -> Json:
        key = {"Idempotency-Key": name.encode().hex()}
        path = f"{PATH}/{id_}/secrets"
        made = self.created(quiet.post(path, json=fields, headers=key), "secret", name)
        again = quiet.post(path, json=fields, headers=key)
        assert (again.status_code, again.headers["Idempotency-Replayed"]) == (201, "true")
        assert "secret" not in again.json()
        self.found.keep(again)
        return made

    def run(self, *arguments: str, code: int = 0, keep: bool = True) -> str:
        """A command, directly on the database."""
        done = self.server.cli("subscriptions", *arguments, "--account", ACCOUNT, check=False)
        assert done.returncode == code, done.stderr
        if keep:
            self.printed += [done.stdout.encode(), done.stderr.encode()]
        return done.stdout

    # --- the story

    def create(self, quiet: httpx.Client) -> None:
        """With every kind of secret, to a receiver that tells all it got."""
        given = {
            "base64": "whsec_" + base64.b64encode(b"\xfb\xef\xff" + os.urandom(24)).decode(),
            "bare": base64.b64encode(b"\xfb\xef\xff" + os.urandom(24)).decode(),
            "text": f'p"a/s\\s<wörd>&{fresh("t")}',
        }
        for form in FORMS:
            for status in (200, 404, 500) if form == "plain" else (200, 404):
                name = f"{form} {status}"
                url = self.url(status, form, name)
                extra: Json = {"headers": self.headers(name)}
                if form == "php":
                    extra["config"] = {"secret": given.pop("text", None)}
                elif form == "html":
                    extra["config"] = {"secret": given.pop("base64", None) or given.pop("bare", None)}
                if form == "json":
                    extra["schemes"] = ["github", "standard", "standard-ed25519", "rfc9421-ed25519", "timestamped"]
                if status == 500:
                    # few enough that its circuit stays closed
                    extra["events"] = ["fail.*"]
                if form == "ascii":
                    extra["ordering"] = "fifo"
                self.subscribe(quiet, url, name, disable_after_4xx=2, **extra)
                target = url.removeprefix(self.origin)
                self.echo.known[target] = [self.found.secrets[f"secret, {name}"]]
        self.seeds()

    def publish(self, client: httpx.Client) -> None:
        for type_ in ("order.paid", "order.sent"):
            assert client.post("/events", json={"type": type_, "payload": {"n": 1}}).status_code == 202
        batch = {"events": [{"type": "order.x", "payload": number} for number in range(3)]}
        assert client.post("/events/batch", json=batch).status_code == 202
        self.rest(client)

    def rest(self, client: httpx.Client) -> None:
        until(lambda: not any(client.get("/ledger").json()[s] for s in ("pending", "leased")), every=0.1)

    def rotations(self, client: httpx.Client, quiet: httpx.Client) -> None:
        """New secrets, old ones, revoked ones, future ones."""
        self.rotate(quiet, self.ids[0], "rotated")
        self.rotate(quiet, self.ids[0], "rotated again", secret=f"an odd one: <&>{fresh('r')}")
        self.rotate(quiet, self.ids[1], "rotated, no overlap", revoke_now=True)
        # Nobody can know any more that a receiver tells this one.
        over = self.found.secrets["secret, plain 404"]
        for known in self.echo.known.values():
            known[:] = [text for text in known if text != over]
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        self.rotate(
            quiet, self.ids[2], "future", valid_from=later, secret="whsec_" + base64.b64encode(os.urandom(24)).decode()
        )
        soon = (datetime.now(UTC) + timedelta(seconds=90)).isoformat()
        self.rotate(quiet, self.ids[3], "ending", valid_until=soon)
        self.seeds()
        for id_ in self.ids[:4]:
            secrets = client.get(f"{PATH}/{id_}/secrets").json()["items"]
            assert all("secret" not in one for one in secrets)
            if id_ == self.ids[0]:
                previous = next(one["id"] for one in secrets if one["state"] == "previous")
                assert client.delete(f"{PATH}/{id_}/secrets/{previous}").status_code == 204
                last = [one["id"] for one in secrets if one["state"] == "current"]
                client.delete(f"{PATH}/{id_}/secrets/{last[-1]}")
        held = next(iter(self.found.secrets.values()))
        # refused since it is there already, without saying more
        self.found.keep(client.post(f"{PATH}/{self.ids[0]}/secrets", json={"secret": held}))

    def changes(self, client: httpx.Client) -> None:
        """Other URLs and headers, what it does to those that were; ping, disable, enable, recover, delete."""
        for name, id_ in (("patched", self.ids[0]), ("patched too", self.ids[4])):
            change = {"config": {"url": self.url(200, "json", name)}, "headers": self.headers(name)}
            assert client.patch(f"{PATH}/{id_}", json=change).status_code == 200
        twin = body_of(self.url(200, "plain", "twin"))
        first = client.patch(f"{PATH}/{self.ids[5]}", json={"config": twin["config"], "events": ["twin.*"]})
        assert first.status_code == 200
        conflict = client.post(PATH, json={**twin, "events": ["twin.*"]})
        assert conflict.status_code == 409, conflict.text
        for id_ in self.ids:
            client.post(f"{PATH}/{id_}/ping")
            client.post(f"{PATH}/{id_}/disable")
            client.post(f"{PATH}/{id_}/enable", json={"held": "release"})
        since = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
        assert client.post(f"{PATH}/{self.ids[0]}/recover", json={"since": since}).status_code == 202
        assert client.post("/deliveries/redeliver", json={"since": since}).status_code == 202
        self.rest(client)
        assert client.delete(f"{PATH}/{self.ids[-1]}").status_code == 204

    def operational(self, client: httpx.Client, quiet: httpx.Client) -> None:
        """The endpoint that is told of the others, with a secret of its own making; then another, with a given one."""
        wanted = {"url": self.url(200, "json", "operational"), "headers": self.headers("operational")}
        answer = quiet.patch("/account", json={"operational_endpoint": wanted})
        self.created(answer, "operational_endpoint.secret", "operational")
        self.seeds(answer.json()["operational_endpoint"]["subscription_id"])
        shown = client.get("/account").json()["operational_endpoint"]
        assert "secret" not in shown
        assert client.post(f"{PATH}/{self.ids[0]}/disable").status_code == 200
        until(lambda: self.came("operational"))
        given = self.secret("operational, given", f"an operational one <{fresh('g')}>")
        wanted = {"url": self.url(404, "html", "operational 2"), "secret": given, "headers": self.headers("op 2")}
        answer = quiet.patch("/account", json={"operational_endpoint": wanted})
        assert answer.status_code == 200, answer.text
        self.seeds(answer.json()["operational_endpoint"]["subscription_id"])
        client.post(f"{PATH}/{self.ids[5]}/disable")
        client.post(f"{PATH}/{self.ids[7]}/disable")
        until(lambda: self.came("operational 2"))
        self.rest(client)

    def came(self, name: str) -> bool:
        token = self.found.secrets[f"path token, {name}"]
        return any(token in target for target in self.targets())

    def targets(self) -> list[str]:
        return [request.target for request in list(self.received)]

    def handshakes(self, client: httpx.Client, quiet: httpx.Client) -> None:
        """Tokens that a receiver could grant with: granted later, or never."""
        for name in ("granted", "never granted"):
            url = self.url(200, "plain", f"handshake, {name}")
            id_ = self.subscribe(quiet, url, f"handshake, {name}", verification="handshake", headers=self.headers(name))
            asked = until(
                lambda url=url: [r for r in list(self.received) if r.method == "OPTIONS" and url.endswith(r.target)]
            )
            callback = asked[0].header("WebHook-Request-Callback")
            assert callback is not None
            token = self.secret(f"handshake token, {name}", callback.rpartition("/")[2])
            self.secret(f"handshake token, {name}, its digest", token.rpartition(".")[2])
            assert client.get(f"{PATH}/{id_}").json()["is_active"] is False
            self.seeds(id_)
            path = callback.partition("/webhooks/")[2]
            assert client.get(f"/webhooks/{path}x").status_code == 404
            if name == "granted":
                assert client.get(f"/webhooks/{path}", params={"rate": "600"}).status_code == 200
                until(lambda id_=id_: client.get(f"{PATH}/{id_}").json()["is_active"])

    def ask_badly(self, client: httpx.Client) -> None:
        """Requests that are wrong in every way, each with a secret in its wrong place."""
        good = self.url(200, "plain", "bad requests")

        def token(place: str) -> str:
            return self.secret(f"bad request, {place}", f"{fresh('e')}.{fresh('m')}")

        bodies: dict[str, Any] = {
            "short secret": body_of(good, config={"secret": "s3cret!"}),
            "long secret": body_of(good, config={"secret": token("long secret") * 20}),
            "control secret": body_of(good, config={"secret": token("control secret") + "\n"}),
            "list secret": body_of(good, config={"secret": [token("list secret")]}),
            "secret outside": {**body_of(good), "secret": token("secret outside")},
            "not for standard": body_of(good, config={"secret": token("not for standard")}, schemes=["standard"]),
            "schemes": body_of(good, schemes=[token("schemes")]),
            "exclusive": body_of(good, schemes=["github", "websub"], config={"secret": token("exclusive")}),
            "hub method": body_of(good, hub_method=token("hub method")),
            "url": body_of(f"ftp://{token('url')}/x"),
            "user": body_of(f"http://user:{token('user')}@good.test/"),
            "literal": body_of(f"http://10.0.0.1/{token('literal')}"),
            "space": body_of(f"http://good.test/ {token('space')}"),
            "content type": body_of(good, config={"content_type": token("content type")}),
            "filter": body_of(good, filter=f"a == '{token('filter')}"),
            "filter function": body_of(good, filter=f"{token('filter function').replace('.', '')}(a)"),
            "filter literal": body_of(good, filter=f"a == `{token('filter literal')}`"),
            "pattern": body_of(good, events=[f"order.{token('pattern')}.*x"]),
            "header line": body_of(good, headers={"X-A": token("header line") + "\r\nX: y"}),
            "header reserved": body_of(good, headers={"X-Webhook-Event": token("header reserved")}),
            "header list": body_of(good, headers=[token("header list")]),
            "header name": body_of(good, headers={token("header name") + " ": "x"}),
            "metadata": body_of(good, metadata=token("metadata")),
            "ordering": body_of(good, ordering=token("ordering")),
            "description": body_of(good, description=token("description") + "\x01"),
            "unknown": {**body_of(good), "x": token("unknown")},
            "top": [token("top")],
        }
        for place, body in bodies.items():
            answer = client.post(PATH, json=body)
            assert answer.status_code == 422, (place, answer.text)
            if isinstance(body, dict):
                assert client.patch(f"{PATH}/{self.ids[0]}", json=body).status_code in {200, 422}, place
        raw = f'{{"config": {{"url": "{good}", "secret": "{token("broken")}'
        assert client.post(PATH, content=raw.encode()).status_code == 422
        path = f"{PATH}/{self.ids[0]}/secrets"
        for wish in (
            {"secret": token("rotate long") * 20},
            {"secret": [token("rotate list")]},
            {"secret": token("rotate, revoked"), "revoke_now": True, "overlap": 5},
            {"secret": token("rotate, until"), "valid_until": "2001-01-01T00:00:00Z"},
            {"secret": token("rotate, from"), "valid_from": "no date"},
            {"secrets": token("rotate, unknown")},
        ):
            assert client.post(path, json=wish).status_code == 422
        assert client.patch("/account", json={"operational_endpoint": {"url": f"x:{token('op')}"}}).status_code == 422
        for route in (f"{PATH}/{{}}", f"{PATH}/{{}}/secrets", f"{PATH}/{{}}/deliveries", "/events/{}"):
            assert client.get(route.format(token("route").replace(".", "-"))).status_code == 404
        assert client.delete(f"{path}/{token('secret id').replace('.', '-')}").status_code == 404

    def command_line(self) -> None:
        """What it prints, but for the secret that it has just made, which is printed this once."""
        self.run("list")
        self.run("list", "--json")
        for id_ in (self.ids[0], self.ids[1], self.ids[4]):
            self.run("show", id_)
            self.run("show", id_, "--json")
        self.run("export")
        self.run("disable", self.ids[2], "--json")
        made = json.loads(self.run("rotate", self.ids[2], "--json", keep=False))
        self.secret("secret, rotated by the command line", made["secret"])
        self.shown += 1
        self.run("show", self.ids[2], "--json")
        given = self.server.data_dir.parent / "given-secret"
        given.write_text(self.secret("secret, given to the command line", f"from a file {fresh('f')}"))
        self.run("rotate", self.ids[2], "--json", "--secret-file", str(given))
        given.unlink()
        # What it refuses is repeated by no error.
        settings = self.server.data_dir.parent / "settings.json"
        bad = body_of(self.url(200, "plain", "cli"), filter="a ==", config={"secret": self.secret("cli", fresh("s"))})
        settings.write_text(json.dumps(bad))
        self.run("create", "--settings", str(settings), "--dev", code=1)
        settings.unlink()
        self.run("show", self.secret("no such id", fresh("i")), code=1, keep=False)
        del self.found.secrets["no such id"]

    def seeds(self, *ids: str) -> None:
        """Note every private key there is now, by opening what is sealed; and what holds it, as it shows itself."""

        async def read() -> None:
            installation = await open_installation(leading_to(self.server))
            try:
                async with installation.database.read() as connection:
                    wanted = [*self.ids, *ids]
                    found = await subscription_store.find(connection, installation.keyring, wanted)
            finally:
                await installation.database.close()
            for subscription in found.values():
                for valid in subscription.keys:
                    assert valid.key.seed is not None
                    self.found.keys[f"private key {valid.id}"] = valid.key.seed
                key = subscription.keys[0].key
                rotation = Rotation(key=SigningKey(secret=key.secret, seed=key.seed), overlap=0)
                endpoint = Endpoint.of_subscription(subscription)
                for one in (subscription, endpoint, endpoint.keys, key, key.secret, rotation, subscription.url):
                    self.reprs += [repr(one), str(one), f"{one}"]

        asyncio.run(read())

    def read_all(self, client: httpx.Client) -> None:
        """Everything there is to read."""
        for path in (PATH, "/deliveries", "/events", "/tasks"):
            cursor: str | None = None
            while True:
                page = client.get(path, params={"limit": 200} | ({"cursor": cursor} if cursor else {})).json()
                for item in page["items"]:
                    one = client.get(f"{path}/{item['id']}").json()
                    if path == "/deliveries":
                        self.found.deliveries[item["id"]] = one
                        self.found.attempts += one["attempts"]
                    if path == PATH:
                        assert "secret" not in item["config"]
                        client.get(f"{path}/{item['id']}/secrets")
                        client.get(f"{path}/{item['id']}/deliveries")
                cursor = page["next_cursor"]
                if cursor is None:
                    break
        for route in ("/ledger", "/account", "/metrics", "/openapi.json", "/readyz"):
            assert client.get(route).status_code == 200, route


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """A whole run, and what it left."""
    folder = tmp_path_factory.mktemp("leaks")
    found, echo = Evidence(), Echo()
    with NameServerThread({"good.test": ["127.0.0.1"]}) as names, Receiver(echo) as receiver:
        settings = {
            "log_level": "debug",
            "log_format": "json",
            "retry_schedule": "[0.05, 0.05]",
            "send_timeout": "2",
            "nameservers": names.address,
            "public_url": "https://dispatcher.test",
        }
        with Server(folder / "data", settings=settings) as server:
            told = Story(server, receiver, echo, found)
            found.secret("dev token", server.token)
            with server.client(event_hooks={"response": [found.keep]}) as client, server.client() as quiet:
                told.create(quiet)
                assert client.post("/events", json={"type": "fail.now", "payload": 1}).status_code == 202
                told.publish(client)
                told.rotations(client, quiet)
                told.publish(client)
                told.operational(client, quiet)
                told.handshakes(client, quiet)
                told.changes(client)
                told.command_line()
                told.publish(client)
                told.ask_badly(client)
                told.rest(client)
                told.read_all(client)
            found.places["database while it runs"] = kept_by(server)
            found.places["stdout"] = end_of(server)
        found.places["database after the end"] = kept_by(server)
        found.places["stderr"] = server.log.read_bytes()
        found.places["answers"] = b"\n".join(found.answers)
        found.places["command line"] = b"\n".join(told.printed)
        found.places["repr"] = "\n".join(told.reprs).encode()
        keys = json.loads((server.data_dir / "keyring.json").read_text())
        for number, key in enumerate(long_texts(keys)):
            found.secret(f"key {number}", key)
        found.on_the_wire = b"\n".join(
            "\n".join([r.target, *(f"{n}: {v}" for n, v in r.headers)]).encode() for r in receiver.received
        )
    return told


def wanted_of(story: Story) -> dict[str, Wanted]:
    return {**story.found.secrets, **story.found.keys}


def test_the_run_was_a_real_one(story: Story) -> None:
    """The secrets did go over the wire, the answers did tell them, and much went wrong."""
    found = story.found
    sent = {
        name: text
        for name, text in found.secrets.items()
        if name.startswith(("path token", "query token", "bearer", "handshake token"))
        and not name.endswith(("twin", "bad requests", "cli", "digest"))
    }
    missed = set(sent) - {name.rpartition(" (")[0] for name in search(found.on_the_wire, sent)}
    assert not missed
    assert {attempt["outcome"] for attempt in found.attempts} >= {"success", "http_error"}
    states = {delivery["state"] for delivery in found.deliveries.values()}
    assert states >= {"delivered", "exhausted", "rejected", "held"}
    assert {delivery["kind"] for delivery in found.deliveries.values()} == {"message", "ping", "handshake"}
    echoes = [attempt for attempt in found.attempts if attempt["response_body"]]
    assert len(echoes) > 60
    assert all("[redacted]" in attempt["response_body"].lower() for attempt in echoes)
    assert len(found.keys) > 40
    assert story.shown > 20
    assert b'"event": "attempt"' in found.places["stderr"]
    assert all(found.places[name] for name in ("answers", "command line", "repr", "stderr"))
    print(
        f"\n{len(found.secrets)} secrets, {len(found.keys)} keys, {len(found.deliveries)} deliveries, "
        f"{len(found.attempts)} attempts, {len(found.answers)} answers, {len(story.printed)} outputs of commands; "
        f"searched {sum(map(len, found.places.values())) / 1e6:.1f} MB"
    )


PLACES = (
    "database while it runs",
    "database after the end",
    "stderr",
    "stdout",
    "answers",
    "command line",
    "repr",
)


@pytest.mark.parametrize("place", PLACES)
def test_no_secret_is_found(story: Story, place: str) -> None:
    found = search(story.found.places[place], wanted_of(story))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("form", "plant"),
    [
        ("clear", bytes),
        ("hex", lambda key: key.hex().encode()),
        ("hex", lambda key: key.hex().upper().encode()),
        ("base64", base64.b64encode),
        ("base64", lambda key: base64.urlsafe_b64encode(b"a" + key)),
        ("base64", lambda key: b'{"private_key": "whsk_' + base64.b64encode(key) + b'"}'),
        ("percent", lambda key: quote(key, safe="").encode()),
    ],
)
def test_a_private_key_that_is_planted_is_found(form: str, plant: Callable[[bytes], bytes]) -> None:
    key, noise = os.urandom(32), os.urandom(4096)
    assert search(noise, {"planted": key}) == []
    assert f"planted ({form})" in search(noise + plant(key) + noise, {"planted": key})


@pytest.mark.parametrize("place", PLACES)
def test_a_secret_that_is_planted_in_a_place_is_found(story: Story, place: str) -> None:
    wanted = wanted_of(story)
    for name in (f"secret, {FORMS[0]} 200", "secret, rotated", "path token, operational", "handshake token, granted"):
        haystack = story.found.places[place] + str(wanted[name]).encode()
        assert f"{name} (clear)" in search(haystack, {name: wanted[name]})


def test_an_export_with_secrets_is_the_one_thing_that_has_them(story: Story, tmp_path: Path) -> None:
    """So the search would find them, and the file can be read by its owner alone."""
    file = tmp_path / "export.json"
    story.run("export", "--with-secrets", "--yes", "--output", str(file), keep=False)
    assert file.stat().st_mode & 0o777 == 0o600
    found = search(file.read_bytes(), wanted_of(story))
    assert any(name.startswith("private key") for name in found)
    assert any(name.startswith("secret, ") for name in found)
    assert any(name.startswith("path token") for name in found)


def test_what_a_receiver_tells_of_a_rotation_is_redacted_for_every_secret(start_server: Callable[..., Server]) -> None:
    """An endpoint that tells both secrets in its answer, while the second try is signed with the older one."""
    known: list[str] = []

    with (
        Receiver(lambda _request: Reply(status=403, body=json.dumps(known).encode())) as receiver,
        start_server().client() as client,
    ):
        made = client.post(PATH, json=body_of(receiver.url, schemes=["websub"])).json()
        rotated = client.post(f"{PATH}/{made['id']}/secrets", json={}).json()
        known += [made["config"]["secret"], rotated["secret"]]
        assert client.post("/events", json={"type": "order.paid", "payload": 1}).status_code == 202
        started = time.monotonic()
        path = f"{PATH}/{made['id']}/deliveries"
        held = until(lambda: [one for one in client.get(path).json()["items"] if one["state"] == "held"])
        assert time.monotonic() - started < 60
        attempts = client.get(f"/deliveries/{held[0]['id']}").json()["attempts"]
    assert len(attempts) == 2
    assert search(json.dumps(attempts).encode(), {str(number): text for number, text in enumerate(known)}) == []
