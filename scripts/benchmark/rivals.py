"""The rivals, each against a receiver of its own that is made as ours is.

None of them keeps anything on disk and none signs: what we do beyond that is in our figures, not in theirs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmark import processes
from scripts.benchmark.certificates import make_certificate
from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.load import payload
from scripts.benchmark.receivers import LOOPBACK, Receiver, free_port, receiving
from scripts.benchmark.scene import Contender, Figures, Scene
from scripts.benchmark.tools import BENCH_PYTHON, PACKAGES, REDIS, WRK, bench_program, program

#: seconds beyond its own time that a rival may take
PATIENCE_S = 60.0
#: Celery deliveries in a second that are waited for, at least
SLOWEST = 5.0

_WRK_SCRIPT = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = {body}
"""


def _wrk(scene: Scene, *, tls: bool = False) -> Figures:
    """The ceiling: the receiver, asked as fast as it goes."""
    certificate = make_certificate(scene.folder) if tls else None
    script = scene.folder / "post.lua"
    script.write_text(_WRK_SCRIPT.format(body=json.dumps(payload(0).decode())))
    seconds = scene.sizes.rival_seconds
    with receiving(scene.folder, certificate=certificate) as receiver:
        command = [program(WRK) or WRK, "-t1", f"-c{scene.sizes.connections}", f"-d{seconds}s", "-s", str(script)]
        said = processes.finished([*command, receiver.origins[0]], log=scene.log("wrk"), within=seconds + PATIENCE_S)
        # wrk drops what is under way when its time is up, so the receiver may have a few more.
        _match(receiver, at_least=_number(r"(\d+) requests in", said))
    if "Non-2xx" in said or "Socket errors" in said:
        raise BenchmarkFailed(f"wrk met errors:\n{said}")
    return {"per_s": _number(r"Requests/sec: *([\d.]+)", said)}


def _loop(scene: Scene, name: str) -> Figures:
    seconds, workers = scene.sizes.rival_seconds, scene.sizes.connections
    with receiving(scene.folder) as receiver:
        command = [*bench_program(f"{name}_loop.py"), receiver.origins[0], str(seconds), str(workers)]
        within = seconds + PATIENCE_S
        said = json.loads(processes.finished(command, log=scene.log(name), within=within, given=payload(0)))
        _match(receiver, at_least=said["count"], at_most=said["count"])
    return {"per_s": said["count"] / said["seconds"], "cpu_us": said["cpu"] / said["count"] * 1e6}


def _celery(scene: Scene) -> Figures:
    """A queue that was filled before, drained by one worker process."""
    count = scene.sizes.celery_tasks
    with receiving(scene.folder) as receiver, _redis(scene) as broker:
        environment = {"BROKER": broker}
        fill = [*bench_program("celery_app.py"), receiver.origins[0], str(count)]
        processes.finished(
            fill, log=scene.log("queue"), within=PATIENCE_S + count / 50, given=payload(0), environment=environment
        )
        folder = Path(bench_program("celery_app.py")[1]).parent
        worker = [str(BENCH_PYTHON), "-m", "celery", "-A", "celery_app", "--workdir", str(folder), "worker"]
        worker += ["--pool", "prefork", "--concurrency", "1", "--loglevel", "ERROR"]
        worker += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
        with processes.running(worker, log=scene.log("celery"), environment=environment):
            within = PATIENCE_S + count / SLOWEST
            began = processes.until(lambda: receiver.count() > 0, within=within, what="Celery delivers")
            ended = processes.until(lambda: receiver.count() >= count, within=within, what="Celery drained its queue")
        _match(receiver, at_least=count, at_most=count)
    return {"per_s": count / (ended - began)}


@contextmanager
def _redis(scene: Scene) -> Iterator[str]:
    port = free_port()
    command = [program(REDIS) or REDIS, "--port", str(port), "--bind", LOOPBACK, "--dir", str(scene.folder)]
    with processes.running([*command, "--save", "", "--appendonly", "no"], log=scene.log("redis")) as child:
        for line in child.lines():
            if "Ready to accept connections" in line:
                break
        else:
            raise child.failure("did not start")
        yield f"redis://{LOOPBACK}:{port}/0"


def _match(receiver: Receiver, *, at_least: float, at_most: float | None = None) -> None:
    count = receiver.count()
    if count < at_least or (at_most is not None and count > at_most):
        raise BenchmarkFailed(f"{at_least:g} were sent, and the receiver counted {count}")


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise BenchmarkFailed(f"not understood:\n{text}")
    return float(found[1])


CEILING = Contender(name="wrk", run=_wrk, needs=(WRK,))
TLS_CEILING = Contender(name="wrk", run=lambda scene: _wrk(scene, tls=True), needs=(WRK,))
HTTPX = Contender(name="httpx", run=lambda scene: _loop(scene, "httpx"), needs=(PACKAGES,))
AIOHTTP = Contender(name="aiohttp", run=lambda scene: _loop(scene, "aiohttp"), needs=(PACKAGES,))
CELERY = Contender(name="celery", run=_celery, needs=(PACKAGES, REDIS))
