"""How long it takes from a post to its delivery: at part of the load, and beside endpoints that hang or fail.

Time runs from the moment at which a post was due, so a late load generator or a late answer counts.
"""

from __future__ import annotations

import time

from scripts.benchmark import processes
from scripts.benchmark.counting import PATIENCE_S, SLOWEST, deliver_all, throughput, used_since
from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.figures import OURS, latencies
from scripts.benchmark.load import EVENT_TYPE, Job, generate, read_moments
from scripts.benchmark.noise import fsync_time
from scripts.benchmark.receivers import OwnReceiver, timing
from scripts.benchmark.scene import Case, Contender, Figures, Scene
from scripts.benchmark.subject import serving

#: shares of the throughput just measured, in percent
LOADS = (10, 30, 60)
#: share of the throughput at which the healthy endpoints' delay is taken
MODERATE = 0.3
#: of ten endpoints in turn, the first hangs and the second answers 500
BAD = {0: "hang", 1: "fail"}
#: the other side of the noisy neighbour
ALL_WELL = "all well"
HEALTHY_SHARE = 1 - len(BAD) / 10
#: numbers of the first items of the second and third job: far above those before, and at the start of a turn
SECOND, THIRD = 1_000_000_000, 2_000_000_000


def _latency(scene: Scene) -> Figures:
    sizes, moments = scene.sizes, scene.folder / "moments"
    fsync = fsync_time(scene.folder)
    figures: dict[str, float] = {"fsync_p50_ms": fsync.p50_ms, "fsync_p99_ms": fsync.p99_ms}
    with timing(scene.folder) as receiver, serving(scene.folder) as dispatcher:
        shape = {"urls": [f"{receiver.origins[0]}/results"], "connections": sizes.connections}
        deliver_all(scene, dispatcher, receiver, dispatcher.job(items=sizes.warm_up, **shape))
        capacity = throughput(scene, dispatcher, receiver, dispatcher.job(seconds=sizes.seconds, **shape))
        figures |= {"per_s": capacity["per_s"]}
        for load in LOADS:
            met = receiver.count()
            rate = capacity["per_s"] * load / 100
            items = max(1, round(rate * sizes.latency_seconds))
            job = dispatcher.job(items=items, rate=rate, first=met, moments=str(moments), **shape)
            answers = deliver_all(scene, dispatcher, receiver, job).answers
            posted = list(read_moments(moments))
            took = [moment - posted[number - met] for number, moment in receiver.arrivals()[met:]]
            figures |= latencies(took, f"at{load}_received") | latencies(answers, f"at{load}_answer")
        return {**figures, "peak_mib": dispatcher.usage().peak_mib}


def _neighbour(scene: Scene, *, troubled: bool) -> Figures:
    sizes, moments = scene.sizes, scene.folder / "moments"
    with timing(scene.folder, hosts=sizes.neighbours) as receiver, serving(scene.folder) as dispatcher:
        shape = {"urls": _urls(receiver, troubled=troubled), "connections": sizes.connections}
        # Once round: all are connected, and what is to hang does.
        first = dispatcher.job(items=sizes.neighbours, **shape)
        _healthy_arrivals(scene, receiver, first, troubled=troubled)
        used, before = dispatcher.usage(), receiver.count()
        flood = dispatcher.job(seconds=sizes.seconds, first=SECOND, **shape)
        came = _healthy_arrivals(scene, receiver, flood, troubled=troubled)
        per_s = len(came) / (max(came.values()) - min(came.values()))
        # The same for both: what the first contender of the round found.
        rate = scene.shared.setdefault("steady", per_s / HEALTHY_SHARE * MODERATE)
        items = max(10, round(rate * sizes.latency_seconds))
        steady = dispatcher.job(items=items, rate=rate, first=THIRD, moments=str(moments), **shape)
        came = _healthy_arrivals(scene, receiver, steady, troubled=troubled)
        posted = list(read_moments(moments))
        took = [moment - posted[number - THIRD] for number, moment in came.items()]
        dispatcher.until_delivered(receiver.taken(), within=PATIENCE_S)
        if dispatcher.ledger()["delivered"] != receiver.taken():
            raise BenchmarkFailed("what was answered with 200 is not what the ledger has as delivered")
        return {
            "per_s": per_s,
            **latencies(took, "healthy"),
            "deliveries": receiver.taken(),
            **used_since(dispatcher, used.cpu_s, receiver.count() - before),
        }


