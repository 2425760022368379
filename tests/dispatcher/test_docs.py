"""The docs say what is: tables are held against the code, and every example runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import WebhookVerificationError

from dispatcher import retry
from dispatcher.api import shapes
from dispatcher.api.shapes.subscriptions import RECENT
from dispatcher.cli.outbox import app as outbox_commands
from dispatcher.config import Settings
from dispatcher.delivery import governor
from dispatcher.errors import PROBLEMS
from dispatcher.models import BodyMode, DeliveryKind, DeliveryState, EventState, Mark, Outcome, TaskState
from dispatcher.outbox import EventOptions, TaskOptions
from dispatcher.store import (
    changes,
    committer,
    deliveries,
    holding,
    intake,
    leasing,
    ledger,
    making,
    ordering,
    publishing,
    redelivering,
    rotating,
    sessions,
    settling,
    subscribing,
    upkeep,
    work,
)
from dispatcher.store.notices import NoticeType
from dispatcher.tokens import SCOPES
from subscriptions import filters, health
from subscriptions.filters import FilterFailed, compile_filter
from subscriptions.health import DisabledReason
from subscriptions.matching import Audience, Listener, check_event_type, check_pattern
from subscriptions.models import Draft, Movement, SubscriptionState
from subscriptions.signatures import ASYMMETRIC, Scheme
from tests.conftest import missing
from tests.support import forking
from tests.support.receiver import Receiver
from tests.support.server import Server, until

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLw4V"


def page(name: str) -> str:
    """The text of a page of docs/."""
    return (DOCS / f"{name}.md").read_text("utf-8")


def blocks(text: str, language: str) -> list[str]:
    """Fenced code blocks, those in lists too."""
    found = re.finditer(rf"^(?P<indent> *)```{language}\n(?P<code>.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    return [textwrap.dedent(match["code"]) for match in found]


def table(text: str, first: str) -> dict[str, list[str]]:
    """The rows of every table whose first heading is `first`: first cell without its backticks -> other cells."""
    rows: dict[str, list[str]] = {}
    for lines in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        heading, _, *others = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines.splitlines()]
        if heading[0] == first:
            rows |= {cells[0].strip("`"): cells[1:] for cells in others}
    return rows


# --- settings ---------------------------------------------------------------------------------------------


def in_words(value: object) -> str:
    """A default as docs/settings.md writes it."""
    if value is None or value in ((), {}):
        return "none"
    if isinstance(value, tuple):
        return f"`{','.join(f'{item:g}' for item in value)}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_settings_lists_every_key_with_its_default() -> None:
    documented = {key: cells[:2] for key, cells in table(page("settings"), "key").items()}

    assert documented == {
        key: [
            "`DATABASE_URL`" if key == "database_url" else f"`DISPATCHER_{key.upper()}`",
            in_words(field.get_default(call_default_factory=True)),
        ]
        for key, field in Settings.model_fields.items()
    }


def test_settings_example_is_valid() -> None:
    [example] = blocks(page("settings"), "toml")

    Settings(**tomllib.loads(example))


# --- states -----------------------------------------------------------------------------------------------


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its rank."""
    rank = heading.partition(" ")[0]
    return text.partition(f"\n{heading}\n")[2].partition(f"\n{rank} ")[0]


@pytest.mark.parametrize(
    ("heading", "states", "going_on"),
    [
        ("## Task", TaskState, {"queued", "processing"}),
        ("## Event", EventState, {"accepted"}),
        ("## Subscription", SubscriptionState, {"active", "disabled"}),
        ("## Delivery", DeliveryState, {"pending", "leased", "held"}),
    ],
)
def test_diagrams_draw_every_state(heading: str, states: Iterable[str], going_on: set[str]) -> None:
    [diagram] = blocks(section(page("states"), heading), "mermaid")
    arrows = re.findall(r"(\S+) --> (\S+?)(?::|$)", diagram, re.MULTILINE)

    drawn = {state for arrow in arrows for state in arrow} - {"[*]"}
    assert drawn == set(states)
    final = {state for state, to in arrows if to == "[*]"}
    # an event that is fanned out has deliveries that go on
    assert final == (set() if heading == "## Event" else drawn - going_on)


