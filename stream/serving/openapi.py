"""The description of the HTTP service: OpenAPI, and the page that shows it."""

import functools
import html
from typing import Any

import msgspec

from eex.stream.live.answers import Answer, Refusal
from eex.stream.serving.settings import Settings

VERSION = "1"


class Problem(msgspec.Struct):
    """What is wrong, in one line."""

    error: str


class Answers(msgspec.Struct):
    """Answers to the images of a multipart body, in their order."""

    answers: list[Answer | Refusal | Problem]


REASONS = {
    "400": "Something in the request is wrong.",
    "401": "The token is missing or wrong.",
    "403": "A page from elsewhere asked.",
    "404": "There is no such stream, frame or path.",
    "405": "The path does not take this method.",
    "408": "The body did not arrive in time.",
    "409": "A newer frame of the stream replaced this one.",
    "413": "The body or the image is too large.",
    "421": "The service is not reached under this name.",
    "422": "The body is no image.",
    "429": "Too many requests, frames that wait, or streams; try again later.",
    "500": "What came cannot be written to the disk, or eex has a fault.",
    "503": "The service is stopping, or overloaded.",
}
COMMON = frozenset({"401", "403", "405", "421", "429", "500", "503"})
"""Statuses that all paths can answer with, whatever they do."""


@functools.cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    from eex.stream.serving.app import Label

    kinds = (Answer, Refusal, Settings, Label, Problem)
    _, components = msgspec.json.schema_components(kinds, ref_template=REFERENCE)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "eex",
            "version": VERSION,
            "description": "Early-exit image classification: each frame is answered at the exit where it should stop.",
        },
        "paths": PATHS,
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}, {}],
    }


def _operation(
    summary: str, ok: Any, *, body: Any = None, given: Any = (), errors: str = "", never: str = "", kind: str = ""
) -> Any:
    """What a method of a path does: its successful answer of some media type, and the statuses of its errors.

    These are the common ones as well, but for one that can never come.
    """
    content = {kind or "application/json": {"schema": ok}}
    responses: dict[str, Any] = {"200": {"description": "OK", "content": content}}
    for status in sorted(COMMON - {never} | set(errors.split())):
        responses[status] = {"description": REASONS[status], "content": {"application/json": {"schema": PROBLEM}}}
    described: dict[str, Any] = {"summary": summary, "responses": responses}
    if given:
        described["parameters"] = list(given)
    if body is not None:
        described["requestBody"] = {"required": True, "content": body}
    return described


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


REFERENCE = "#/components/schemas/{name}"
ANSWER, REFUSAL, SETTINGS, LABEL, PROBLEM = (
    {"$ref": REFERENCE.format(name=name)} for name in ("Answer", "Refusal", "Settings", "Label", "Problem")
)
ANSWERS = {
    "type": "object",
    "properties": {"answers": {"type": "array", "items": {"anyOf": [ANSWER, REFUSAL, PROBLEM]}}},
}
ANYTHING = {"type": "object"}
IMAGE = {"type": "string", "format": "binary"}
STREAM = _parameter("stream", "Name of the stream: 1 to 64 letters, digits, '_', '-' and '.'. Default: default.")
ONE = [
    STREAM,
    _parameter("name", "Of the image, for whoever reads the answer."),
    _parameter("label", "True class, if it is known, for the accuracy; no policy sees it."),
]
IMAGES = {
    **{f"image/{kind}": {"schema": IMAGE} for kind in ("jpeg", "png", "webp")},
    "multipart/form-data": {"schema": {"type": "object", "additionalProperties": IMAGE}},
}
PATHS: dict[str, dict[str, Any]] = {
    "/v1/answer": {
        "post": _operation(
            "Answer an image, or several in a multipart body.",
            {"anyOf": [ANSWER, ANSWERS]},
            body=IMAGES,
            given=ONE,
            errors="400 408 409 413 422",
        )
    },
    "/v1/frames": {
        "get": _operation(
            "A WebSocket: each binary message is an image; answers and refusals come as text, in JSON, as they are "
            "known.",
            {"anyOf": [ANSWER, REFUSAL, PROBLEM]},
            given=[STREAM],
            errors="400 404",
            never="405",
        )
    },
    "/v1/streams": {"get": _operation("What was done so far, with a row per stream.", ANYTHING)},
    "/v1/policy": {
        "get": _operation(
            "What the policy of a stream has learned: thresholds, and the curve or the arms behind them.",
            ANYTHING,
            given=[STREAM],
            errors="404",
        )
    },
    "/v1/settings": {
        "get": _operation(
            "The settings of a stream; null is what the session has.", SETTINGS, given=[STREAM], errors="400"
        ),
        "put": _operation(
            "Change settings of a stream, from its next frame on.",
            SETTINGS,
            body={"application/json": {"schema": SETTINGS}},
            given=[STREAM],
            errors="400 408 413",
        ),
    },
    "/v1/labels": {
        "post": _operation(
            "Give the true label of an answered frame.",
            {"type": "object", "properties": {"correct": {"type": "boolean"}}},
            body={"application/json": {"schema": LABEL}},
            errors="400 404 408 413",
        )
    },
    "/v1/live": {
        "get": _operation(
            "Server-sent events, one per second: what the live page shows.",
            {"type": "string"},
            given=[STREAM],
            kind="text/event-stream",
        )
    },
    "/healthz": {"get": _operation("Whether the session is well.", ANYTHING, never="401")},
    "/readyz": {"get": _operation("Whether frames are taken now.", ANYTHING, never="401")},
    "/metrics": {"get": _operation("Metrics for Prometheus.", {"type": "string"}, kind="text/plain")},
}
