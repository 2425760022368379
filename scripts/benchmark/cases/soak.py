"""The full load for a long time, over TLS as most of it is elsewhere, to see whether memory grows with it."""

from __future__ import annotations

from statistics import median

from scripts.benchmark.certificates import make_certificate
from scripts.benchmark.counting import deliver_all, throughput, used_since
from scripts.benchmark.figures import OURS
from scripts.benchmark.receivers import receiving, trust
from scripts.benchmark.scene import Case, Contender, Figures, Scene
from scripts.benchmark.subject import serving

#: parts of the time, of which the second and the last are compared: in the first, caches fill
PARTS = 4


def _soak(scene: Scene) -> Figures:
    certificate = make_certificate(scene.folder)
    with (
        receiving(scene.folder, certificate=certificate) as receiver,
        serving(scene.folder, trust(certificate)) as dispatcher,
    ):
        shape = {"urls": [f"{receiver.origins[0]}/results"], "connections": scene.sizes.connections}
        deliver_all(scene, dispatcher, receiver, dispatcher.job(items=scene.sizes.warm_up, **shape))
        used, deliveries = dispatcher.usage(), 0.0
        rates, memory = list[float](), list[float]()
        for _ in range(scene.sizes.soak_stretches):
            job = dispatcher.job(seconds=scene.sizes.soak_seconds / scene.sizes.soak_stretches, **shape)
            figures = throughput(scene, dispatcher, receiver, job)
            deliveries += figures["deliveries"]
            rates.append(figures["per_s"])
            memory.append(dispatcher.usage().mib)
        part = len(memory) // PARTS
        early, late = median(memory[part : 2 * part]), median(memory[-part:])
        return {
            "per_s": median(rates),
            "slowest_per_s": min(rates),
            "deliveries": deliveries,
            "early_mib": early,
            "late_mib": late,
            "grown_mib": late - early,
            **used_since(dispatcher, used.cpu_s, int(deliveries)),
        }


CASES = (
    Case(
        name="soak",
        about="tls for a long time: the memory of the second quarter of it, and of the last",
        contenders=(Contender(name=OURS, run=_soak),),
        compared=(),
        by_default=False,
    ),
)
