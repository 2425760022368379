"""Posts to a dispatcher, waits until all is delivered, and holds three counts against each other."""

from __future__ import annotations

from dataclasses import dataclass

from scripts.benchmark import processes
from scripts.benchmark.failures import BenchmarkFailed
from scripts.benchmark.figures import latencies
from scripts.benchmark.load import Job, Outcome, generate
from scripts.benchmark.receivers import Receiver
from scripts.benchmark.scene import Figures, Scene
from scripts.benchmark.subject import Dispatcher

#: deliveries in a second that are waited for, at least
SLOWEST = 20.0
#: seconds that anything may take besides
PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Count:
    """What ledger and receiver had counted at one moment."""

    accepted: int
    delivered: int
    received: int

    @classmethod
    def now(cls, dispatcher: Dispatcher, receiver: Receiver) -> Count:
        """Ask both."""
        ledger = dispatcher.ledger()
        return cls(accepted=ledger["accepted"], delivered=ledger["delivered"], received=receiver.count())

    def grew_by(self, accepted: int, earlier: Count, *, refused: int = 0) -> None:
        """Check that since `earlier` all that was accepted was delivered once, and `refused` requests came besides."""
        grown = (
            self.accepted - earlier.accepted,
            self.delivered - earlier.delivered,
            self.received - earlier.received - refused,
        )
        if grown != (accepted, accepted, accepted):
            raise BenchmarkFailed(
                f"answered 202: {accepted}; ledger: {grown[0]} accepted, {grown[1]} delivered; received: {grown[2]}"
            )


def deliver_all(scene: Scene, dispatcher: Dispatcher, receiver: Receiver, job: Job) -> Outcome:
    """Post, and wait until all is delivered: before anything is measured, so that connections and caches are warm, or
    where only the moments count."""
    before = Count.now(dispatcher, receiver)
    outcome = generate(job, log=scene.log("load"))
    delivered(dispatcher, receiver, before, outcome.accepted)
    return outcome


def throughput(scene: Scene, dispatcher: Dispatcher, receiver: Receiver, job: Job) -> Figures:
    """Post, and wait until all is delivered and recorded; the rate is over all of that time."""
    before, used = Count.now(dispatcher, receiver), dispatcher.usage()
    outcome = generate(job, log=scene.log("load"))
    ended = delivered(dispatcher, receiver, before, outcome.accepted)
    return {
        "per_s": outcome.accepted / (ended - outcome.began),
        "accepted_per_s": outcome.per_s,
        "deliveries": outcome.accepted,
        **latencies(outcome.answers, "answer"),
        **used_since(dispatcher, used.cpu_s, outcome.accepted),
    }


def delivered(dispatcher: Dispatcher, receiver: Receiver, before: Count, count: int, *, refused: int = 0) -> float:
    """Wait until `count` more are delivered, check that the counts agree, and return the moment."""
    within = PATIENCE_S + count / SLOWEST
    processes.until(
        lambda: receiver.count() >= before.received + count + refused, within=within, what=f"{count} are received"
    )
    ended = dispatcher.until_delivered(before.delivered + count, within=within)
    Count.now(dispatcher, receiver).grew_by(count, before, refused=refused)
    return ended


def used_since(dispatcher: Dispatcher, cpu_s: float, deliveries: int) -> Figures:
    """CPU time of its process for each delivery, and the most memory that it had."""
    usage = dispatcher.usage()
    return {"cpu_us": (usage.cpu_s - cpu_s) / deliveries * 1e6, "peak_mib": usage.peak_mib}
