"""`dispatcher subscriptions …` beside a running server: by its API and directly on its database, with the same results.

Whole courses run as processes of their own, tables of refusals within this one. Nothing that a command prints, and no
line of the server's log, has a given secret, a URL's path or a header's value: all of them carry MARKER here.
"""

from __future__ import annotations

import asyncio
import getpass
import hashlib
import hmac
import json
import os
import re
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from typer.testing import CliRunner

from dispatcher.cli import app
from dispatcher.config import Settings
from dispatcher.errors import StoreUnavailable
from dispatcher.installation import open_installation
from dispatcher.store import accounts, direct
from dispatcher.store.committer import Transaction
from dispatcher.store.database import BUSY_TIMEOUT_MS, Database
from dispatcher.store.tables import audit
from dispatcher.tokens import ACCOUNT_SCOPES
from tests.support import forking
from tests.support.api import MARKER, client_of, leading_to, token
from tests.support.receiver import Receiver, Reply
from tests.support.server import Server, until

ROOT = Path(__file__).parents[2]
GIVEN = f"{MARKER}-a-given-secret"
SCRIPTS = ("create", "list", "rotate", "revoke", "verify", "export", "import")

Done = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def logs_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command in this process must not have it log to a stream that is closed after the test."""
    monkeypatch.setattr("dispatcher.logs.configure", lambda **_: None)


def run(*arguments: str, stdin: str = "", env: dict[str, str] | None = None, real: bool = False) -> Done:
    """Run a command, `real` as a process of its own, without any setting of this one. It never prints MARKER."""
    environment = {"COLUMNS": "80", "NO_PROXY": "127.0.0.1", **(env or {})}
    done = (_process if real else _within)(arguments, stdin, environment)
    assert MARKER not in done.stdout + done.stderr, arguments
    assert "Traceback" not in done.stderr, done.stderr
    return done


def _process(arguments: tuple[str, ...], stdin: str, environment: dict[str, str]) -> Done:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    return forking.run("subscriptions", *arguments, input=stdin.encode(), env={**clean, **environment})


def _within(arguments: tuple[str, ...], stdin: str, environment: dict[str, str]) -> Done:
    result = CliRunner().invoke(app, ["subscriptions", *arguments], input=stdin, env=environment)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)


class Way:
    """The command line by one of its two ways."""

    def __init__(self, server: Server, account: str, folder: Path, *, by_api: bool, real: bool = False) -> None:
        self.server = server
        self.account = account
        self.by_api = by_api
        self.real = real
        folder.mkdir()
        (folder / "token").write_text(token(server, account, *ACCOUNT_SCOPES) + "\n")
        self.options = (
            ["--url", server.url, "--token-file", str(folder / "token")]
            if by_api
            else ["--account", account, "--data-dir", str(server.data_dir)]
        )

    def run(self, *arguments: str, stdin: str = "") -> Done:
        """Run a command this way."""
        environment = {"DISPATCHER_DEV": "1", **self.server.environment}
        return run(*arguments, *self.options, stdin=stdin, env=environment, real=self.real)

    def json(self, *arguments: str, stdin: str = "") -> Any:
        """What a command that succeeds prints with --json."""
        done = self.run(*arguments, "--json", stdin=stdin)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def create(self, url: str, *arguments: str, stdin: str = "") -> Any:
        """Create a subscription to `order.*` at this URL."""
        fixed = ["--name", "n", "--event", "order.*", "--endpoint", url]
        return self.json("create", *fixed, *arguments, stdin=stdin)


@pytest.fixture(params=["api", "database"])
def way(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> Iterator[Way]:
    """One way, with an account of its own."""
    name = hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]
    yield Way(server, name, tmp_path / "way", by_api=request.param == "api")
    assert MARKER not in server.log.read_text()


def refusal(done: Done, status: int) -> str:
    """What a command says that ends so, and prints nothing else."""
    assert (done.returncode, done.stdout) == (status, ""), done.stdout + done.stderr
    assert done.stderr.startswith("dispatcher: ")
    return done.stderr.removeprefix("dispatcher: ")


# --- create, list, show, delete ---------------------------------------------------------------------------


def test_a_subscription_is_created_listed_shown_and_deleted(way: Way, receiver: Receiver) -> None:
    way.real = True
    url = f"{receiver.url}/{MARKER}"
    made = way.create(url, "--description", "two\nlines", "--scheme", "websub", "--filter", "a == `1`")
    secret = made["config"]["secret"]
    assert secret.startswith("whsec_")
    assert (made["is_active"], made["events"], made["config"]["url"]) == (True, ["order.*"], receiver.url)
    assert (made["schemes"], made["filter"]) == (["websub"], "a == `1`")

    listed = way.run("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert made["id"] in listed.stdout  # whole, in 80 columns
    [one] = way.json("list")
    assert {**one, "config": {**one["config"], "secret": secret}} == made
    assert (way.json("list", "--state", "disabled"), len(way.json("list", "--state", "active"))) == ([], 1)

    shown = way.json("show", made["id"])
    assert (shown["subscription"]["id"], shown["subscription"]["recent"]) == (made["id"], [])
    assert [one["state"] for one in shown["secrets"]] == ["current"]
    human = way.run("show", made["id"])
    assert shown["secrets"][0]["id"] in human.stdout
    assert "two�lines" in human.stdout
    for printed in (listed.stdout, json.dumps(shown), human.stdout, way.server.log.read_text()):
        assert secret not in printed

    assert "needs --yes" in refusal(way.run("delete", made["id"]), 2)
    deleted = way.run("delete", made["id"], "--yes")
    assert (deleted.returncode, deleted.stdout) == (0, "")
    way.real = False
    for command in (["show"], ["delete", "--yes"], ["rotate"], ["ping"], ["disable"], ["enable"], ["export"]):
        assert refusal(way.run(*command, made["id"]), 1) == "There is no such subscription.\n"
    assert way.json("list") == []


def test_a_person_sees_the_secret_once_and_is_told_so(way: Way, receiver: Receiver) -> None:
    way.real = True
    done = way.run("create", "--name", "[red]n[/x]", "--event", "**", "--endpoint", receiver.url)
    assert done.returncode == 0
    [secret] = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("secret  ")]
    assert done.stdout.count(secret) == 1
    assert "[red]n[/x]" in done.stdout
    assert secret not in done.stderr
    assert "shown this once" in done.stderr
    rotated = way.run("rotate", done.stdout.split()[1])
    [fresh] = [line.split()[1] for line in rotated.stdout.splitlines() if line.startswith("secret  ")]
    assert (rotated.stdout.count(fresh), fresh in rotated.stderr) == (1, False)
    assert "shown this once" in rotated.stderr


def test_a_given_secret_signs_and_is_not_repeated(way: Way, receiver: Receiver, tmp_path: Path) -> None:
    way.real = True
    (tmp_path / "endpoint").write_text(f"{receiver.url}/{MARKER}\n")
    settings = {
        "name": "from a file",
        "events": ["order.**"],
        "headers": {"X-Secret": f"{MARKER}-value"},
        "metadata": {"n": 1e5, "big": 123456789012345678901234567890},
    }
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    made = way.json(
        *("create", "--settings", str(tmp_path / "settings.json"), "--endpoint-file", str(tmp_path / "endpoint")),
        *("--secret-file", "-", "--name", "from an option"),
        stdin=f"{GIVEN}\n",
    )
    assert "secret" not in made["config"]
    assert (made["name"], made["headers"]) == ("from an option", ["X-Secret"])
    assert made["metadata"] == settings["metadata"]

    # the running server sends by it at once, whichever way it came
    with client_of(way.server, way.account) as client:
        answer = client.post("/events", json={"type": "order.paid", "payload": {"n": 1}})
        assert (answer.status_code, answer.json()["deliveries"]) == (202, 1)
    [request] = receiver.wait_for(1)
    assert (request.target, request.header("X-Secret")) == (f"/{MARKER}", f"{MARKER}-value")
    digest = hmac.new(GIVEN.encode(), request.body, hashlib.sha256).hexdigest()
    assert request.header("X-Hub-Signature") == f"sha256={digest}"


@pytest.mark.parametrize(
    ("arguments", "stdin", "says"),
    [
        (["--name", "n", "--event", f"{MARKER}*"], "", "/events/0"),
        (["--event", "a.*"], "", "/name is required"),
        (["--name", "n", "--event", "a.*", "--filter", f"{MARKER}["], "", "/filter"),
        (["--name", "n", "--event", "a", "--endpoint", f"ftp://{MARKER}"], "", "/config/url"),
        (["--name", "n", "--event", "a", "--secret-file", "-"], "1234567", "/config/secret"),
        (["--name", "n", "--event", "a", "--secret-file", "-"], f"{MARKER}\n\n", "/config/secret"),
        (["--name", "n", "--event", "a", "--scheme", "websub", "--scheme", "github"], "", "/schemes"),
        (["--name", "n", "--event", "a", "--scheme", "standard", "--secret-file", "-"], GIVEN, "/schemes"),
        (["--settings", "-"], '{"name": "n", "events": ["a"], "colour": 1}', "/colour is not a field"),
        (["--settings", "-"], '{"name": "n", "events": ["a"], "headers": {"Host": "x"}}', "/headers/Host"),
        (["--settings", "-"], '{"name": "n", "events": ["a"], "is_active": 1}', "/is_active"),
    ],
)
def test_both_ways_refuse_the_same_in_the_same_words(
    server: Server, tmp_path: Path, arguments: list[str], stdin: str, says: str
) -> None:
    told = []
    for by_api in (True, False):
        way = Way(server, "same", tmp_path / f"{by_api}", by_api=by_api)
        endpoint = [] if "--endpoint" in arguments else ["--endpoint", "http://127.0.0.1:1/"]
        told.append(refusal(way.run("create", *arguments, *endpoint, stdin=stdin), 1))
    assert told[0] == told[1]
    assert says in told[0]


def test_a_duplicate_is_refused(way: Way, receiver: Receiver) -> None:
    way.create(f"{receiver.url}/{MARKER}")
    again = way.run("create", "--name", "m", "--event", "order.*", "--endpoint", f"{receiver.url}/{MARKER}")
    assert "this URL and these event patterns already" in refusal(again, 1)


# --- secrets ----------------------------------------------------------------------------------------------


def test_secrets_are_rotated_with_an_overlap_without_one_and_revoked(way: Way, receiver: Receiver) -> None:
    made = way.create(receiver.url)
    id_, first = made["id"], made["config"]["secret"]
    rotated = way.json("rotate", id_, "--overlap", "2h")
    assert set(rotated) == {
        *("subscription_id", "secret_id", "secret", "public_key"),
        *("valid_from", "valid_until", "previous_valid_until"),
    }
    assert rotated["secret"] not in {first, None}
    assert rotated["valid_until"] is None
    assert rotated["previous_valid_until"][11:13] == f"{(int(rotated['valid_from'][11:13]) + 2) % 24:02}"
    secrets = way.json("show", id_)["secrets"]
    assert [(one["id"] == rotated["secret_id"], one["state"]) for one in secrets] == [
        (True, "current"),
        (False, "previous"),
    ]

    with client_of(way.server, way.account) as client:
        assert client.post("/events", json={"type": "order.paid", "payload": 1}).status_code == 202
    [request] = receiver.wait_for(1)
    digest = hmac.new(rotated["secret"].encode(), request.body, hashlib.sha256).hexdigest()
    assert request.header("X-Hub-Signature") == f"sha256={digest}"
    assert (request.header("webhook-signature") or "").count("v1,") == 2

    older = secrets[1]["id"]
    assert "needs --yes" in refusal(way.run("revoke", id_, older), 2)
    assert way.run("revoke", id_, older, "--yes").returncode == 0
    assert refusal(way.run("revoke", id_, older, "--yes"), 1) == "There is no such secret.\n"
    assert "only secret that is valid now" in refusal(way.run("revoke", id_, rotated["secret_id"], "--yes"), 1)

    for options in (["--revoke-now"], ["--overlap", "0"]):
        assert "needs --yes" in refusal(way.run("rotate", id_, *options), 2)
        at_once = way.json("rotate", id_, *options, "--yes")
        assert at_once["previous_valid_until"] is None
        assert [one["id"] for one in way.json("show", id_)["secrets"]] == [at_once["secret_id"]]

    given = way.json("rotate", id_, "--secret-file", "-", "--valid-from", "2100-01-01T00:00:00+01:00", stdin=GIVEN)
    assert (given["secret"], given["valid_from"]) == (None, "2099-12-31T23:00:00.000Z")
    assert given["previous_valid_until"] == "2100-01-01T23:00:00.000Z"
    assert [one["state"] for one in way.json("show", id_)["secrets"]] == ["future", "current"]
    again = way.run("rotate", id_, "--secret-file", "-", stdin=GIVEN)
    assert "has this secret already" in refusal(again, 1)
    assert "/overlap must be" in refusal(way.run("rotate", id_, "--overlap", "31d"), 1)
    assert "/valid_until must be later" in refusal(way.run("rotate", id_, "--valid-until", "2020-01-01T00:00:00Z"), 1)
    log = way.server.log.read_text()
    assert [one for one in (first, rotated["secret"], at_once["secret"]) if one in log] == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--overlap", "1h", "--revoke-now"], "give --overlap or --revoke-now"),
        (["--overlap", "1w"], "--overlap is a number of seconds"),
        (["--overlap", "nan"], "--overlap is a number of seconds"),
        (["--valid-from", "tomorrow"], "--valid-from is a time with its offset"),
        (["--valid-until", "2100-01-01T00:00:00"], "--valid-until is a time with its offset"),
        (["--secret-file", "/nonexistent"], "the secret cannot be read from /nonexistent"),
        (["--secret-file", "-"], "the secret is empty"),
    ],
)
def test_a_rotation_that_cannot_be_meant(server: Server, options: list[str], says: str) -> None:
    way = ["--account", "dev", "--data-dir", str(server.data_dir)]
    assert says in refusal(run("rotate", "0" * 32, *options, *way, env=server.environment), 2)


def test_a_secret_is_asked_for_without_an_echo(server: Server, receiver: Receiver, tmp_path: Path) -> None:
    way = Way(server, "asked", tmp_path / "way", by_api=False)
    id_ = way.create(receiver.url)["id"]
    ours, theirs = os.openpty()
    process = forking.dispatcher(
        ["subscriptions", "rotate", id_, "--secret-file", "-", "--revoke-now", *way.options],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "dumb", **server.environment},
        start_new_session=True,  # without a terminal of its own, it asks on stdin
    )
    os.close(theirs)
    shown = b""
    try:
        for question, answer in ((b"the secret: ", GIVEN), (b"[y/N]", "y")):
            while question not in shown:
                shown += os.read(ours, 4096)
            os.write(ours, f"{answer}\n".encode())
        out, _ = process.communicate(timeout=30)
        shown += os.read(ours, 65536)
    finally:
        os.close(ours)
        process.kill()
    assert process.returncode == 0
    assert MARKER.encode() not in shown + out
    [secret] = way.json("show", id_)["secrets"]
    assert secret["id"].encode() in out


# --- disable, enable, ping --------------------------------------------------------------------------------


def test_disable_holds_and_enable_asks_first(way: Way, receiver: Receiver) -> None:
    id_ = way.create(receiver.url)["id"]
    disabled = way.json("disable", id_)
    assert (disabled["is_active"], disabled["disabled"]["reason"]) == (False, "manual")
    assert "manual" in way.run("list").stdout
    assert "needs --yes" in refusal(way.run("enable", id_, "--discard"), 2)

    done = way.run("enable", id_, "--json")
    enabled = json.loads(done.stdout)
    assert done.returncode == 0
    sent = way.run("ping", id_, "--json")
    ping = json.loads(sent.stdout)
    if way.by_api:
        assert (enabled["is_active"], enabled["ping"]["status"], done.stderr) == (True, 200, "")
        assert (ping["state"], ping["status"], sent.returncode, sent.stderr) == ("delivered", 200, 0, "")
        assert len(receiver.received) == 2
    else:
        # it does not wait for the server, and says so
        assert (enabled["is_active"], enabled["verifying"] is None) == (False, False)
        assert "within a minute" in done.stderr
        assert (ping["state"], sent.returncode) == ("pending", 0)
        assert "within a minute" in sent.stderr


def test_an_endpoint_that_refuses_is_told_by_the_exit_status(server: Server, tmp_path: Path) -> None:
    way = Way(server, "refused", tmp_path / "way", by_api=True)
    with Receiver(lambda _request: Reply(status=403, body=MARKER.encode())) as receiver:
        id_ = way.create(receiver.url)["id"]
        done = way.run("ping", id_)
        assert (done.returncode, "403" in done.stdout) == (1, True)
        way.json("disable", id_)
        assert "status 403" in refusal(way.run("enable", id_), 1)


def test_what_was_asked_for_without_a_server_is_done_when_it_starts(
    start_server: Callable[..., Server], receiver: Receiver, tmp_path: Path
) -> None:
    server = start_server()
    way = Way(server, "dev", tmp_path / "way", by_api=False)
    server.stop()
    made = way.run(
        *("create", "--name", "n", "--event", "order.*", "--endpoint", receiver.url, "--verification", "ping"), "--json"
    )
    assert made.returncode == 0
    assert "its endpoint has to answer before it is active" in made.stderr
    one = json.loads(made.stdout)
    assert (one["is_active"], one["disabled"]["reason"]) == (False, "unverified")
    server.start()
    receiver.wait_for(1)
    until(lambda: way.json("show", one["id"])["subscription"]["is_active"])


# --- which way, and exit status ---------------------------------------------------------------------------


def test_which_way_is_gone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(server.token)
    by_api = {"DISPATCHER_URL": server.url, "DISPATCHER_TOKEN": server.token}
    data = ["--data-dir", str(server.data_dir)]
    assert run("list", env=by_api).returncode == 0
    for arguments, environment in [
        (data, {"DISPATCHER_URL": "http://127.0.0.1:1"}),
        ([], {"DISPATCHER_DATA_DIR": str(server.data_dir)}),
    ]:
        assert run("list", "--account", "dev", *arguments, env=environment | server.environment).returncode == 0
    for arguments, says in [
        ([], "give --url to go by a server's API, or --account"),
        (data, "give --url to go by a server's API, or --account"),
        (["--url", server.url, "--account", "dev"], "give --url and --token-file to go by the API, or"),
        (["--token-file", str(tmp_path / "token")], "--token-file needs --url"),
        (["--url", server.url], "the API token is missing"),
        (["--url", server.url, "--token-file", str(tmp_path / "none")], "the API token cannot be read"),
        (["--url", "hooks.example.com"], "the server's URL is"),
        (["--url", "https://user:word@hooks.example.com"], "has no user"),
        (["--account", "a/b"], "an account's name has 1 to 64"),
        (["--account", "dev", "--data-dir", str(tmp_path / "none")], "there is no installation"),
    ]:
        assert says in refusal(run("list", *arguments), 2)
    assert not (tmp_path / "none").exists()
    for option in ("--token", "--secret"):
        assert run("list", option, "x").returncode == 2


def test_what_cannot_be_reached_or_is_not_allowed(server: Server, receiver: Receiver, tmp_path: Path) -> None:
    def told(url: str, bearer: str, status: int) -> str:
        environment = {"DISPATCHER_URL": url, "DISPATCHER_TOKEN": bearer}
        done = run("list", env=environment)
        assert bearer not in done.stderr
        return refusal(done, status)

    assert "no answer from 127.0.0.1" in told("http://127.0.0.1:1", server.token, 3)
    assert "is not one that this version knows" in told(receiver.url, server.token, 3)
    with Receiver(lambda _request: Reply(status=302, headers=(("Location", server.url),))) as elsewhere:
        assert "status 302" in told(elsewhere.url, server.token, 3)
    with Receiver(lambda _request: Reply(raw=b"")) as broken:
        assert "The answer did not come" in told(broken.url, server.token, 3)
    assert "The token is not valid" in told(server.url, f"{server.token}x", 2)
    assert "subscriptions:read" in told(server.url, token(server, "dev", "tasks:read"), 1)
    assert "unencrypted" in run("list", env={"DISPATCHER_URL": "http://h.invalid", "DISPATCHER_TOKEN": "t"}).stderr


@pytest.mark.parametrize("command", ["", *SCRIPTS, "show", "delete", "enable", "disable", "ping"])
def test_help_tells_the_exit_status(command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert "Exit status" in done.stdout


# --- export and import ------------------------------------------------------------------------------------


def settings_of(way: Way, receiver: Receiver, tmp_path: Path) -> Any:
    """A subscription with something in every corner."""
    settings = {
        "name": "all of it",
        "events": ["order.*", "invoice.paid"],
        "config": {"url": f"{receiver.url}/{MARKER}", "secret": f"{MARKER}-secret"},
        "headers": {"X-Secret": f"{MARKER}-value"},
        "metadata": {"tenant": 7},
        "schemes": ["websub", "standard-ed25519"],
        "hub_method": "sha512",
        "body": "envelope",
        "filter": "a > `1`",
        "ordering": "fifo",
        "on_exhausted": "skip",
        "rate_limit": 2.5,
        "retry_schedule": [1, 2],
        "timeout": 3,
        "disable_after_4xx": 4,
        "disable_on": "endpoint",
        "disable_after": 3600,
        "hold_for": 60,
        "is_active": False,
        "description": "words",
    }
    (tmp_path / "all.json").write_text(json.dumps(settings))
    way.json("create", "--settings", str(tmp_path / "all.json"))
    return settings


def same(one: Any, other: Any) -> bool:
    """Whether two subscriptions, as they are shown, have the same settings."""
    own = {"id", "config", "created_at", "updated_at", "disabled"}
    return {k: v for k, v in one.items() if k not in own} == {k: v for k, v in other.items() if k not in own}


def test_settings_move_without_secrets(way: Way, server: Server, receiver: Receiver, tmp_path: Path) -> None:
    settings_of(way, receiver, tmp_path)
    [original] = way.json("list")
    exported = way.run("export")
    assert (exported.returncode, exported.stderr) == (0, "")
    file = json.loads(exported.stdout)
    assert (file["version"], file["with_secrets"], len(file["subscriptions"])) == (1, False, 1)
    [item] = file["subscriptions"]
    assert (item["origin"], item["settings"]["config"]) == (receiver.url, {"url": None})
    assert item["settings"]["headers"] == {"X-Secret": None}

    # where it came from it is recognised, though nothing of its URL is there
    known = way.json("import", "-", stdin=exported.stdout)
    assert (known["created"], known["exists"], known["failed"]) == (0, 1, 0)
    assert known["items"][0]["id"] == original["id"]

    to = Way(server, f"to-{way.account}", tmp_path / "to", by_api=way.by_api)
    lacking = to.run("import", "-", "--json", stdin=exported.stdout)
    assert (lacking.returncode, json.loads(lacking.stdout)["failed"]) == (1, 1)
    assert "has no URL" in lacking.stdout
    (tmp_path / "urls").write_text(json.dumps({item["id"]: f"{receiver.url}/{MARKER}/2"}))
    lacking = to.run("import", "-", "--json", "--endpoints", str(tmp_path / "urls"), stdin=exported.stdout)
    assert (lacking.returncode, "no value: X-Secret" in lacking.stdout) == (1, True)

    item["settings"]["headers"]["X-Secret"] = f"{MARKER}-value"
    (tmp_path / "filled.json").write_text(json.dumps(file))
    filled = [str(tmp_path / "filled.json"), "--endpoints", str(tmp_path / "urls")]
    rehearsed = to.json("import", *filled, "--dry-run")
    assert (rehearsed["would_create"], rehearsed["items"][0]["status"], to.json("list")) == (1, "would-create", [])
    made = to.json("import", *filled)
    [result] = made["items"]
    assert (made["created"], result["state"], result["secret"][:6]) == (1, "disabled", "whsec_")
    assert "new key pair" in result["detail"]
    again = to.run("import", *filled)
    assert (again.returncode, again.stdout.split()[:2]) == (0, ["exists", result["id"]])
    [copy] = to.json("list")
    assert same(copy, original)


def test_settings_move_with_secrets(server: Server, receiver: Receiver, tmp_path: Path) -> None:
    way = Way(server, "from", tmp_path / "way", by_api=False, real=True)
    settings = settings_of(way, receiver, tmp_path)
    [original] = way.json("list")
    file = tmp_path / "export.json"
    assert "needs --output" in refusal(way.run("export", "--with-secrets", "--yes"), 2)
    assert "needs --yes" in refusal(way.run("export", "--with-secrets", "-o", str(file)), 2)
    api = Way(server, "from", tmp_path / "api", by_api=True)
    assert "API never shows" in refusal(api.run("export", "--with-secrets", "--yes", "-o", str(file)), 2)
    assert not file.exists()
    written = way.run("export", "--with-secrets", "--yes", "-o", str(file))
    assert (written.returncode, written.stdout) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "nothing is overwritten" in refusal(way.run("export", "-o", str(file)), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "api", "export.json", "way"]
    [item] = json.loads(file.read_text())["subscriptions"]
    assert item["settings"]["config"] == settings["config"]
    assert item["settings"]["headers"] == settings["headers"]
    assert item["private_key"].startswith("whsk_")
    assert exporters(server, "from") == [f"command line, {getpass.getuser()}"]

    for by_api in (False, True):
        to = Way(server, f"with-{by_api}", tmp_path / f"to-{by_api}", by_api=by_api)
        made = to.json("import", str(file))
        [result] = made["items"]
        assert (made["created"], result["secret"]) == (1, None)
        # a key pair is kept where there is a way to
        assert (result["public_key"] == original["config"]["public_key"]) is not by_api
        assert (result["detail"] is None) is not by_api
        [copy] = to.json("list")
        assert same(copy, original)
        assert to.json("import", str(file))["exists"] == 1
    rehearsed = way.json("import", str(file), "--dry-run")
    assert (rehearsed["exists"], rehearsed["would_create"]) == (1, 0)


def exporters(server: Server, account: str) -> list[str]:
    """Who took what is secret of an account's subscriptions, by its audit log."""
    mine = (audit.c.account == account, audit.c.action == "subscription.export")

    async def read() -> list[str]:
        installation = await open_installation(leading_to(server))
        async with installation.database.read() as connection:
            actors = (await connection.execute(sa.select(audit.c.actor).where(*mine))).scalars().all()
        await installation.database.close()
        return list(actors)

    return asyncio.run(read())