def test_states_names_functions_that_exist() -> None:
    modules = {
        module.__name__.rpartition(".")[2]: module
        for module in (
            changes, deliveries, health, holding, intake, leasing, ledger, making, ordering, publishing,
            redelivering, retry, sessions, settling, subscribing, upkeep, work,
        )
    }  # fmt: skip
    named = re.findall(rf"\b({'|'.join(modules)})\.([a-z_]+)", page("states"))

    assert len(named) > 50
    assert [f"{module}.{name}" for module, name in named if not hasattr(modules[module], name)] == []


def test_states_lists_every_reason_movement_and_mark() -> None:
    text = page("states")
    store = ROOT / "dispatcher" / "store"
    moving = ("deliveries", "work", "upkeep", "changes", "holding", "making", "leasing", "settling", "redelivering")
    source = (ROOT / "dispatcher" / "retry.py").read_text("utf-8")
    source += "".join((store / f"{name}.py").read_text("utf-8") for name in moving)
    # a reason is given by name, beside its state, or returned by the function that knows final refusals
    reasons = set(re.findall(r'reason="([a-z-]+)"', source))
    reasons |= set(re.findall(r'DeliveryState\.[A-Z]+, "([a-z-]+)"', source))
    reasons |= {retry.ABORTED, retry.EGRESS, retry.GONE, retry.REJECTED}

    assert set(table(section(text, "## Delivery"), "reason")) == reasons
    assert set(table(section(text, "## Subscription"), "reason")) == set(DisabledReason)
    assert set(table(text, "movement")) == set(Movement)
    assert set(table(text, "mark")) == set(Mark)


# --- the HTTP contract ------------------------------------------------------------------------------------


def test_http_api_lists_every_route(server: Server) -> None:
    document = httpx.get(f"{server.url}/openapi.json", trust_env=False).json()
    routes = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    text = page("http-api")

    def is_listed(method: str, path: str) -> bool:
        return re.search(rf"`{method} {re.escape(path)}[ `?]", text) is not None

    # the two probes stand in one row
    assert {route for route in routes if not is_listed(*route)} == {("GET", "/readyz")}


def test_http_api_lists_every_problem() -> None:
    raised = set()
    for file in (ROOT / "dispatcher").rglob("*.py"):
        raised |= set(re.findall(r'Problem\(\s*"([a-z-]+)"', file.read_text("utf-8")))
    listed = {slug: int(cells[0]) for slug, cells in table(page("http-api"), "slug").items()}

    assert listed == {slug: PROBLEMS[slug][0] for slug in raised}


#: shapes that the pages name as a whole, and those that only hold lists of others
LISTS = {
    shapes.BatchRequest, shapes.BatchAccepted, shapes.TaskList, shapes.EventBatchRequest, shapes.EventBatchAccepted,
    shapes.EventList, shapes.SubscriptionList, shapes.SecretList, shapes.DeliveryList, shapes.RedeliveryList,
    shapes.LeasedTasks, shapes.ProcessorList, shapes.EgressAddresses, shapes.WorkerList, shapes.Health,
    shapes.ProblemDetails,
}  # fmt: skip
PARTS = {
    shapes.CallbackSummary, shapes.CallbackView, shapes.BodyView, shapes.Attempt, shapes.Timing, shapes.LeasedTask,
    shapes.Skipped, shapes.EventBatchItem, shapes.BatchItem, shapes.ConfigView, shapes.Disabled, shapes.RecentDelivery,
    shapes.SubscriptionConfig, shapes.OperationalRequest, shapes.OperationalView, shapes.Limits,
    shapes.Worker,
}  # fmt: skip
SHAPES = sorted((set(shapes.ALL) - LISTS) | PARTS, key=lambda shape: shape.__name__)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_http_api_names_every_field(shape: Any) -> None:
    text = page("http-api")

    assert [field for field in shape.__struct_encode_fields__ if not re.search(rf"\b{field}\b", text)] == []


