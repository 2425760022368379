"""Post and deliver as fast as it goes: one task a request, twenty, fan-out, many endpoints, TLS."""

from __future__ import annotations

from typing import Any

from scripts.benchmark.certificates import make_certificate
from scripts.benchmark.counting import deliver_all, throughput
from scripts.benchmark.figures import OURS
from scripts.benchmark.receivers import receiving, trust
from scripts.benchmark.rivals import AIOHTTP, CEILING, HTTPX, TLS_CEILING
from scripts.benchmark.scene import Case, Contender, Figures, Scene
from scripts.benchmark.subject import serving

#: connections that publish events: each post is answered when 50 deliveries are on disk
PUBLISHERS = 16


def _single(scene: Scene) -> Figures:
    return _tasks(scene)


def _batch(scene: Scene) -> Figures:
    return _tasks(scene, kind="batch", per_request=20)


def _endpoints(scene: Scene) -> Figures:
    return _tasks(scene, hosts=scene.sizes.endpoints)


def _tls(scene: Scene) -> Figures:
    return _tasks(scene, tls=True)


def _tasks(scene: Scene, *, hosts: int = 1, tls: bool = False, **shape: Any) -> Figures:
    certificate = make_certificate(scene.folder) if tls else None
    environment = trust(certificate) if certificate else {}
    with (
        receiving(scene.folder, hosts=hosts, certificate=certificate) as receiver,
        serving(scene.folder, environment) as dispatcher,
    ):
        urls = [f"{origin}/results" for origin in receiver.origins]
        shape |= {"urls": urls, "connections": scene.sizes.connections}
        deliver_all(scene, dispatcher, receiver, dispatcher.job(items=max(scene.sizes.warm_up, hosts), **shape))
        return throughput(scene, dispatcher, receiver, dispatcher.job(seconds=scene.sizes.seconds, **shape))


def _fanout(scene: Scene) -> Figures:
    with receiving(scene.folder) as receiver, serving(scene.folder) as dispatcher:
        dispatcher.subscribe([f"{receiver.origins[0]}/s/{index}" for index in range(scene.sizes.subscribers)])
        shape: dict[str, Any] = {"kind": "event", "connections": PUBLISHERS}
        deliver_all(scene, dispatcher, receiver, dispatcher.job(items=PUBLISHERS, **shape))
        return throughput(scene, dispatcher, receiver, dispatcher.job(seconds=scene.sizes.seconds, **shape))


CASES = (
    Case(
        name="single",
        about="POST /tasks, one task a request, closed loop, one endpoint",
        contenders=(Contender(name=OURS, run=_single), CEILING, HTTPX, AIOHTTP),
    ),
    Case(
        name="batch",
        about="POST /tasks/batch, 20 tasks a request, closed loop, one endpoint",
        contenders=(Contender(name=OURS, run=_batch), CEILING),
    ),
    Case(
        name="fanout",
        about="POST /events, each for 50 subscriptions, closed loop",
        contenders=(Contender(name=OURS, run=_fanout), CEILING),
    ),
    Case(
        name="endpoints",
        about="POST /tasks, one task a request, to many endpoints in turn",
        contenders=(Contender(name=OURS, run=_endpoints), CEILING),
    ),
    Case(
        name="tls",
        about="POST /tasks, one task a request, delivered over TLS",
        contenders=(Contender(name=OURS, run=_tls), TLS_CEILING),
    ),
)
