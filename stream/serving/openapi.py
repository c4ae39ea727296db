"""The description of the HTTP service: OpenAPI, and the page that shows it."""

import functools
import html
from typing import Any

import msgspec

from eex.stream.live.answers import Answer, Refusal

VERSION = "1"


class Problem(msgspec.Struct):
    """What is wrong, in one line."""

    error: str


class Answers(msgspec.Struct):
    """Answers to the images of a multipart body, in their order."""

    answers: list[Answer | Refusal | Problem]


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    from eex.stream.serving.app import Label, Settings

    kinds = (Answer, Refusal, Settings, Label, Problem)
    (answer, refusal, settings, label, problem), components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    answers = {
        "type": "object",
        "properties": {"answers": {"type": "array", "items": {"anyOf": [answer, refusal, problem]}}},
    }
    image = {"schema": {"type": "string", "format": "binary"}}
    stream = _parameter("stream", "Name of the stream: 1 to 64 letters, digits, '_', '-' and '.'. Default: default.")
    anything = {"type": "object"}

    def path(summary: str, ok: Any, *, body: Any = None, given: Any = (), errors: str = "", kind: str = "") -> Any:
        reasons = {
            "400": "Something in the request is wrong.",
            "401": "The token is missing or wrong.",
            "404": "There is no such stream or frame.",
            "408": "The body did not arrive in time.",
            "413": "The body or the image is too large.",
            "422": "The body is no image.",
            "429": "Too many requests, frames that wait, or streams; try again later.",
            "503": "The service is stopping, or overloaded.",
        }
        responses: dict[str, Any] = {
            "200": {"description": "OK", "content": {kind or "application/json": {"schema": ok}}}
        }
        for status in ("401", *errors.split()):
            content = {"application/json": {"schema": problem}}
            responses[status] = {"description": reasons[status], "content": content}
        described: dict[str, Any] = {"summary": summary, "responses": responses}
        if given:
            described["parameters"] = list(given)
        if body is not None:
            described["requestBody"] = {"required": True, "content": body}
        return described

    one = [
        stream,
        _parameter("name", "Of the image, for whoever reads the answer."),
        _parameter("label", "True class, if it is known, for the accuracy; no policy sees it."),
    ]
    images = {
        "image/jpeg": image,
        "image/png": image,
        "image/webp": image,
        "multipart/form-data": {
            "schema": {"type": "object", "additionalProperties": {"type": "string", "format": "binary"}}
        },
    }
    accepted = {"application/json": {"schema": settings}}
    paths = {
        "/v1/answer": {
            "post": path(
                "Answer an image, or several in a multipart body.",
                {"anyOf": [answer, answers]},
                body=images,
                given=one,
                errors="400 408 413 422 429 503",
            )
        },
        "/v1/frames": {
            "get": path(
                "A WebSocket: each binary message is an image; answers and refusals come as text, in JSON, as they are "
                "known.",
                {"anyOf": [answer, refusal, problem]},
                given=[stream],
                errors="400 429 503",
            )
        },
        "/v1/streams": {"get": path("What was done so far, with a row per stream.", anything)},
        "/v1/policy": {
            "get": path(
                "What the policy of a stream has learned: thresholds, and the curve or the arms behind them.",
                anything,
                given=[stream],
                errors="404",
            )
        },
        "/v1/settings": {
            "get": path(
                "The settings of a stream; null is what the session has.", settings, given=[stream], errors="400"
            ),
            "put": path(
                "Change settings of a stream, from its next frame on.",
                settings,
                body=accepted,
                given=[stream],
                errors="400 429 503",
            ),
        },
        "/v1/labels": {
            "post": path(
                "Give the true label of an answered frame.",
                {"type": "object", "properties": {"correct": {"type": "boolean"}}},
                body={"application/json": {"schema": label}},
                errors="400 404",
            )
        },
        "/v1/live": {
            "get": path(
                "Server-sent events, one per second: what the live page shows.",
                {"type": "string"},
                given=[stream],
                errors="503",
                kind="text/event-stream",
            )
        },
        "/healthz": {"get": path("Whether the session is well.", anything, errors="503")},
        "/readyz": {"get": path("Whether frames are taken now.", anything, errors="503")},
        "/metrics": {"get": path("Metrics for Prometheus.", {"type": "string"}, kind="text/plain")},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "eex",
            "version": VERSION,
            "description": "Early-exit image classification: each frame is answered at the exit where it should stop.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _parameter(name: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}


@functools.cache
def page() -> str:
    """The document as a page without scripts."""
    described, parts = document(), []
    for path, methods in described["paths"].items():
        for method, about in methods.items():
            rows = "".join(
                f"<tr><td><code>?{html.escape(p['name'])}</code></td><td>{html.escape(p['description'])}</td></tr>"
                for p in about.get("parameters", ())
            )
            body = about.get("requestBody", {}).get("content", {})
            taken = ", ".join(_kind(kind, what["schema"]) for kind, what in body.items())
            given = "".join(
                f"<tr><td>{status}</td><td>{html.escape(r['description'])} "
                f"{', '.join(_kind(kind, what['schema']) for kind, what in r['content'].items())}</td></tr>"
                for status, r in about["responses"].items()
            )
            parts.append(
                f"<section class=card><h2><code>{method.upper()} {html.escape(path)}</code></h2>"
                f"<p>{html.escape(about['summary'])}</p>"
                + (f"<h3>Parameters</h3><table>{rows}</table>" if rows else "")
                + (f"<h3>Body</h3><p>{taken}</p>" if taken else "")
                + f"<h3>Responses</h3><table>{given}</table></section>"
            )
    for name, schema in described["components"]["schemas"].items():
        required = set(schema.get("required", ()))
        rows = "".join(
            f"<tr><td><code>{html.escape(key)}</code>{'' if key in required else ' (optional)'}</td>"
            f"<td><code>{html.escape(_type(value))}</code></td></tr>"
            for key, value in schema.get("properties", {}).items()
        )
        about = html.escape(schema.get("description", "").partition("\n")[0])
        parts.append(f"<section class=card id={name}><h2>{name}</h2><p>{about}</p><table>{rows}</table></section>")
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<title>eex: the HTTP service</title><link rel=stylesheet href=page.css>"
        "<header><h1>eex: the HTTP service</h1><p>Also as <a href=openapi.json>OpenAPI</a>. "
        "Where the service has a token, send <code>Authorization: Bearer TOKEN</code>.</p></header>"
        f"<main class=docs>{''.join(parts)}</main></html>"
    )


def _kind(kind: str, schema: dict[str, Any]) -> str:
    return f"<code>{html.escape(kind)}</code> ({_linked(schema)})"


def _linked(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"<a href='#{name}'>{name}</a>"
    if "anyOf" in schema:
        return " or ".join(map(_linked, schema["anyOf"]))
    return html.escape(_type(schema))


def _type(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(map(str, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("format") or schema.get("const") or schema.get("type", "anything"))