def test_http_api_describes_every_field_of_what_is_made() -> None:
    text = page("http-api")

    assert set(table(text, "field")) == set(shapes.TaskRequest.__struct_fields__)
    assert set(table(text, "field of an event")) == set(shapes.EventRequest.__struct_fields__)
    # the other spellings stand below the table
    assert set(table(text, "field of a subscription")) == {
        field for field in shapes.SubscriptionRequest.__struct_fields__ if not field.endswith("_alias")
    }


def test_http_api_has_the_defaults_of_a_subscription() -> None:
    documented = {name: cells[0] for name, cells in table(page("http-api"), "field of a subscription").items()}
    elsewhere = {"name", "events", "config", "is_active", "body", "verification", "headers"}
    fields = Draft.__dataclass_fields__

    def in_table(value: object) -> str:
        return "null" if value is None else f"`{value}`" if isinstance(value, str) else f"{value:.0f}"

    assert {name: documented[name] for name in documented.keys() - elsewhere} == {
        name: in_table(fields[name].default) for name in documented.keys() - elsewhere
    }
    assert documented["body"] == f"`{fields['body_mode'].default}`"


def test_http_api_names_every_scope_outcome_scheme_body_and_kind() -> None:
    text = page("http-api")

    assert [word for word in (*SCOPES, *Outcome, *DeliveryKind) if f"`{word}`" not in text] == []
    assert set(table(text, "scheme")) == set(Scheme)
    assert {scheme for scheme, cells in table(text, "scheme").items() if "Ed25519 over" in cells[1]} == ASYMMETRIC
    assert set(table(text, "`body`")) == set(BodyMode)


def test_receivers_can_verify_with_ten_lines(server: Server, receiver: Receiver) -> None:
    standard, plain, inbox = blocks(page("http-api"), "python")
    names: dict[str, Any] = {}
    for code in (standard, plain, inbox):
        assert len([line for line in code.splitlines() if line.strip()]) <= 10
        exec(code, names)
    with server.client() as client:
        task = {"payload": {"n": 1}, "callback_url": f"{receiver.url}/cb", "secret": SECRET}
        assert client.post("/tasks", json=task).status_code == 202
    [request] = receiver.wait_for(1)
    headers = {name.lower(): value for name, value in request.headers}

    assert names["verified"](request.body, headers, SECRET) == request.body
    assert names["is_genuine"](request.body, headers, SECRET)
    assert not names["is_genuine"](request.body + b" ", headers, SECRET)
    assert not names["is_genuine"](request.body, {}, SECRET)
    with pytest.raises(WebhookVerificationError):
        names["verified"](request.body + b" ", headers, SECRET)

    database = sqlite3.connect(":memory:")
    assert names["take"](database, headers, request.body)
    assert not names["take"](database, headers, request.body)
    database.close()


# --- subscriptions ----------------------------------------------------------------------------------------


def code_in(cell: str) -> list[str]:
    """What stands in backticks in a cell of a table."""
    return re.findall(r"`([^`]+)`", cell)


def test_patterns_in_the_guide_fit_what_they_say() -> None:
    rows = table(page("subscriptions"), "pattern")
    assert len(rows) > 4
    for pattern, cells in rows.items():
        audience = Audience([Listener(id="one", patterns=(check_pattern(pattern),), filter=None)])
        fits, fits_not = (code_in(cell) for cell in cells[:2])
        assert [event for event in fits if not audience.candidates(check_event_type(event))] == []
        assert [event for event in fits_not if audience.candidates(check_event_type(event))] == []


def test_filters_in_the_guide_say_what_they_say() -> None:
    rows = table(page("subscriptions"), "filter")
    assert len(rows) > 3
    for text, cells in rows.items():
        compiled = compile_filter(text.strip())
        sent, not_sent = ([json.loads(payload) for payload in code_in(cell)] for cell in cells[:2])
        assert sent
        assert [payload for payload in sent if not compiled.accepts(payload)] == []
        assert [payload for payload in not_sent if compiled.accepts(payload)] == []
    with pytest.raises(FilterFailed):
        compile_filter("length(lines)").accepts({})


def test_the_guide_lists_every_reason_and_operational_event() -> None:
    text = page("subscriptions")

    assert set(table(text, "reason")) == set(DisabledReason)
    assert set(table(text, "event")) == set(NoticeType)


