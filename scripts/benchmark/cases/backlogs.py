"""What was accepted and could not go out yet: drained, beside others, and while much more waits.

How a backlog is made: the endpoint answers one delivery with 503 and `Retry-After`, which pauses its lane for that
time. What is accepted meanwhile is on disk as pending, row by row, and nothing of it was tried. When the pause is over
all of it is due at once.
"""

from __future__ import annotations

import math
import time
from contextlib import ExitStack

from scripts.benchmark import processes
from scripts.benchmark.counting import PATIENCE_S, Count, deliver_all, delivered, throughput, used_since
from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.figures import OURS, latencies
from scripts.benchmark.load import generate, read_moments
from scripts.benchmark.receivers import Receiver, receiving, timing
from scripts.benchmark.rivals import AIOHTTP, CEILING, CELERY, HTTPX
from scripts.benchmark.scene import Case, Contender, Figures, Scene
from scripts.benchmark.subject import Dispatcher, serving

#: how a backlog is posted
BULK = {"kind": "batch", "per_request": 500, "connections": 2}
#: share of a backlog that is posted and delivered first, to see how fast it is accepted
TRIAL = 0.1
#: how much longer the pause is than the backlog should take
MARGIN, MARGIN_S = 1.5, 2.0
#: and the shortest: the delivery that was refused is tried again after 5 s and a jitter, and must not come late
SHORTEST_S = 7
#: seconds that a pause may take, on a very slow machine
LONGEST_PAUSE_S = 3600.0
#: seconds for which those wait that are not to be drained: longer than any run
FOR_LATER_S = 6 * 3600
#: seconds of posts to the quiet endpoints
QUIET_S = 10.0


def _drain(scene: Scene) -> Figures:
    with receiving(scene.folder) as receiver, serving(scene.folder) as dispatcher:
        return drained(scene, dispatcher, receiver, scene.sizes.backlog)


def drained(scene: Scene, dispatcher: Dispatcher, receiver: Receiver, size: int, *, path: str = "/results") -> Figures:
    """Have a backlog of this size accepted, and measure how it is drained."""
    before = _accept_backlog(scene, dispatcher, receiver, size, path)
    opened = _until_open(receiver, before)
    used = dispatcher.usage()
    # One more than the backlog: the delivery that was refused for the pause.
    count = size + 1
    ended = delivered(dispatcher, receiver, before, count, refused=1)
    return {"per_s": count / (ended - opened), "deliveries": count, **used_since(dispatcher, used.cpu_s, count)}


def _accept_backlog(
    scene: Scene, dispatcher: Dispatcher, receiver: Receiver, size: int, path: str = "/results"
) -> Count:
    """Pause an endpoint's lane and have a backlog accepted; returns what was counted before."""
    url = f"{receiver.origins[0]}{path}"
    trial = dispatcher.job(items=max(1, round(size * TRIAL)), urls=[url], **BULK)
    pace = deliver_all(scene, dispatcher, receiver, trial).per_s
    before = Count.now(dispatcher, receiver)
    seconds = max(SHORTEST_S, math.ceil(size / pace * MARGIN + MARGIN_S))
    ends = time.monotonic() + seconds
    _pause(dispatcher, receiver, receiver.origins[0], seconds)
    generate(dispatcher.job(items=size, urls=[url], **BULK), log=scene.log("load"))
    if receiver.count() != before.received + 1 or time.monotonic() > ends:
        raise BenchmarkFailed(f"{size} could not be accepted within the pause of {seconds} s")
    return before


def _pause(dispatcher: Dispatcher, receiver: Receiver, origin: str, seconds: int) -> None:
    count = receiver.count()
    dispatcher.post("/tasks", {"payload": {"n": 0}, "callback_url": f"{origin}/pause/{seconds}"})
    processes.until(lambda: receiver.count() > count, within=PATIENCE_S, what="the pause is asked for")
    processes.until(
        lambda: dispatcher.ledger()["leased"] == 0, within=PATIENCE_S, what="the answer that asks for it is recorded"
    )


def _until_open(receiver: Receiver, before: Count) -> float:
    return processes.until(
        lambda: receiver.count() > before.received + 1,
        within=LONGEST_PAUSE_S,
        what="the pause is over",
        every=0.005,
    )


