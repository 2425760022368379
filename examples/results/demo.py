"""The main job on real input, from outside: what `scripts/demo` runs.

Starts an independent receiver and `dispatcher serve --dev` on loopback, with a temporary data directory;
submits the tasks of `tasks.json`, each with a callback URL whose token allows one result; follows the
deliveries, one of which fails twice first; lets the receiver say what it found. Exits 0 only if all is as it
should be.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import jwt
from rich.console import Console
from rich.live import Live

from examples.results.board import PLAIN_WIDTH, Job, PlainLines, live_table, summary_table, yes_no
from examples.results.children import Child, ChildFailed, running
from examples.results.forgeries import BODY, forgeries
from examples.results.receiver import new_secret

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
DEADLINE_SECONDS = 90
POLL_SECONDS = 0.15
TOKEN_LIFE_SECONDS = 600
#: delays after the first tries; the usual 5 s, 30 s, 5 min … would outlast a demo
RETRY_SCHEDULE_SECONDS = [0.5, 1, 2]
FAILS_TWICE = "inv-2043"
STATES = ("delivered", "exhausted", "rejected", "expired", "cancelled", "pending", "leased", "held")


class DemoFailed(Exception):
    """Something is not as it should be; the text says what."""


def start_receiver(folder: Path, jwt_key: str, secret: str) -> AbstractContextManager[Child]:
    """A results service of a customer."""
    return running(
        [
            sys.executable,
            "-m",
            "examples.results.receiver",
            "--port",
            "0",
            "--fail",
            FAILS_TWICE,
            "--times",
            "2",
        ],
        env={"RESULTS_JWT_KEY": jwt_key, "RESULTS_WEBHOOK_SECRET": secret},
        cwd=ROOT,
        log=folder / "receiver.log",
    )


def start_dispatcher(folder: Path) -> AbstractContextManager[Child]:
    """The dispatcher, as one would start it in a shell."""
    return running(
        [
            *(str(Path(sys.executable).with_name("dispatcher")), "serve", "--dev", "--port", "0"),
            *("--data-dir", str(folder / "data"), "--processors", "examples.results.processors"),
        ],
        env={"PYTHONPATH": str(ROOT), "DISPATCHER_RETRY_SCHEDULE": json.dumps(RETRY_SCHEDULE_SECONDS)},
        cwd=ROOT,
        log=folder / "dispatcher.log",
    )


def submit(api: httpx.Client, receiver_url: str, jwt_key: str, secret: str) -> list[Job]:
    """Send every task; its callback URL carries a token for this one result."""
    jobs = []
    for entry in json.loads((HERE / "tasks.json").read_text("utf-8")):
        document_id = secrets.token_hex(12)
        exp = int(time.time()) + TOKEN_LIFE_SECONDS
        claims = {"path": "/results", "res_id": entry["name"], "_id": document_id, "exp": exp}
        token = jwt.encode(claims, jwt_key, algorithm="HS256")
        answer = api.post(
            "/tasks",
            json={
                "type": entry["type"],
                "payload": entry["payload"],
                "callback_url": f"{receiver_url}/results/{entry['name']}/{token}",
                "secret": secret,
                "metadata": {"name": entry["name"]},
            },
            headers={"Idempotency-Key": f"demo-{document_id}"},
        )
        if answer.status_code != 202:
            raise DemoFailed(f"{entry['name']} was answered {answer.status_code}: {answer.text}")
        accepted = answer.json()
        jobs.append(
            Job(
                name=entry["name"],
                type=entry["type"],
                expect=entry.get("expect", "succeeded"),
                task_id=accepted["id"],
                delivery_id=accepted["delivery_id"],
                document_id=document_id,
                token=token,
                task_state=accepted["state"],
            )
        )
    return jobs


def refresh(api: httpx.Client, jobs: Sequence[Job]) -> None:
    """Ask how the unfinished ones stand."""
    for job in jobs:
        if job.is_final:
            continue
        delivery = api.get(f"/deliveries/{job.delivery_id}").raise_for_status().json()
        job.task_state = api.get(f"/tasks/{job.task_id}").raise_for_status().json()["state"]
        job.delivery_state, job.attempts = delivery["state"], delivery["attempts"]


def follow(api: httpx.Client, jobs: Sequence[Job], console: Console, server: Child, deadline: float) -> None:
    """Show the deliveries until all are final."""
    plain = PlainLines(console)
    with Live(live_table(jobs), console=console, auto_refresh=False, transient=True) as live:
        while not all(job.is_final for job in jobs):
            if time.monotonic() > deadline:
                raise DemoFailed(f"not all was delivered within {DEADLINE_SECONDS} s")
            if server.has_ended():
                raise DemoFailed("the dispatcher ended")
            refresh(api, jobs)
            if console.is_terminal:
                live.update(live_table(jobs), refresh=True)
            else:
                plain.update(jobs)
            time.sleep(POLL_SECONDS)
    if console.is_terminal:
        console.print(live_table(jobs))


def try_forgeries(receiver: httpx.Client, jwt_key: str, secret: str) -> str:
    """The receiver must refuse what is not right, or its checks of the rest would say nothing."""
    tried = forgeries(jwt_key=jwt_key, secret=secret, other_secret=new_secret())
    for forgery in tried:
        answer = receiver.post(forgery.path, headers=forgery.headers, content=BODY)
        if answer.status_code not in {400, 401, 403}:
            raise DemoFailed(f"the receiver answered {answer.status_code} to {forgery.what}")
    return f"the receiver refused {len(tried)} of {len(tried)} forged requests"


def check_ledger(api: httpx.Client, jobs: Sequence[Job]) -> str:
    """Every delivery accepted is in exactly one state."""
    ledger = api.get("/ledger").raise_for_status().json()
    told = ", ".join(f"{ledger[state]} {state}" for state in STATES if ledger[state])
    if ledger["accepted"] != len(jobs) or sum(ledger[state] for state in STATES) != ledger["accepted"]:
        raise DemoFailed(f"the ledger does not reconcile: {ledger['accepted']} accepted, {told}")
    return f"the ledger reconciles: {ledger['accepted']} accepted = {told}"


def check_silence(folder: Path, jobs: Sequence[Job], secret: str) -> str:
    """No file the dispatcher wrote, log and database included, holds a token or the secret in clear."""
    needles = [part.encode() for job in jobs for part in job.token.split(".")[1:]]
    needles.append(secret.removeprefix("whsec_").encode())
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        content = path.read_bytes()
        if any(needle in content for needle in needles):
            raise DemoFailed(f"{path.relative_to(folder)} holds a token or the secret in clear")
    return f"no token and no secret stands in any of the {len(files)} files of data and logs"


def run(console: Console, folder: Path) -> None:
    """The whole demo; whatever is not as it should be is raised."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    jwt_key, secret = secrets.token_hex(32), new_secret()
    with start_receiver(folder, jwt_key, secret) as receiver, start_dispatcher(folder) as server:
        try:
            receiver_url = receiver.expect("receiver ready on ", deadline=deadline)
            bearer = server.expect("token ", deadline=deadline)
            api_url = server.expect("dispatcher ready on ", deadline=deadline)
            console.print(
                f"dispatcher on {api_url}\n"
                f"receiver on {receiver_url}, a customer's service; {FAILS_TWICE} is answered 503 twice",
                highlight=False,
            )
            api = httpx.Client(
                base_url=api_url, headers={"Authorization": f"Bearer {bearer}"}, timeout=10, trust_env=False
            )
            inbox = httpx.Client(base_url=receiver_url, timeout=10, trust_env=False)
            with api, inbox:
                checks = [try_forgeries(inbox, jwt_key, secret)]
                jobs = submit(api, receiver_url, jwt_key, secret)
                follow(api, jobs, console, server, deadline)
                requests = inbox.get("/received").raise_for_status().json()["requests"]
                for job in jobs:
                    job.received = [entry for entry in requests if entry["res_id"] == job.name]
                console.print(summary_table(jobs))
                checks += [check_ledger(api, jobs), check_silence(folder, jobs, secret)]
            conclude(console, jobs, checks)
        except (DemoFailed, ChildFailed, httpx.HTTPError):
            for child in (server, receiver):
                console.print(f"--- the end of {child.log.name}\n{child.last_words()}", markup=False)
            raise


def conclude(console: Console, jobs: Sequence[Job], checks: Sequence[str]) -> None:
    """The last lines; raises if a task was not delivered and verified."""
    for check in checks:
        console.print(f"{yes_no(True)}  {check}", highlight=False)
    retried = next(job for job in jobs if job.name == FAILS_TWICE)
    if [entry["status"] for entry in retried.received] != [503, 503, 200]:
        raise DemoFailed(f"{FAILS_TWICE} should have failed twice and then succeeded")
    if wrong := [job.name for job in jobs if not job.verified]:
        raise DemoFailed(f"not delivered and verified: {', '.join(wrong)}")
    console.print(
        f"all {len(jobs)} results were delivered, and verified by the receiver", style="bold green", highlight=False
    )


def main() -> int:
    """Run in a temporary folder; 0 if all was delivered and verified."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(soft_wrap=False)
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    with tempfile.TemporaryDirectory(prefix="dispatcher-demo-") as folder:
        try:
            run(console, Path(folder))
        except (DemoFailed, ChildFailed, httpx.HTTPError) as error:
            console.print(f"[bold red]the demo failed:[/] {error}", highlight=False)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
