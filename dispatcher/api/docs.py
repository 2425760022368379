"""`/docs`: the OpenAPI document as a plain page, without scripts and without anything from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import FastAPI
from starlette.responses import HTMLResponse

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1c2128 }
code { font-family: ui-monospace, monospace; font-size: .9em }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #d0d7de; text-transform: capitalize }
section { margin: 1.5rem 0 }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .3rem .8rem .3rem 0; border-top: 1px solid #eaeef2 }
.method { display: inline-block; min-width: 3.5rem; font-weight: 600 }
"""


def install(app: FastAPI) -> None:
    """Serve the page."""

    @app.get("/docs", include_in_schema=False)
    async def read_docs() -> HTMLResponse:
        return HTMLResponse(
            page(app.openapi()),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )


def page(document: dict[str, Any]) -> str:
    """The page for an OpenAPI document."""
    info = document["info"]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(info['title'])}</title>"
        f"<meta name=viewport content='width=device-width'><style>{_STYLE}</style>"
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
        f"<p>{escape(info['description'])} The whole contract is at <a href=/openapi.json>/openapi.json</a>.</p>"
        + "".join(_sections(document))
    )


def _sections(document: dict[str, Any]) -> Iterator[str]:
    by_tag: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append(
                _operation(path, method, operation, document["components"]["schemas"])
            )
    for tag, operations in by_tag.items():
        yield f"<h2>{escape(tag)}</h2>" + "".join(operations)


def _operation(path: str, method: str, operation: dict[str, Any], schemas: dict[str, Any]) -> str:
    statuses = ", ".join(operation["responses"])
    rows = "".join(_row(name, kind, text) for name, kind, text in _inputs(operation, schemas))
    table = f"<table><tr><th>field<th>type<th>{rows}</table>" if rows else ""
    return (
        f"<section><p><span class=method>{method.upper()}</span> <code>{escape(path)}</code><br>"
        f"{escape(operation['summary'])}. Answers {escape(statuses)}.</p>{table}</section>"
    )


def _inputs(operation: dict[str, Any], schemas: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    for parameter in operation.get("parameters", ()):
        yield parameter["name"], _kind(parameter["schema"]), parameter.get("description", "")
    content = operation.get("requestBody", {}).get("content", {}).get("application/json")
    if content:
        schema = schemas[content["schema"]["$ref"].rpartition("/")[2]]
        for name, field in schema["properties"].items():
            required = "required. " if name in schema.get("required", ()) else ""
            yield name, _kind(field), required + field.get("description", "")


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    options = schema.get("anyOf")
    if options:
        return " or ".join(_kind(option) for option in options)
    return str(schema.get("type", "any"))


def _row(name: str, kind: str, text: str) -> str:
    return f"<tr><td><code>{escape(name)}</code><td>{escape(kind)}<td>{escape(text)}"