def test_one_that_fails_keeps_no_other_from_being_imported(way: Way, receiver: Receiver) -> None:
    def item(name: object, events: object, url: str = f"{receiver.url}/{MARKER}", **fields: Any) -> Any:
        return {"settings": {"name": name, "events": events, "config": {"url": url}}, **fields}

    items = [
        item("good", ["a"]),
        item("bad", ["a*"]),
        item(7, "a"),
        item("good again", ["a"]),
        item("elsewhere", ["a"], "http://10.0.0.1/"),
        item("odd key", ["b"], private_key=MARKER),
        item("also good", ["c"]),
    ]
    file = {"format": "dispatcher-subscriptions", "version": 1, "subscriptions": items}
    done = way.run("import", "-", "--json", stdin=json.dumps(file))
    assert done.returncode == 1
    result = json.loads(done.stdout)
    statuses = [one["status"] for one in result["items"]]
    assert statuses == ["created", "failed", "failed", "exists", "failed", "failed", "created"]
    assert "/events/0" in result["items"][1]["detail"]
    secrets = [one["secret"] for one in result["items"] if one["secret"]]
    assert [done.stdout.count(secret) for secret in secrets] == [1, 1]
    assert [one["name"] for one in way.json("list")] == ["also good", "good"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is not JSON"),
        (MARKER, "is not JSON"),
        ("[]", "is not what `export` writes"),
        ('{"format": "other", "version": 1, "subscriptions": []}', "$.format"),
        ('{"format": "dispatcher-subscriptions", "version": 1}', "is not what `export` writes"),
        ('{"format": "dispatcher-subscriptions", "version": 2, "subscriptions": []}', "this reads version 1"),
        ('{"format": "dispatcher-subscriptions", "version": 1, "subscriptions": [{}]}', "$.subscriptions[0]"),
    ],
)
def test_what_is_no_export_is_not_imported(server: Server, content: str, says: str) -> None:
    way = ["--account", "dev", "--data-dir", str(server.data_dir)]
    assert says in refusal(run("import", "-", *way, stdin=content, env=server.environment), 2)


