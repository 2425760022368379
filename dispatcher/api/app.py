"""The ASGI app: hot routes in front, FastAPI behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from starlette.types import Message, Receive, Scope, Send

from dispatcher.api import docs, failures, health, openapi, routes, shapes
from dispatcher.api.events import Publishing
from dispatcher.api.hot import Handler, Visit
from dispatcher.api.intake import Intake
from dispatcher.api.openapi import CALLBACK, documented
from dispatcher.api.problems import cut_off
from dispatcher.api.services import Services

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(services: Services, lifespan: Lifespan) -> Front:
    """The whole HTTP service over these services; `lifespan` runs what works behind it."""
    intake, publishing = Intake(services), Publishing(services)

    app = FastAPI(
        title="Webhook dispatcher",
        version=version("webhook-dispatcher"),
        description="Accepts tasks, delivers signed webhooks, and loses nothing it accepted.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
        redirect_slashes=False,
    )
    failures.install(app)
    app.add_api_route(
        "/tasks",
        intake.post_task,
        methods=["POST"],
        **documented(
            "Accept a task",
            shapes.TaskAccepted,
            tag="tasks",
            status=202,
            body=shapes.TaskRequest,
            idempotent=True,
            callbacks=CALLBACK,
        ),
    )
    app.add_api_route(
        "/tasks/batch",
        intake.post_batch,
        methods=["POST"],
        **documented(
            "Accept many tasks by one commit",
            shapes.BatchAccepted,
            tag="tasks",
            status=202,
            body=shapes.BatchRequest,
            idempotent=True,
            callbacks=CALLBACK,
        ),
    )
    app.add_api_route(
        "/events",
        publishing.post_event,
        methods=["POST"],
        **documented(
            "Publish an event",
            shapes.EventAccepted,
            tag="events",
            status=202,
            body=shapes.EventRequest,
            idempotent=True,
        ),
    )
    app.add_api_route(
        "/events/batch",
        publishing.post_batch,
        methods=["POST"],
        **documented(
            "Publish many events by one commit",
            shapes.EventBatchAccepted,
            tag="events",
            status=202,
            body=shapes.EventBatchRequest,
            idempotent=True,
        ),
    )
    app.include_router(routes.build(services))
    openapi.install(app)
    docs.install(app)
    hot = {
        "/tasks": intake.post_task,
        "/tasks/batch": intake.post_batch,
        "/events": publishing.post_event,
        "/events/batch": publishing.post_batch,
    }
    return Front(app, hot, together={"/tasks": intake.take})


def create_worker_app(services: Services, lifespan: Lifespan) -> Front:
    """What a worker answers: how it is, and nothing else."""
    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    failures.install(app)
    router = APIRouter()
    health.add_routes(router, services)
    app.include_router(router)
    return Front(app, {})


class Front:
    """Names the hot routes, which the server takes past the framework: matching, dependencies and middleware cost more
    than the rest. All else, it passes on."""

    def __init__(
        self, app: FastAPI, hot: Mapping[str, Handler], *, together: Mapping[str, Callable[[Visit], None]] | None = None
    ) -> None:
        self.app = app
        self._hot = hot
        self._together = together or {}

    def hot(self, method: str, path: str) -> Handler | None:
        """What handles this request past the framework."""
        return self._hot.get(path) if method == "POST" else None

    def together(self, path: str) -> Callable[[Visit], None] | None:
        """What takes requests of this hot route in rounds, if it is one of those."""
        return self._together.get(path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of the ASGI server."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def sending(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        # What is raised is not raised on: the server would log its text.
        try:
            await self.app(scope, receive, sending)
        except asyncio.CancelledError:
            # Only a stop does that, to what outlasts its grace.
            if has_begun:
                raise
            await failures.response_of(cut_off())(scope, receive, send)
        except Exception:  # noqa: BLE001, S110 - a request's fault was answered and logged
            pass
