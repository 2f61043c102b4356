"""The pages on errors, states and events."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Any

import msgspec
from docs.generator.markdown import code, table
from docs.generator.sources import first_sentence, member_docs

from dwctl_trio.domain import errors
from dwctl_trio.domain.errors import DwctlError
from dwctl_trio.domain.event_rules import Rule
from dwctl_trio.domain.events import Event
from dwctl_trio.domain.failures import describe_failure
from dwctl_trio.domain.lifecycle import (
    LEASED_STATES,
    REQUIRED_COLUMNS,
    ROW_MOVES,
    STEP_MOVES,
    TERMINAL_STATES,
    Change,
    RowState,
    wire_status,
)
from dwctl_trio.domain.rejections import Rejection, RejectionReason
from dwctl_trio.domain.response import ErrorCode, ErrorType, ResponseStatus
from dwctl_trio.domain.steps import StepState
from dwctl_trio.protocol.error_body import http_error
from dwctl_trio.protocol.event_samples import sample_events
from dwctl_trio.protocol.event_stream import SUB_AGENT_TYPE, render_event
from dwctl_trio.protocol.extras import EXTRA_EVENTS, EXTRA_FIELDS
from dwctl_trio.protocol.parameters import SUB_AGENTS

_UPSTREAM_STATUSES = (None, 400, 401, 404, 408, 413, 422, 429, 500, 503, 504)
_TOOL_FAILURES = {
    ErrorType.TOOL_NOT_FOUND: "names a tool that there is not, or that `tool_choice` does not allow",
    ErrorType.TOOL_ARGUMENTS_INVALID: "was not made: its arguments are too long, or not what the schema asks for",
    ErrorType.TOOL_TIMEOUT: "did not come to an end within the tool's `timeout_s`",
    ErrorType.EXECUTOR_ERROR: "reached nobody, or got an error or no text; an agent gave no answer",
    ErrorType.MAX_DEPTH_EXCEEDED: "was not made: agents would have called agents deeper than `limits.depth`",
    ErrorType.STEP_ABANDONED: "was interrupted by a crash, and its tool may not be called twice",
}
"""The kinds that a failed tool step can have."""


def errors_page() -> Iterable[str]:
    """Every error, as its raiser, its client and its operator see it."""
    yield "# Errors"
    yield ""
    yield 'Every error over HTTP is `{"error": {"message", "type", "param", "code"}}`, all four keys always.'
    yield (
        "A failure after the HTTP head went out is a `response.failed` event, whose response carries "
        "`error.code` and `error.message` and the output so far."
    )
    yield "`retry-after` (seconds) and `retry-after-ms` are sent where somebody knows when trying again makes sense."
    yield ""
    yield "## The tree"
    yield ""
    yield "```"
    yield from (inspect.getdoc(errors) or "").split("\n\n")[1].splitlines()
    yield "```"
    yield ""
    yield "## What a client gets"
    yield ""
    yield from table(("error", "status", "`error.type`", "`error.code`", "meaning"), map(_error_row, _error_kinds()))
    yield ""
    yield "`InvalidRequest` carries a code and a status of its own; those in the table are its defaults."
    yield "`ToolFailed` is not among them: it ends a call and not the response."
    yield ""
    yield "## What becomes of a tool's failure"
    yield ""
    yield (
        "The model reads it as the result of its call, and the response goes on. The client sees the `mcp_call` item "
        "as `failed`, with the message in its `error`; the kind is in the step, at `GET /v1/responses/{id}/steps`."
    )
    yield ""
    yield from table(("kind", "the call"), ((code(kind.value), meaning) for kind, meaning in _TOOL_FAILURES.items()))
    yield ""
    yield "## What becomes of an upstream's status"
    yield ""
    yield "No word of the upstream's own passes through; `none` is an error in the stream or on the way."
    yield ""
    rows = [_upstream_row(status) for status in _UPSTREAM_STATUSES]
    yield from table(("upstream says", "status", "`error.type`", "`error.code`", "kept in row and log"), rows)
    yield ""
    yield (
        "What the upstream says is wrong with the request, in its error's code or words, goes before such a status "
        "if that is below 500 and not 401, 402, 404 or 429; `response.error` has OpenAI's nearest code."
    )
    yield ""
    yield from table(("what is wrong", "status", "`error.code`", "`error.param`"), map(_rejection_row, _REASONS))
    yield ""
    yield "## Kinds of failure"
    yield ""
    yield "A failed response has a kind for its operator, in the row and the log, and a code for its client."
    yield f"Kinds: {', '.join(code(kind.value) for kind in ErrorType)}."
    yield (
        f"Codes: {', '.join(code(kind.value) for kind in ErrorCode)}; these are OpenAI's own, and its SDKs "
        f"know no others."
    )


def _error_kinds() -> Iterator[type[DwctlError]]:
    """All that a client may meet; a tool's failure is the model's to read."""
    for value in vars(errors).values():
        if isinstance(value, type) and issubclass(value, DwctlError) and value not in {DwctlError, errors.ToolFailed}:
            yield value


def _make(kind: type[DwctlError]) -> DwctlError:
    return kind("…", retry_after_s=1.0) if kind in {errors.LimitExceeded, errors.Overloaded} else kind("…")


def _error_row(kind: type[DwctlError]) -> Iterator[str]:
    answer = http_error(_make(kind))
    body = msgspec.json.decode(answer.body)["error"]
    yield from (code(kind.__name__), str(answer.status), code(body["type"]), code(body["code"]), first_sentence(kind))


def _upstream_row(status: int | None) -> tuple[str, ...]:
    error = errors.UpstreamRejected("…", status=status)
    answer, failure = http_error(error), describe_failure(error)
    body = msgspec.json.decode(answer.body)["error"]
    shown = "none" if status is None else str(status)
    return shown, str(answer.status), code(body["type"]), code(body["code"]), code(failure.error.type.value)


_REASONS: tuple[RejectionReason | ErrorCode, ...] = (*RejectionReason, ErrorCode.INVALID_IMAGE)


def _rejection_row(reason: RejectionReason | ErrorCode) -> tuple[str, ...]:
    rejection = Rejection(reason=reason, param="temperature" if reason is RejectionReason.PARAMETER else None)
    answer = http_error(errors.UpstreamRejected("…", status=400, rejection=rejection))
    body = msgspec.json.decode(answer.body)["error"]
    if isinstance(reason, ErrorCode):
        meaning = "An image cannot be read; the code is any of OpenAI's for images, whichever the upstream gave."
    else:
        meaning = member_docs(RejectionReason)[reason.name]
    param = "the parameter's name" if reason is RejectionReason.PARAMETER else code(body["param"])
    return meaning, str(answer.status), code(body["code"]), param


def states_page() -> Iterable[str]:
    """Rows and steps: states, moves, and the columns that a state needs."""
    changes = member_docs(Change)
    yield "# States"
    yield ""
    yield (
        "The tables are `domain/lifecycle.py`; the CHECK constraints of the database say the same, and a "
        "test compares the two."
    )
    yield "Nothing leaves a terminal state but deletion and retention."
    yield "Warm rows begin as `processing`; `pending` and `claimed` belong to [the queue](../explanation/queue.md)."
    yield ""
    yield "## A row of `requests`"
    yield ""
    yield from _diagram(ROW_MOVES)
    yield ""
    yield from table(
        ("change", "from", "to", "meaning"),
        [
            (
                code(change),
                ", ".join(code(state) for state, moves in ROW_MOVES.items() if change in moves),
                code(_target(change)),
                changes[change.name],
            )
            for change in Change
        ],
    )
    yield ""
    yield "## Columns that a state cannot be without"
    yield ""
    yield from table(
        ("state", "on the wire", "leased", "terminal", "columns"),
        [
            (
                code(state),
                code(wire_status(state))
                + (f" or {code(ResponseStatus.INCOMPLETE)}" if state is RowState.COMPLETED else ""),
                "yes" if state in LEASED_STATES else "no",
                "yes" if state in TERMINAL_STATES else "no",
                ", ".join(code(column) for column in sorted(REQUIRED_COLUMNS[state])) or "none",
            )
            for state in RowState
        ],
    )
    yield ""
    yield "## A step of `response_steps`"
    yield ""
    yield from step_diagram()


def step_diagram() -> Iterator[str]:
    """The states of a step."""
    yield from _diagram(
        {state: {after: after for after in sorted(moves)} for state, moves in STEP_MOVES.items()}, StepState.PENDING
    )


def queued_row_diagram() -> Iterator[str]:
    """The states of a row that begins in the queue."""
    yield from (line for line in _diagram(ROW_MOVES) if not line.endswith(": warm"))


def _target(change: Change) -> RowState:
    (target,) = {moves[change] for moves in ROW_MOVES.values() if change in moves}
    return target


def _diagram(moves: Mapping[Any, Mapping[Any, Any]], first: StrEnum = RowState.PENDING) -> Iterator[str]:
    """A Mermaid state diagram; a move that is named like its target needs no label."""
    yield "```mermaid"
    yield "stateDiagram-v2"
    yield f"    [*] --> {first}"
    if first is RowState.PENDING:
        yield f"    [*] --> {RowState.PROCESSING}: warm"
    for state, targets in moves.items():
        for change, after in targets.items():
            yield f"    {state} --> {after}" + ("" if change == after else f": {change}")
    for state, targets in moves.items():
        if not targets:
            yield f"    {state} --> [*]"
    yield "```"


def events_page() -> Iterable[str]:
    """Every event: its fields, and the rules of their order."""
    yield "# Events of a stream"
    yield ""
    yield (
        "A stream is `text/event-stream`: for each event one block with `id:`, `event:` and one `data:` "
        "line, and at the end `data: [DONE]`."
    )
    yield (
        "`event:` equals `type` in the data, and `id:` equals `sequence_number`, which counts 0, 1, 2, … without gaps."
    )
    yield "While nothing happens, a comment (`: ping`) keeps the connection alive."
    yield ""
    yield "## The events"
    yield ""
    yield "All have `type` and `sequence_number`; the names and fields are OpenAI's."
    yield (
        f"One is ours: {code(SUB_AGENT_TYPE)} holds in `event` what a sub-agent does, an event of an item without a "
        f"number, and is sent to those only who ask for it by {code(SUB_AGENTS)} in `include`."
    )
    yield ""
    yield from table(("`type`", "fields", "meaning"), map(_event_row, sample_events()))
    yield ""
    yield "## What is ours"
    yield ""
    yield "What goes beyond the types of OpenAI's SDK; tests hold every event to the lists of `protocol/extras.py`."
    yield ""
    yield from table(("in", "field", "why"), _extra_rows())
    yield ""
    yield "## The rules"
    yield ""
    yield "`domain/event_grammar.py` checks these on every stream of the test suite."
    yield ""
    docs = member_docs(Rule)
    yield from table(("rule", "holds"), [(code(rule), docs[rule.name]) for rule in Rule])


def _event_row(event: Event) -> tuple[str, str, str]:
    wire, rendered = render_event(event)
    return code(wire), ", ".join(code(name) for name in rendered), first_sentence(type(event))


def _extra_rows() -> Iterator[tuple[str, str, str]]:
    for kind, fields in EXTRA_FIELDS.items():
        yield from ((code(kind), code(name), why) for name, why in fields.items())
    for kind, why in EXTRA_EVENTS.items():
        yield code(kind), "the whole event", why
