"""The docs say what is: tables are held against the code, and every example runs."""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import WebhookVerificationError

from dispatcher import retry
from dispatcher.api import shapes
from dispatcher.config import Settings
from dispatcher.errors import PROBLEMS
from dispatcher.models import BodyMode, DeliveryState, Mark, Outcome, TaskState
from dispatcher.store import changes, deliveries, intake, leasing, ledger, sessions, upkeep, work
from dispatcher.tokens import SCOPES
from subscriptions.signatures import Scheme
from tests.conftest import missing
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


@pytest.mark.parametrize(
    ("number", "states", "absent"), [(0, TaskState, set()), (1, DeliveryState, {"held"})], ids=["task", "delivery"]
)
def test_diagrams_draw_every_state(
    number: int, states: type[TaskState] | type[DeliveryState], absent: set[str]
) -> None:
    arrows = re.findall(r"(\S+) --> (\S+?)(?::|$)", blocks(page("states"), "mermaid")[number], re.MULTILINE)

    drawn = {state for arrow in arrows for state in arrow} - {"[*]"}
    assert drawn == set(states) - absent
    assert {state for state, to in arrows if to == "[*]"} == drawn - {"queued", "processing", "pending", "leased"}


def test_states_names_functions_that_exist() -> None:
    modules = {
        module.__name__.rpartition(".")[2]: module
        for module in (changes, deliveries, intake, leasing, ledger, sessions, upkeep, work, retry)
    }
    named = re.findall(rf"\b({'|'.join(modules)})\.([a-z_]+)", page("states"))

    assert len(named) > 30
    assert [f"{module}.{name}" for module, name in named if not hasattr(modules[module], name)] == []


def test_states_lists_every_reason_and_mark() -> None:
    source = "".join(
        (ROOT / "dispatcher" / name).read_text("utf-8")
        for name in ("retry.py", "store/deliveries.py", "store/work.py", "store/upkeep.py", "store/changes.py")
    )
    # a reason is given as `reason=…`, or returned by the function that knows final refusals
    reasons = set(re.findall(r'reason="([a-z-]+)"', source)) | {"egress", "gone", "rejected", "aborted"}

    assert set(table(page("states"), "reason")) == reasons
    assert set(table(page("states"), "mark")) == set(Mark)


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


SHAPES = (
    shapes.TaskAccepted,
    shapes.CallbackSummary,
    shapes.Task,
    shapes.CallbackView,
    shapes.CallbackRequest,
    shapes.Delivery,
    shapes.BodyView,
    shapes.Attempt,
    shapes.Timing,
    shapes.LeaseRequest,
    shapes.LeasedTask,
    shapes.ResultRequest,
    shapes.Account,
    shapes.AccountChange,
    shapes.Ledger,
)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_http_api_names_every_field(shape: Any) -> None:
    text = page("http-api")

    assert [field for field in shape.__struct_fields__ if not re.search(rf"\b{field}\b", text)] == []


def test_http_api_describes_every_field_of_a_new_task() -> None:
    assert set(table(page("http-api"), "field")) == set(shapes.TaskRequest.__struct_fields__)


def test_http_api_names_every_scope_outcome_scheme_and_body() -> None:
    text = page("http-api")

    assert [word for word in (*SCOPES, *Outcome) if f"`{word}`" not in text] == []
    assert set(table(text, "scheme")) == set(Scheme)
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
        running.wait(10)
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


def shell(code: str, environment: Mapping[str, str]) -> str:
    """What a piece of shell prints, run as a user would, in the top folder."""
    if shutil.which("curl") is None:
        missing("curl")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", code],
        cwd=ROOT,
        env={**environment, "PATH": path, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def printing(command: str, environment: Mapping[str, str], *, until_line: str, lines: list[str]) -> Iterator[None]:
    """A command that goes on until the block ends; what it prints up to the line that starts so is in `lines`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
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
            running.wait(30)


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


def seen_in(shown: str) -> list[dict[str, Any]]:
    """The receiver's requests, which are the first JSON of a text."""
    found, _ = json.JSONDecoder().raw_decode(shown)
    requests: list[dict[str, Any]] = found["requests"]
    return requests


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
