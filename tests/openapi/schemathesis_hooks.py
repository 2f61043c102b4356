"""What schemathesis is told of this server when it runs: how our event streams read, and what a document cannot say.

It is loaded by the command, in a process of its own.
"""

import itertools
import json
from typing import Any

import schemathesis
from tests.openapi.rules import is_rule_between_fields

UNEXPECTED = {400, 405, 406, 408, 413, 414, 415, 422, 431}
"""Statuses that say that a request was not what it should be; who asks for what is not there gets others."""


_numbers = itertools.count()


@schemathesis.deserializer("text/event-stream")
def read_events(_context: schemathesis.DeserializationContext, response: schemathesis.Response) -> list[Any]:
    """The data of all events, of which the last must be the end."""
    lines = [line for line in response.content.decode().split("\n") if line.startswith("data: ")]
    *events, end = [line.removeprefix("data: ") for line in lines]
    assert end == "[DONE]", end
    return [json.loads(event) for event in events]


@schemathesis.check
def refused_for_a_reason(
    _context: schemathesis.CheckContext, response: schemathesis.Response, case: schemathesis.Case
) -> bool | None:
    """What the document allows is refused only for a rule between several fields."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code not in UNEXPECTED:
        return None
    message = response.json()["error"]["message"]
    assert is_rule_between_fields(message), f"refused, though it fits the document: {message}"
    return None


@schemathesis.hook
def before_call(_context: schemathesis.HookContext, case: schemathesis.Case, _kwargs: dict[str, Any]) -> None:
    """Let what fits the document get as far as it can.

    Each request gets an ``Idempotency-Key`` of its own, for two bodies under one key are a conflict and no more; and
    one that others are to follow is stored and gets JSON, for it is to be read, by links that lead out of JSON only.
    """
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    if case.headers and "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f"key-{next(_numbers)}"
    if case.meta.phase.name.name == "STATEFUL" and isinstance(case.body, dict):
        wanted = {"stream": False, "store": True}
        case.body.update({name: value for name, value in wanted.items() if name in case.body})