def test_the_outbox_page_names_every_option_and_command() -> None:
    calls = table(page("outbox"), "call")
    options = {name.partition("(")[0]: set(re.findall(r"`(\w+)`", cells[1])) for name, cells in calls.items()}
    assert options == {
        "publish_event": set(EventOptions.__annotations__),
        "submit_task": set(TaskOptions.__annotations__),
    }
    commands = {words.split()[2] for words in table(page("outbox"), "command")}
    assert commands == {command.name for command in outbox_commands.registered_commands}


def test_numbers_in_the_docs_are_those_of_the_code() -> None:
    guide, api, reliability, states = (page(name) for name in ("subscriptions", "http-api", "reliability", "states"))
    for text, said in (
        (guide, f"at most {filters.MAX_CHARACTERS:,} characters and {filters.MAX_NODES} parts"),
        (guide, f"nested {filters.MAX_NESTING} deep"),
        (guide, f"{filters.BUDGET:,} units of work"),
        (guide, f"at most {rotating.MAX_KEYS} secrets"),
        (guide, f"{making.MAX_HELD:,} are held"),
        (api, f"| {rotating.MAX_KEYS} that are valid now or later |"),
        (api, f"| {making.MAX_HELD:,}; new ones"),
        (api, f"up to {publishing.MAX_SKIPPED:,} subscriptions ({publishing.MAX_SKIPPED_TOGETHER:,} for all events"),
        (api, f"| {redelivering.MAX_RUNNING} redeliveries of many run"),
        (api, f"more than {publishing.AT_ONCE} with one request"),
        (api, f"its {RECENT} latest deliveries"),
        (states, f"up to {publishing.AT_ONCE} subscriptions"),
        (states, f"{publishing.STEP} with each commit"),
        (reliability, f"{publishing.STEP} deliveries at most, of up to {publishing.AT_A_TIME} events"),
        (reliability, f"at a pace, {governor.SLOWEST:g} to {governor.FASTEST:,.0f} deliveries a second"),
        (reliability, f"while there are callers at most {governor.FASTEST_BESIDE:,.0f}"),
        (api, f"| subscriptions of an account | {subscribing.MAX_SUBSCRIPTIONS:,},"),
        (api, f"{subscribing.MAX_ORDERED:,} of them may keep an order"),
        (reliability, f"{holding.STEP} deliveries at most, and the count"),
        (reliability, f"up to {committer.MAX_BATCH_WEIGHT:,} rows"),
        (reliability, f"up to {committer.MAX_PATIENT_WEIGHT} (or one step)"),
    ):
        assert said in " ".join(text.split())


def test_the_guide_works(server: Server, receiver: Receiver) -> None:
    create, publish, disable_enable, recover, rotate, operational = (
        code.strip() for code in blocks(page("subscriptions"), "sh")
    )
    [notice] = blocks(page("subscriptions"), "json")
    environment = {**os.environ, "API": server.url, "TOKEN": server.token, "ENDPOINT": f"{receiver.url}/orders"}

    made = json.loads(shell(create, environment))
    assert made["is_active"]
    assert made["ping"]["state"] == "delivered"
    environment["ID"] = made["id"]
    told = json.loads(shell(operational, environment))["operational_endpoint"]
    assert json.loads(shell(publish, environment))["deliveries"] == 1
    until(lambda: [request for request in receiver.received if b"5.00" in request.body])

    disabled, enabled = lines_of_json(shell(disable_enable, environment))
    assert (disabled["disabled"]["reason"], enabled["is_active"]) == ("manual", True)
    of_one, of_many, page_of_both = lines_of_json(shell(recover, environment))
    assert {entry["id"] for entry in page_of_both["items"]} == {of_one["id"], of_many["id"]}
    secret, secrets = lines_of_json(shell(rotate, environment))
    assert [entry["state"] for entry in secrets["items"]] == ["current", "previous"]
    assert secret["secret"] not in json.dumps(secrets)

    assert told["is_active"]
    [disabling] = until(
        lambda: [
            json.loads(request.body)
            for request in receiver.received
            if request.target == "/orders/operations" and request.header("X-Webhook-Event") == "subscription.disabled"
        ]
    )
    # nothing was answered here: its owner disabled it
    assert disabling.keys() | {"status"} == json.loads(notice).keys()
    assert disabling["subscription"].keys() == json.loads(notice)["subscription"].keys()