def _healthy_arrivals(scene: Scene, receiver: OwnReceiver, job: Job, *, troubled: bool) -> dict[int, float]:
    """Do a job and wait until all of it arrived that can; the moment of each that went to a healthy endpoint."""
    taken = receiver.taken()
    outcome = generate(job, log=scene.log("load"))
    numbers = range(job.first, job.first + outcome.items)
    healthy = {number for number in numbers if _is_healthy(number)}
    expected = len(healthy) if troubled else len(numbers)
    processes.until(
        lambda: receiver.taken() >= taken + expected,
        within=PATIENCE_S + expected / SLOWEST,
        what=f"{expected} are taken",
    )
    came = [(number, moment) for number, moment in receiver.arrivals() if number in healthy]
    if len(came) != len(healthy) or receiver.taken() != taken + expected:
        raise BenchmarkFailed(f"{len(healthy)} were accepted for healthy endpoints, and {len(came)} arrived")
    return dict(came)


def _crowd(scene: Scene) -> Figures:
    """Posts at a steady rate, first by themselves, then from the moment at which another account's event has its turn.

    Another account's, so that its share of what is in memory cannot be what delays them.
    """
    sizes = scene.sizes
    with (
        timing(scene.folder, hosts=2) as receiver,
        serving(scene.folder) as dispatcher,
        dispatcher.for_account("crowd") as other,
    ):
        other.subscribe([f"{receiver.origins[1]}/s/{index}" for index in range(sizes.crowd)])
        shape = {"urls": [f"{receiver.origins[0]}/results"], "rate": sizes.crowd_per_s}
        job = dispatcher.job(items=round(sizes.crowd_per_s * sizes.crowd_seconds), **shape)
        deliver_all(scene, dispatcher, receiver, job)
        alone = deliver_all(scene, dispatcher, receiver, job).answers
        published = time.monotonic()
        other.post("/events", {"type": EVENT_TYPE, "payload": {"n": 0}})
        outcome = generate(job, log=scene.log("load"))
        ended = other.until_delivered(sizes.crowd, within=PATIENCE_S + sizes.crowd / SLOWEST)
        return {
            **latencies(alone, "alone"),
            **latencies(outcome.answers, "beside"),
            "beside_max_ms": max(outcome.answers) * 1000,
            "p99_ratio": latencies(outcome.answers, "x")["x_p99_ms"] / latencies(alone, "x")["x_p99_ms"],
            "fan_out_per_s": sizes.crowd / (ended - published),
        }


def _urls(receiver: OwnReceiver, *, troubled: bool) -> list[str]:
    def path(index: int) -> str:
        return BAD.get(index % 10, "results") if troubled else "results"

    return [f"{origin}/{path(index)}" for index, origin in enumerate(receiver.origins)]


def _is_healthy(number: int) -> bool:
    """Whether an item goes to an endpoint that is well in both runs: endpoints are taken in turn, by number."""
    return number % 10 not in BAD


CASES = (
    Case(
        name="latency",
        about="from the moment a post is due to its arrival, at 10, 30 and 60 % of the throughput measured just before",
        contenders=(Contender(name=OURS, run=_latency),),
        compared=(),
    ),
    Case(
        name="neighbour",
        about="healthy endpoints while one in ten hangs and one in ten answers 500, and while all are well",
        contenders=(
            Contender(name=ALL_WELL, run=lambda scene: _neighbour(scene, troubled=False)),
            Contender(name=OURS, run=lambda scene: _neighbour(scene, troubled=True)),
        ),
        compared=("per_s", "healthy_p99_ms"),
    ),
    Case(
        name="crowd",
        about="POST /tasks at a steady rate, alone and while an event of another account goes to very many",
        contenders=(Contender(name=OURS, run=_crowd),),
        compared=(),
        by_default=False,
    ),
)