def test_what_was_made_is_told_though_the_server_goes_away(receiver: Receiver) -> None:
    page = json.dumps({"items": [], "next_cursor": None}).encode()
    made: list[bytes] = []

    def answer(request: Any) -> Reply:
        if request.method == "GET":
            return Reply(body=page)
        made.append(request.body)
        if len(made) > 1:
            return Reply(raw=b"")
        problem = {"type": "/problems/conflict", "detail": "There is one.", "subscription_id": "f" * 32}
        headers = (("Content-Type", "application/problem+json"),)
        return Reply(status=409, headers=headers, body=json.dumps(problem).encode())

    item = {"settings": {"name": "n", "events": ["a"], "config": {"url": "https://a.example/"}}}
    file = {"format": "dispatcher-subscriptions", "version": 1, "subscriptions": [item] * 3}
    with Receiver(answer) as server:
        environment = {"DISPATCHER_URL": server.url, "DISPATCHER_TOKEN": "t"}
        done = run("import", "-", "--json", stdin=json.dumps(file), env=environment)
    assert done.returncode == 3
    assert [one["status"] for one in json.loads(done.stdout)["items"]] == ["exists", "failed"]
    assert "It may have been done" in done.stdout
    assert "1 items were not tried" in done.stderr


def test_the_examples_of_the_docs_work(server: Server, receiver: Receiver, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "subscriptions-cli.md").read_text("utf-8")
    code = "".join(re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    environment = {
        **os.environ,
        "PATH": forking.on_path(tmp_path / "bin"),
        "NO_PROXY": "127.0.0.1",
        "DISPATCHER_URL": server.url,
        "DISPATCHER_TOKEN": token(server, "docs", *ACCOUNT_SCOPES),
        "ENDPOINT": receiver.url,
    }
    done = subprocess.run(
        ["bash", "-ec", code], capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    secret = json.loads((tmp_path / "rotated.json").read_text())["secret"]
    assert secret not in done.stdout + done.stderr
    assert "websub            right" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("exists")


# --- the scripts ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts in a checkout that is set up, and whose `dispatcher` tells what it was asked for."""
    top = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "scripts", top / "scripts")
    (top / "scripts/lib/setup.sh").write_text('cd "$(dirname "${BASH_SOURCE[0]}")/../.."\n')
    (top / ".venv/bin").mkdir(parents=True)
    command = top / ".venv/bin/dispatcher"
    command.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    command.chmod(0o700)
    return top


@pytest.mark.parametrize("name", [*(f"subscription-{name}" for name in SCRIPTS), "re-encrypt"])
def test_scripts_hand_on_to_the_command(name: str, checkout: Path, tmp_path: Path) -> None:
    given = ["--a", "two words", "", "*"]
    done = subprocess.run(
        [checkout / "scripts" / name, *given], capture_output=True, text=True, check=True, timeout=60, cwd=tmp_path
    )
    command = name.removeprefix("subscription-")
    group = "keyring" if command == name else "subscriptions"
    assert done.stdout.splitlines() == [str(tmp_path), group, command, *given]
    # which is one that there is
    result = CliRunner().invoke(app, [group, command, "--help"])
    assert result.exit_code == 0, result.output
    assert f"{command} [OPTIONS]" in " ".join(result.output.split())


# --- one change in a transaction of its own ---------------------------------------------------------------


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data directory with an installation."""

    async def make() -> None:
        await (await open_installation(Settings(data_dir=tmp_path))).database.close()

    asyncio.run(make())
    return tmp_path


async def note(tx: Transaction) -> int:
    """Write something."""
    await accounts.write_audit(tx.connection, account="a", actor="test", action="x", subject="y")
    return tx.now


async def count(database: Database) -> int:
    async with database.read() as connection:
        return await connection.scalar(sa.select(sa.func.count()).select_from(audit)) or 0


def test_a_change_is_kept_or_only_tried_and_a_failure_leaves_nothing(data: Path) -> None:
    async def fail(tx: Transaction) -> None:
        await note(tx)
        raise ZeroDivisionError

    async def work() -> list[int]:
        database = (await open_installation(Settings(data_dir=data))).database
        try:
            counts = [await count(database)]
            assert await direct.apply(database, note, keep=False) > 0
            counts.append(await count(database))
            with pytest.raises(ZeroDivisionError):
                await direct.apply(database, fail)
            counts.append(await count(database))
            await direct.apply(database, note)
            return [*counts, await count(database)]
        finally:
            await database.close()

    assert asyncio.run(work()) == [0, 0, 0, 1]


@pytest.mark.parametrize(("held_for", "done"), [(BUSY_TIMEOUT_MS / 1000 + 0.5, True), (None, False)])
def test_a_change_waits_for_its_turn(
    data: Path, held_for: float | None, *, done: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "PATIENCE", 15.0 if done else 0.1)

    async def work() -> None:
        database = (await open_installation(Settings(data_dir=data))).database
        other = sqlite3.connect(data / "dispatcher.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            if held_for is not None:
                asyncio.get_running_loop().call_later(held_for, other.execute, "COMMIT")
                await direct.apply(database, note)
                assert await count(database) == 1
            else:
                with pytest.raises(StoreUnavailable):
                    await direct.apply(database, note)
        finally:
            other.close()
            await database.close()

    asyncio.run(work())