def lines_of_json(text: str) -> list[Any]:
    """Several JSON texts, one after the other."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


def test_ed25519_in_the_guide_verifies(server: Server, receiver: Receiver) -> None:
    [code] = blocks(page("subscriptions"), "python")
    names: dict[str, Any] = {}
    exec(code, names)
    wish = {"name": "n", "events": ["**"], "schemes": ["standard", "standard-ed25519"]}
    with server.client() as client:
        made = client.post("/webhooks/subscriptions", json={**wish, "config": {"url": f"{receiver.url}/s"}}).json()
        old = made["config"]["public_key"]
        new = client.post(f"/webhooks/subscriptions/{made['id']}/secrets").json()["public_key"]
        assert client.post("/events", json={"type": "a", "payload": 1}).status_code == 202
    [request] = receiver.wait_for(1)
    headers = {name.lower(): value for name, value in request.headers}

    assert old != new
    assert names["is_signed_by"](new, request.body, headers)
    assert names["is_signed_by"](old, request.body, headers)
    assert not names["is_signed_by"](new, request.body + b" ", headers)


# --- processors -------------------------------------------------------------------------------------------


@pytest.fixture
def examples(tmp_path: Path) -> tuple[Path, Path]:
    """The examples of docs/processors.md as files: a module of processors, and a worker elsewhere."""
    *parts, worker = blocks(page("processors"), "python")
    assert parts[0].startswith("# my_processors.py")
    assert worker.startswith("# worker.py")
    (tmp_path / "my_processors.py").write_text("\n\n".join(parts), "utf-8")
    (tmp_path / "worker.py").write_text(worker, "utf-8")
    return tmp_path / "my_processors.py", tmp_path / "worker.py"


def outcome(client: httpx.Client, receiver: Receiver, task_type: str, payload: object) -> dict[str, Any]:
    """What a task of this type brings its caller."""
    task = {"type": task_type, "payload": payload, "callback_url": f"{receiver.url}/cb/{task_type}"}
    accepted = client.post("/tasks", json=task)
    assert accepted.status_code == 202, accepted.text
    delivery = accepted.json()["delivery_id"]
    [request] = until(lambda: [request for request in receiver.received if request.delivery == delivery])
    body: dict[str, Any] = json.loads(request.body)
    return {"status": body["status"], **{key: body[key] for key in ("result", "error") if key in body}}


def test_processors_in_the_docs_run(
    examples: tuple[Path, Path],
    start_server: Callable[..., Server],
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, _ = examples
    monkeypatch.setenv("PYTHONPATH", str(module.parent))
    server = start_server(options=("--processors", module.stem))

    unfit = {"status": "failed", "error": {"message": "the payload is not what this processor takes"}}
    invoice = {"number": "1", "lines": [{"quantity": 2, "unit_price": 50}, {"quantity": 1, "unit_price": 7}]}
    with server.client() as client:
        for task_type, payload, expected in (
            ("text.length", {"text": "abc"}, {"status": "succeeded", "result": {"characters": 3}}),
            ("text.words", {"text": "a b"}, {"status": "succeeded", "result": ["a", "b"]}),
            ("number.factors", 12, {"status": "succeeded", "result": [1, 2, 3, 4, 6, 12]}),
            ("invoice.sum", invoice, {"status": "succeeded", "result": {"number": "1", "total": 107}}),
            ("invoice.sum", {"number": "1"}, unfit),
            ("account.lookup", {"id": 1}, {"status": "succeeded", "result": {"id": 1, "known": True}}),
            ("account.lookup", {}, {"status": "failed", "error": {"message": "the payload has no id"}}),
            ("account.lookup", {"id": "busy"}, {"status": "failed", "error": {"message": "the directory is busy"}}),
        ):
            assert outcome(client, receiver, task_type, payload) == expected
        kinds = {entry["type"]: entry["kind"] for entry in client.get("/processors").json()["items"]}
        attempts = {task["type"]: task["attempt"] for task in client.get("/tasks").json()["items"][::-1]}
    assert (kinds["text.length"], kinds["text.words"], kinds["number.factors"]) == ("async", "thread", "process")
    assert attempts["account.lookup"] == 5


def test_the_worker_in_the_docs_works(
    examples: tuple[Path, Path], start_server: Callable[..., Server], receiver: Receiver
) -> None:
    _, worker = examples
    server = start_server(settings={"external_processors": '{"text.upper": 60}'})
    token = server.cli("token", "create", "--account", "dev", "--scope", "tasks:process").stdout.strip()
    environment = {**os.environ, "DISPATCHER_API": server.url, "DISPATCHER_TOKEN": token}
    running = subprocess.Popen([sys.executable, str(worker)], env=environment)
    try:
        with server.client() as client:
            found = outcome(client, receiver, "text.upper", {"text": "hello"})
            refused = outcome(client, receiver, "text.upper", {})
    finally:
        running.terminate()
        running.wait(60)
    assert found == {"status": "succeeded", "result": {"text": "HELLO"}}
    assert refused == {"status": "failed", "error": {"message": "the payload has no text"}}


def test_the_curl_worker_in_the_docs_works(start_server: Callable[..., Server], receiver: Receiver) -> None:
    lease, renew, result = next(
        code for code in blocks(page("processors"), "sh") if "/tasks/lease" in code
    ).splitlines()
    server = start_server(settings={"external_processors": '{"text.upper": 60}'})
    environment = {**os.environ, "DISPATCHER_API": server.url, "DISPATCHER_TOKEN": server.token}

    with server.client() as client:
        task = {"type": "text.upper", "payload": {"text": "hello"}, "callback_url": f"{receiver.url}/cb"}
        accepted = client.post("/tasks", json=task).json()
    [leased] = json.loads(shell(lease, environment))["items"]
    assert leased["id"] == accepted["id"]
    environment["ID"] = leased["id"]
    assert json.loads(shell(renew, environment))["lease_until"] >= leased["lease_until"]
    assert json.loads(shell(result, environment))["state"] == "succeeded"
    [request] = receiver.wait_for(1)
    assert json.loads(request.body)["result"] == {"text": "HELLO"}


# --- the README -------------------------------------------------------------------------------------------


#: where programs are that are run from the start of Python on
REAL = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def shell(code: str, environment: Mapping[str, str], *, path: str = REAL) -> str:
    """What a piece of shell prints, run as a user would, in the top folder."""
    if shutil.which("curl") is None:
        missing("curl")
    done = subprocess.run(
        ["bash", "-ec", code],
        cwd=ROOT,
        env={**environment, "PATH": path, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def printing(
    command: str, environment: Mapping[str, str], *, until_line: str, lines: list[str], path: str = REAL
) -> Iterator[None]:
    """A command that goes on until the block ends; what it prints up to the line that starts so is in `lines`."""
    with subprocess.Popen(
        ["bash", "-ec", f"exec {command}"],
        cwd=ROOT,
        env={**environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        assert running.stdout is not None
        try:
            for line in running.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith(until_line):
                    break
            yield
        finally:
            running.terminate()
            running.wait(60)


def free_port() -> str:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])


def test_the_first_delivery_of_the_readme(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text("utf-8").partition("## A verified delivery in five minutes")[2]
    receiver, dispatcher, submit, look = blocks(text.partition("\n## ")[0], "sh")
    ports = {"8080": free_port(), "8081": free_port()}
    environment = {
        **os.environ,
        "DISPATCHER_PORT": ports["8080"],
        "DISPATCHER_DATA_DIR": str(tmp_path / "data"),
    }

    def on_free_ports(code: str) -> str:
        return re.sub(r"808[01]", lambda match: ports[match[0]], code)

    printed: list[str] = []
    with (
        printing(f"{receiver.strip()} --port {ports['8081']}", environment, until_line="RESULT_SECRET", lines=printed),
        printing(dispatcher.strip(), environment, until_line="dispatcher ready on", lines=printed),
    ):
        values = {name: value for name, _, value in (line.replace(" ", "=", 1).partition("=") for line in printed)}
        pasted = {
            "RESULT_URL": values["RESULT_URL"],
            "RESULT_SECRET": values["RESULT_SECRET"],
            "TOKEN": values["token"],
        }
        for name, value in pasted.items():
            assert f"{name}=...\n" in submit
            submit = submit.replace(f"{name}=...", f"{name}={value}")
        assert "202 Accepted" in shell(on_free_ports(submit), environment)

        def seen() -> Any:
            return httpx.get(f"http://127.0.0.1:{ports['8081']}/received", trust_env=False).json()["requests"]

        until(seen)
        shown = shell(on_free_ports(look), {**environment, "TOKEN": values["token"]})
    assert [entry["reason"] for entry in seen_in(shown)] == ["stored"]
    for check in ("token_ok", "hub_signature_ok", "standard_signature_ok"):
        assert f'"{check}": true' in shown
    assert '"reconciles":true' in shown
    assert values["RESULT_SECRET"] not in shown


def test_the_event_of_the_readme(start_server: Callable[..., Server], tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    subscriber, publish = blocks(section(text, "## An event, for whoever wants it"), "sh")
    server, port = start_server(), free_port()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shown = tmp_path / "shown"
    with (
        shown.open("w") as output,
        subprocess.Popen(
            ["bash", "-ec", subscriber.replace("python -", "exec python -").replace("8082", port)],
            env={**os.environ, "PATH": path},
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as listening,
    ):
        try:
            until(lambda: is_listening(port))
            addressed = publish.replace("8082", port).replace("http://127.0.0.1:8080", server.url)
            answers = shell(addressed, {**os.environ, "TOKEN": server.token})
            until(lambda: "genuine" in shown.read_text() or listening.poll() is not None)
        finally:
            listening.terminate()
    assert "201 Created" in answers
    assert "202 Accepted" in answers
    [printed] = [line for line in shown.read_text().splitlines() if line.startswith("genuine")]
    assert f"`{printed}`" in text


def is_listening(port: str) -> bool:
    """Whether somebody takes connections on a port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(port)), timeout=1):
        return True
    return False


