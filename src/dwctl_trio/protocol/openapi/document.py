"""The document itself: ``render_document`` puts routes, bodies and answers together.

Source: OpenAPI Specification 3.1.1.
"""

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from dwctl_trio.protocol.openapi.answers import answer_schemas
from dwctl_trio.protocol.openapi.bodies import body_schemas
from dwctl_trio.protocol.openapi.operations import JSON, OPERATIONS, PATH_PARAMETERS, Operation, Parameter
from dwctl_trio.protocol.openapi.schema import STRING, Schema, ref

_HEADERS: Mapping[str, tuple[Schema, str]] = {
    "x-request-id": (STRING, "The client's own if it sent a plain one; stands in the server's log."),
    "x-response-id": (STRING, "The response that the answer is about, if there is a row of it."),
    "idempotent-replayed": ({"type": "string", "const": "true"}, "The answer is an earlier request's."),
    "retry-after": ({"type": "string", "pattern": "^[0-9]+$"}, "Seconds, where somebody knows when to try again."),
    "retry-after-ms": ({"type": "string", "pattern": "^[0-9]+$"}, "The same in milliseconds."),
    "x-should-retry": ({"type": "string", "const": "false"}, "The same request can never succeed."),
    "x-ratelimit-limit-requests": (STRING, "Requests a minute, where the caller has a rate."),
    "x-ratelimit-remaining-requests": (STRING, "What is left of them."),
    "x-ratelimit-reset-requests": (STRING, "When all of them are there again, as in `1.5s`."),
    "x-ratelimit-limit-tokens": (STRING, "Tokens a minute, where the caller has a rate."),
    "x-ratelimit-remaining-tokens": (STRING, "What is left of them."),
    "x-ratelimit-reset-tokens": (STRING, "When all of them are there again, as in `1.5s`."),
    "etag": (STRING, "Of these very bytes; send it as `If-None-Match`."),
}
_ALWAYS = ("x-request-id",)
_RETRIES = ("retry-after", "retry-after-ms", "x-should-retry")
_RETRIED = frozenset({409, 429, 500, 502, 503, 504})
_RATES = tuple(name for name in _HEADERS if name.startswith("x-ratelimit-"))
_KEY = "apiKey"
_CREATES, _RESPONSE_ID = "createResponse", "response_id"
"""The operation whose answer says what to put into the path of others."""


def render_document(version: str) -> dict[str, Any]:
    """The document; the same for every process of a release, *version*, whatever its configuration."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = _render_operation(operation)
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "dwctl-trio",
            "version": version,
            "description": "The Responses API and what stands around it. Unknown names in a request are refused.",
        },
        "servers": [{"url": "/"}],
        "security": [{_KEY: []}],
        "paths": paths,
        "components": {
            "securitySchemes": {_KEY: {"type": "http", "scheme": "bearer"}},
            "headers": {
                name: {"schema": schema, "description": said, "required": name in _ALWAYS}
                for name, (schema, said) in _HEADERS.items()
            },
            "responses": {_error_name(status): _render_error(status) for status in _error_statuses()},
            "schemas": answer_schemas() | body_schemas(),
        },
    }


def _render_operation(operation: Operation) -> dict[str, Any]:
    """An operation without anything that it does not have."""
    answers = {HTTPStatus.OK: operation.answers, **operation.other_answers}
    responses = {str(int(status)): _render_answer(operation, status, bodies) for status, bodies in answers.items()}
    errors = {str(status): {"$ref": f"#/components/responses/{_error_name(status)}"} for status in operation.errors}
    rendered: dict[str, Any] = {"operationId": operation.name, "summary": operation.summary}
    parameters = [*_path_parameters(operation.path), *map(_render_parameter, operation.parameters)]
    if parameters:
        rendered["parameters"] = parameters
    if operation.body is not None:
        rendered["requestBody"] = {"required": True, "content": {JSON: {"schema": operation.body}}}
    if operation.is_public:
        rendered["security"] = []
    return rendered | {"responses": dict(sorted((responses | errors).items()))}


def _render_answer(operation: Operation, status: int, bodies: Mapping[str, Schema]) -> dict[str, Any]:
    """An answer that is no error."""
    own = operation.headers if status == HTTPStatus.OK else ()
    names = (*_ALWAYS, *own, *_rates(operation))
    rendered: dict[str, Any] = {"description": HTTPStatus(status).phrase, "headers": _headers(names)}
    if bodies:
        rendered["content"] = {kind: {"schema": schema} for kind, schema in bodies.items()}
    if operation.name == _CREATES and status == HTTPStatus.OK:
        rendered["links"] = {
            other.name: {"operationId": other.name, "parameters": {_RESPONSE_ID: "$response.body#/id"}}
            for other in OPERATIONS
            if f"{{{_RESPONSE_ID}}}" in other.path
        }
    return rendered


def _rates(operation: Operation) -> tuple[str, ...]:
    """The headers of what counts against a caller's rates."""
    return _RATES if HTTPStatus.TOO_MANY_REQUESTS in operation.errors else ()


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"{(\w+)}", path):
        schema, meaning = PATH_PARAMETERS[name]
        yield {"name": name, "in": "path", "required": True, "schema": schema, "description": meaning}


def _render_parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "schema": parameter.schema,
        "description": parameter.meaning,
    }


def _error_statuses() -> list[int]:
    return sorted({status for operation in OPERATIONS for status in operation.errors})


def _error_name(status: int) -> str:
    return f"Error{status}"


def _render_error(status: int) -> dict[str, Any]:
    """An answer with the one error body; it may come from before the route was known."""
    repeats = _RETRIES if status in _RETRIED else ()
    names = (*_ALWAYS, "x-response-id", *repeats, *(_RATES if status == HTTPStatus.TOO_MANY_REQUESTS else ()))
    return {
        "description": HTTPStatus(status).phrase,
        "headers": _headers(names),
        "content": {JSON: {"schema": ref("Error")}},
    }


def _headers(names: tuple[str, ...]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