def _beside(scene: Scene, waiting: int) -> Figures:
    """`single` and `drain`, with rows for another endpoint waiting or without.

    They are another account's: the ledger counts an account's rows, and to look at it must not cost more than without.
    """
    with (
        receiving(scene.folder, hosts=2) as receiver,
        serving(scene.folder) as dispatcher,
        dispatcher.for_account("waiting") as other,
    ):
        if waiting:
            _pause(other, receiver, receiver.origins[1], FOR_LATER_S)
            later = other.job(items=waiting, urls=[f"{receiver.origins[1]}/results"], **BULK)
            generate(later, log=scene.log("load"))
        shape = {"urls": [f"{receiver.origins[0]}/results"], "connections": scene.sizes.connections}
        deliver_all(scene, dispatcher, receiver, dispatcher.job(items=scene.sizes.warm_up, **shape))
        figures = throughput(scene, dispatcher, receiver, dispatcher.job(seconds=scene.sizes.seconds, **shape))
        backlog = drained(scene, dispatcher, receiver, scene.sizes.backlog)
        if other.ledger()["pending"] != waiting + bool(waiting):
            raise BenchmarkFailed("the rows that were to wait did not")
        return {**figures, "drain_per_s": backlog["per_s"], "peak_mib": backlog["peak_mib"], "waiting": waiting}


def _overdue(scene: Scene) -> Figures:
    """Posts to quiet endpoints while another one's overdue backlog is drained."""
    sizes = scene.sizes
    with ExitStack() as stack:
        busy = stack.enter_context(receiving(scene.folder))
        quiet = stack.enter_context(timing(scene.folder, hosts=sizes.quiet))
        dispatcher = stack.enter_context(serving(scene.folder))
        urls, moments = [f"{origin}/results" for origin in quiet.origins], scene.folder / "moments"
        deliver_all(scene, dispatcher, quiet, dispatcher.job(items=sizes.quiet, urls=urls))
        met = len(quiet.arrivals())
        before, used = _accept_backlog(scene, dispatcher, busy, sizes.backlog), dispatcher.usage()
        opened = _until_open(busy, before)
        posts = math.ceil(min(QUIET_S, sizes.backlog / 4_000) * sizes.quiet_per_s)
        outcome = generate(
            dispatcher.job(
                items=posts, rate=sizes.quiet_per_s, urls=urls, first=sizes.quiet, moments=str(moments), connections=16
            ),
            log=scene.log("load"),
        )
        left = before.received + sizes.backlog + 2 - busy.count()
        if left <= 0:
            raise BenchmarkFailed("the backlog was gone before the last post to a quiet endpoint")
        processes.until(lambda: quiet.count() >= met + posts, within=PATIENCE_S, what="the quiet ones are delivered")
        count = sizes.backlog + 1 + outcome.accepted
        ended = dispatcher.until_delivered(before.delivered + count, within=PATIENCE_S + count / 20)
        if quiet.count() != met + posts or busy.count() - before.received != sizes.backlog + 2:
            raise BenchmarkFailed("what was received is not what was accepted")
        posted = list(read_moments(moments))
        took = [moment - posted[number - sizes.quiet] for number, moment in quiet.arrivals()[met:]]
        return {
            **latencies(took, "quiet"),
            "quiet_max_ms": max(took) * 1000,
            "overdue_left": left,
            "per_s": count / (ended - opened),
            **used_since(dispatcher, used.cpu_s, count),
        }


CASES = (
    Case(
        name="drain",
        about="a backlog for one endpoint, accepted while that had asked for a pause: from first to last delivery",
        contenders=(Contender(name=OURS, run=_drain), CEILING, HTTPX, AIOHTTP, CELERY),
    ),
    Case(
        name="overdue",
        about="posts to quiet endpoints while the overdue backlog of another is drained",
        contenders=(Contender(name=OURS, run=_overdue),),
    ),
    Case(
        name="backlog",
        about="single and drain while very many rows wait for another endpoint",
        contenders=(
            Contender(name=OURS, run=lambda scene: _beside(scene, scene.sizes.waiting)),
            Contender(name="none waiting", run=lambda scene: _beside(scene, 0)),
            CEILING,
        ),
        compared=("per_s", "drain_per_s"),
        by_default=False,
    ),
)
