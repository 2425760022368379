"""The command line as a user meets it: processes of its own, their exit status, and what they print where."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from subscriptions.keyring import Keyring
from tests.conftest import of_the_file
from tests.support import forking
from tests.support.api import MARKER, client_with, problem
from tests.support.patience import PROMPTLY
from tests.support.server import Server, until

ROOT = Path(__file__).parents[2]
#: what says that the user, not the program, has to change something
USAGE = 2


def run(*arguments: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a command, without any setting of this process."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("DISPATCHER_")}
    clean |= {"COLUMNS": "80", **(env or {})}
    return forking.run(*arguments, env=clean, cwd=cwd)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line in which a command says why it does nothing."""
    assert (done.returncode, done.stdout) == (USAGE, ""), done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("dispatcher: ")
    assert MARKER not in lines[0]
    return lines[0].removeprefix("dispatcher: ")


# --- tokens -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server as it is by default: nothing on stdout but that it is ready."""
    with Server(tmp_path_factory.mktemp("cli") / "data", dev=False) as running:
        yield running


def beside(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the data directory and the database of a server."""
    return run(*arguments, "--data-dir", str(server.data_dir), env=server.environment)


def test_a_token_is_made_listed_and_revoked_while_the_server_runs(plain: Server) -> None:
    made = beside(
        plain,
        *("token", "create", "--account", "acme", "--scope", "tasks:read", "--scope", "tasks:write"),
        *("--scope", "tasks:read", "--note", "for [red]x[/nope]", "--expires-in", "30"),
    )
    assert (made.returncode, made.stderr) == (0, "")
    [bearer] = made.stdout.splitlines()
    claims = jwt.decode(bearer, options={"verify_signature": False})
    assert set(claims) == {"iss", "aud", "sub", "exp", "iat", "jti", "scope"}
    assert (claims["sub"], claims["scope"]) == ("acme", ["tasks:read", "tasks:write"])
    assert claims["exp"] - claims["iat"] == 30 * 86_400
    assert jwt.get_unverified_header(bearer)["kid"]

    with client_with(plain, bearer) as client:
        assert client.get("/tasks").json() == {"items": [], "next_cursor": None}

        [shown] = json.loads(beside(plain, "token", "list", "--account", "acme", "--json").stdout)
        assert (shown["id"], shown["state"], shown["note"]) == (claims["jti"], "live", "for [red]x[/nope]")
        table = beside(plain, "token", "list")
        assert (table.returncode, table.stderr) == (0, "")
        assert claims["jti"] in table.stdout  # whole, in 80 columns: it is there to be copied
        assert bearer.split(".")[2] not in table.stdout
        assert beside(plain, "token", "list", "--account", "other", "--json").stdout == "[]\n"

        revoked = beside(plain, "token", "revoke", claims["jti"])
        assert (revoked.returncode, revoked.stdout) == (0, "")
        refused = until(lambda: (now := client.get("/tasks")).status_code != 200 and now, within=PROMPTLY)
        problem(refused, 401, "unauthorized")
    [shown] = json.loads(beside(plain, "token", "list", "--json").stdout)
    assert shown["state"] == "revoked"
    assert shown["revoked_at"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--account", f"{MARKER}/", "--scope", "tasks:read"], "an account's name has 1 to 64"),
        (["--account", "a" * 65, "--scope", "tasks:read"], "an account's name has 1 to 64"),
        (["--account", "acme", "--scope", "tasks:read", "--scope", MARKER], "name at least one scope of: tasks:read"),
        (["--account", "acme", "--scope", "tasks:read", "--expires-in", "nan"], "--expires-in must be more than 0"),
        (["--account", "acme", "--scope", "tasks:read", "--expires-in", "36501"], "--expires-in must be more than 0"),
        (["--account", "acme", "--scope", "tasks:read", "--note", "x" * 201], "--note must have at most 200"),
    ],
)
def test_a_token_that_cannot_be_made(plain: Server, options: list[str], says: str) -> None:
    assert says in refusal(beside(plain, "token", "create", *options))


def test_the_longest_account_name_is_taken(plain: Server) -> None:
    done = beside(plain, "token", "create", "--account", "a" * 64, "--scope", "processor")
    assert done.returncode == 0
    assert jwt.decode(done.stdout.strip(), options={"verify_signature": False})["sub"] == "a" * 64


@pytest.mark.parametrize("jti", ["0" * 32, MARKER])
def test_an_unknown_token_cannot_be_revoked(plain: Server, jti: str) -> None:
    assert "there is no token with this id" in refusal(beside(plain, "token", "revoke", jti))


@pytest.mark.parametrize("arguments", [["token", "create", "--account", "a"], ["nothing"]])
def test_wrong_usage_is_told(arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert "Usage" in done.stderr


# --- the keyring (beside a server that works: tests/dispatcher/test_rekeying.py) ---------------------------


def listed(data: Path) -> list[dict[str, Any]]:
    done = run("keyring", "list", "--json", "--data-dir", str(data))
    assert (done.returncode, done.stderr) == (0, "")
    keys: list[dict[str, Any]] = json.loads(done.stdout)["keys"]
    return keys


@of_the_file  # which its commands find without being told
def test_a_keyring_is_rotated_listed_and_retired(tmp_path: Path) -> None:
    data = tmp_path / "data"
    options = ["--data-dir", str(data)]
    bearer = run("token", "create", "--account", "acme", "--scope", "tasks:read", *options).stdout.strip()
    [old] = listed(data)
    assert (old["first"], old["fingerprints"], old["tokens"], old["total"]) == (True, True, 1, 1)

    rotated = run("keyring", "rotate", "--yes", *options)
    assert rotated.returncode == 0
    [new, kept] = listed(data)
    assert rotated.stdout == f"re-encrypted 1 values with {new['kid']}: installation 1\n"
    assert rotated.stderr == (
        f"dispatcher: {new['kid']} encrypts from now on; back up {data.resolve() / 'keyring.json'}\n"
    )
    assert (kept["kid"], kept["first"], kept["fingerprints"], kept["total"]) == (old["kid"], False, True, 0)
    assert (new["first"], new["fingerprints"], new["tokens"], new["values"]["installation"]) == (True, False, 0, 1)

    table = run("keyring", "list", *options)
    assert (table.returncode, table.stderr) == (0, "")
    assert all(kid in table.stdout for kid in (old["kid"], new["kid"]))
    secrets = [key["key"] for key in json.loads((data / "keyring.json").read_text())["keys"]]
    assert all(secret not in table.stdout + rotated.stdout + rotated.stderr for secret in secrets)

    for kid, says in [
        (new["kid"], "is the key that encrypts"),
        (old["kid"], "not retired without --force: it makes the fingerprints"),
        (old["kid"], "up to 1 live API tokens are signed with it"),
        ("k-00000000", "there is no key with this id"),
        (MARKER, "there is no key with this id"),
    ]:
        assert says in refusal(run("keyring", "retire", kid, "--yes", *options))
    assert "needs --yes" in refusal(run("keyring", "retire", old["kid"], "--force", *options))
    assert len(listed(data)) == 2
    forced = run("keyring", "retire", old["kid"], "--force", "--yes", *options)
    assert (forced.returncode, forced.stdout, forced.stderr) == (0, "", f"dispatcher: retired {old['kid']}\n")
    [left] = listed(data)
    assert (left["kid"], left["fingerprints"]) == (new["kid"], True)
    with Server(data, dev=False) as server, client_with(server, bearer) as client:
        problem(client.get("/tasks"), 401, "unauthorized")  # as was said


def test_a_key_that_seals_something_is_not_retired(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run("token", "list", "--data-dir", str(data)).returncode == 0
    first = Keyring.load(data / "keyring.json").kids[0]
    Keyring.rotate(data / "keyring.json")  # and no more: as if the rotation had been interrupted
    told = refusal(run("keyring", "retire", first, "--yes", "--force", "--data-dir", str(data)))
    assert told == f"{first} still seals installation 1; run `dispatcher keyring re-encrypt` first"
    done = run("keyring", "re-encrypt", "--data-dir", str(data))
    assert (done.returncode, done.stderr) == (0, "")
    assert [key["total"] for key in listed(data)] == [1, 0]


@pytest.mark.parametrize("command", [["rotate", "--yes"], ["re-encrypt"], ["list"], ["retire", "k-00000000"]])
def test_a_keyring_is_not_made_by_asking_for_it(tmp_path: Path, command: list[str]) -> None:
    assert "there is no installation" in refusal(run("keyring", *command, "--data-dir", str(tmp_path / "data")))
    assert not (tmp_path / "data").exists()


def test_nobody_to_ask_needs_yes(plain: Server) -> None:
    keys = len(Keyring.load(plain.data_dir / "keyring.json").kids)
    assert "needs --yes" in refusal(beside(plain, "keyring", "rotate"))
    assert len(Keyring.load(plain.data_dir / "keyring.json").kids) == keys


@pytest.mark.parametrize(("answer", "keys"), [("n", 1), ("y", 2)])
def test_on_a_terminal_it_asks_and_shows_progress(tmp_path: Path, answer: str, keys: int) -> None:
    data = tmp_path / "data"
    assert run("token", "list", "--data-dir", str(data)).returncode == 0
    ours, theirs = os.openpty()
    process = forking.dispatcher(
        ["keyring", "rotate", "--data-dir", str(data)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    shown = b""
    try:
        while b"[y/N]" not in shown:
            shown += os.read(ours, 4096)
        os.write(ours, f"{answer}\n".encode())
        with suppress(OSError):  # its end
            while chunk := os.read(ours, 4096):
                shown += chunk
        out, _ = process.communicate(timeout=30)
    finally:
        os.close(ours)
        process.kill()
    assert process.returncode == (0 if answer == "y" else USAGE)
    assert out.startswith(b"re-encrypted 1 values") is (answer == "y")
    assert (b"installation" in shown) is (answer == "y")
    assert len(Keyring.load(data / "keyring.json").kids) == keys


# --- where it runs ----------------------------------------------------------------------------------------


def test_port_0_picks_a_port_and_says_so_alone_on_stdout(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "dispatcher.cli", "serve", "--port", "0", "--data-dir", str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        url = line.strip().removeprefix("dispatcher ready on ")
        assert url.startswith("http://127.0.0.1:")
        assert int(url.rpartition(":")[2]) > 0
        assert httpx.get(f"{url}/healthz", trust_env=False).json() == {"status": "ok"}
    finally:
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=30)
    assert rest == ""
    assert "Traceback" not in errors
    assert process.returncode in {0, -signal.SIGTERM}


def test_dev_mode_prints_its_token_first_and_warns(start_server: Callable[..., Server]) -> None:
    server = start_server()
    assert jwt.decode(server.token, options={"verify_signature": False})["sub"] == "dev"
    warning = server.log.read_text()
    assert "dev_mode" in warning
    assert server.token not in warning


@of_the_file
def test_the_data_directory_is_made_and_closed_to_others(plain: Server) -> None:
    assert stat.S_IMODE(plain.data_dir.stat().st_mode) == 0o700
    for name in ("keyring.json", "dispatcher.db", "dispatcher.db-wal"):
        assert stat.S_IMODE((plain.data_dir / name).stat().st_mode) == 0o600


def test_the_data_directory_comes_from_option_environment_file_default_in_this_order(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(f"data_dir = '{tmp_path / 'file'}'\n")
    file = {"DISPATCHER_CONFIG": str(tmp_path / "settings.toml")}
    environment = {"DISPATCHER_DATA_DIR": str(tmp_path / "environment")}
    for name, options, env in [
        ("option", ["--data-dir", str(tmp_path / "option")], {**file, **environment}),
        ("environment", [], {**file, **environment}),
        ("file", [], file),
        ("dispatcher-data", [], {}),
    ]:
        assert not (tmp_path / name).exists()
        assert run("token", "list", *options, env=env, cwd=tmp_path).returncode == 0
        assert (tmp_path / name / "keyring.json").is_file()


def test_a_toml_file_sets_what_is_served(tmp_path: Path, start_server: Callable[..., Server]) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(
        "\n".join(
            (
                "retry_schedule = [1, 2.5]",
                "max_body = 1000",
                "egress_addresses = ['192.0.2.1', '2001:db8::1']",
                "external_processors = { transcode = 600 }",
                "port = 1  # the option comes first",
            )
        )
    )
    server = start_server(settings={"config": str(file), "max_url": "100"})
    with server.client() as client:
        account = client.get("/account").json()
        assert account["retry_schedule"] == [1.0, 2.5]
        assert (account["limits"]["max_body"], account["limits"]["max_url"]) == (1000, 100)
        assert client.get("/egress-addresses").json() == {"items": ["192.0.2.1", "2001:db8::1"]}
        assert [item["type"] for item in client.get("/processors").json()["items"]] == ["relay", "transcode"]
        body = {"payload": "x" * 998, "callback_url": "http://127.0.0.1:1/"}
        assert client.post("/tasks", json=body).status_code == 202
        problem(client.post("/tasks", json={**body, "payload": "x" * 999}), 413, "too-large", "/payload")


@of_the_file
def test_two_servers_cannot_share_a_directory(plain: Server) -> None:
    done = beside(plain, "serve", "--port", "0")
    assert "another process serves" in refusal(done)
    assert httpx.get(f"{plain.url}/healthz", trust_env=False).status_code == 200


def test_a_port_in_use_is_told(plain: Server, tmp_path: Path) -> None:
    port = plain.url.rpartition(":")[2]
    assert "cannot listen on 127.0.0.1 port" in refusal(run("serve", "--port", port, "--data-dir", str(tmp_path / "d")))


# --- settings ---------------------------------------------------------------------------------------------


#: values that are not good, by key; each round sets the next one of every key at once
BAD: dict[str, list[str]] = {
    "port": [MARKER, "65536"],
    "dev": [MARKER],
    "grace": ["-1", "inf"],
    "log_level": [MARKER],
    "log_format": [MARKER],
    "external_processors": ['{"a": 0}', '{"a": 86401}', f'{{"a": "{MARKER}"}}'],
    "task_slots": ["0"],
    "retry_schedule": [f"5,{MARKER}", "[5, 0]", "[5,", "604801", "nan", ",".join(["1"] * 51)],
    "send_timeout": ["0", "61", "nan"],
    "session_ttl": ["4", "inf"],
    "user_agent": [f"{MARKER}\n"],
    "event_source": [f"{MARKER} x"],
    "allow_ports": [MARKER],
    "allow_networks": [MARKER],
    "deny_networks": ["10.0.0.1/8"],
    "max_body": ["0"],
    "max_batch_items": ["1001"],
    "retention_days": ["0", "inf", "36501"],
}


@pytest.mark.parametrize("round_number", range(max(map(len, BAD.values()))))
def test_every_bad_setting_is_named_and_none_repeated(tmp_path: Path, round_number: int) -> None:
    values = {key: values[round_number] for key, values in BAD.items() if round_number < len(values)}
    env = {f"DISPATCHER_{key.upper()}": value for key, value in values.items()}
    told = refusal(run("token", "list", "--data-dir", str(tmp_path / "data"), env=env))
    assert {
        part.split(":")[0].split(".")[0] for part in told.removeprefix("settings are not valid: ").split("; ")
    } == set(values)
    assert not (tmp_path / "data").exists()


def test_a_setting_that_cannot_be_read_at_all_is_named(tmp_path: Path) -> None:
    env = {"DISPATCHER_EXTERNAL_PROCESSORS": MARKER}
    assert "external_processors" in refusal(run("token", "list", "--data-dir", str(tmp_path / "data"), env=env))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"portt = '{MARKER}'\nport = '{MARKER}'\n[retry]\nx = '{MARKER}'", ["portt:", " port:", "retry:"]),
        ("session_ttl = 10", ["session_ttl must be at least twice send_timeout"]),
        (f"port = 1\nport = 2 # {MARKER}", ["settings cannot be read"]),
    ],
    ids=["keys", "together", "syntax"],
)
def test_a_bad_settings_file_is_told(tmp_path: Path, content: str, says: list[str]) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(content)
    env = {"DISPATCHER_CONFIG": str(file)}
    told = refusal(run("token", "list", "--data-dir", str(tmp_path / "data"), env=env))
    assert [part for part in says if part not in told] == []


def test_a_settings_file_that_is_not_text_is_told(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    file.write_bytes(b"port = \xff\xfe")
    assert "settings cannot be read" in refusal(run("token", "list", env={"DISPATCHER_CONFIG": str(file)}))


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_settings_file_that_is_none_is_told(tmp_path: Path, name: str) -> None:
    env = {"DISPATCHER_CONFIG": str(tmp_path / name)}
    assert "DISPATCHER_CONFIG names a file that does not exist" in refusal(run("token", "list", env=env))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"processors": "no.such.module"}, "processors: there is no module no.such.module"),
        ({"allow_hosts": f"{MARKER} x"}, "allow- or deny-list"),
        ({"deny_hosts": "*.*.example"}, "allow- or deny-list"),
        ({"egress_proxy": f"ftp://user:{MARKER}@proxy.example"}, "egress proxy"),
        ({"host": "999.1.1.1"}, "cannot listen on"),
        ({"external_processors": '{"relay": 5}'}, "there is already a processor named relay"),
        ({"external_processors": '{"a b": 5}'}, "a processor's name has"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_server_that_cannot_start_says_why(tmp_path: Path, settings: dict[str, Any], says: str) -> None:
    env = {f"DISPATCHER_{key.upper()}": value for key, value in settings.items()}
    assert says in refusal(run("serve", "--port", "0", "--data-dir", str(tmp_path / "data"), env=env))


def test_a_database_of_another_kind_is_told_without_its_url(tmp_path: Path) -> None:
    for url in (f"mysql://user:{MARKER}@127.0.0.1/db", f"sqlite+aiosqlite:///{tmp_path}/{MARKER}"):
        env = {"DATABASE_URL": url}
        assert "DATABASE_URL" in refusal(run("token", "list", "--data-dir", str(tmp_path / "data"), env=env))


def test_a_data_directory_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    for command in (["token", "list"], ["serve", "--port", "0"]):
        assert "data" in refusal(run(*command, "--data-dir", str(tmp_path / "data")))


def test_a_lost_keyring_is_told(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert run("token", "list", "--data-dir", str(data)).returncode == 0
    (data / "keyring.json").rename(tmp_path / "kept.json")
    assert "restore it from a backup" in refusal(run("token", "list", "--data-dir", str(data)))
    other = tmp_path / "other"
    run("token", "list", "--data-dir", str(other))
    (other / "keyring.json").rename(data / "keyring.json")
    assert "does not belong to this database" in refusal(run("token", "list", "--data-dir", str(data)))
    (data / "keyring.json").write_text(f'{{"{MARKER}": ')
    assert "keyring" in refusal(run("token", "list", "--data-dir", str(data)))