def seen_in(shown: str) -> list[dict[str, Any]]:
    """The receiver's requests, which are the first JSON of a text."""
    found, _ = json.JSONDecoder().raw_decode(shown)
    requests: list[dict[str, Any]] = found["requests"]
    return requests


def test_more_than_one_process_of_the_readme(bare_postgres_url: str, tmp_path: Path) -> None:
    text = section((ROOT / "README.md").read_text("utf-8"), "## More than one process")
    _, started, look = blocks(text, "sh")
    ports = {port: free_port() for port in ("8080", "8081", "8082", "8083", "8084")}
    environment = {
        **os.environ,
        "DATABASE_URL": bare_postgres_url,
        "DISPATCHER_DATA_DIR": str(tmp_path / "data"),
        "DISPATCHER_LOG_LEVEL": "error",
    }

    def on_free_ports(code: str) -> str:
        return re.sub(r"\b808[0-4]\b", lambda match: ports[match[0]], code)

    api, one, other, receiver = on_free_ports(started).splitlines()
    lines: list[str] = []
    path = forking.on_path(tmp_path / "programs")
    run, ask = partial(printing, environment=environment, lines=lines, path=path), partial(shell, path=path)
    with (
        run(f"{api} --port {ports['8080']}", until_line="dispatcher ready on"),
        run(f"{one} --port {ports['8081']}", until_line="dispatcher worker ready"),
        run(other, until_line="dispatcher worker ready"),
        run(f"{receiver} --control-port {ports['8082']}", until_line="receiver ready"),
    ):
        [token] = [line.removeprefix("token ") for line in lines if line.startswith("token ")]
        post, inbox, workers = on_free_ports(look).splitlines()
        assert "202 Accepted" in ask(post, {**environment, "TOKEN": token})
        [received] = until(lambda: json.loads(ask(inbox, environment))["items"])
        shown = ask(workers, environment)
    assert received["status"] == 202
    assert [shown.count(f" {role} ") for role in ("api", "worker")] == [1, 2]


@pytest.mark.parametrize("file", PAGES, ids=lambda file: file.name)
def test_links_lead_somewhere(file: Path) -> None:
    def anchors(target: Path) -> set[str]:
        headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}

    broken = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", file.read_text("utf-8")):
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []
