"""Every route of the server, as a table: what it takes, and every status that it answers with.

Rule: a route has one entry here; a test compares this table with the application's own routes.

Source: OpenAI API reference for the routes that are OpenAI's; docs/reference/http-api.md tells them in words.
"""

from collections.abc import Mapping

import attrs

from dwctl_trio.domain.idempotency import IDEMPOTENCY_KEY, KEY_CHARACTERS_MAX
from dwctl_trio.protocol.item_list import LIMIT_DEFAULT, LIMIT_MAX, ORDERS
from dwctl_trio.protocol.openapi.schema import COUNT, FLAG, STRING, Schema, array, choice, integer, ref, text
from dwctl_trio.protocol.parameters import INCLUDES, accepted

JSON = "application/json"
EVENT_STREAM = "text/event-stream"

_RESPONSE_ID = "`resp_` and a UUID; of a response of the caller's own."
_READING = (401, 500, 503)
_OWNED = (401, 404, 500, 503)
_STARTING = (400, 401, 404, 408, 413, 415, 429, 500, 502, 503, 504)
"""Statuses of what takes a body and calls a model."""


@attrs.frozen(kw_only=True)
class Parameter:
    """One parameter outside of the body."""

    name: str
    place: str
    """``path``, ``query`` or ``header``."""
    schema: Schema
    meaning: str


@attrs.frozen(kw_only=True)
class Operation:
    """One method of one route."""

    method: str
    """In small letters, as OpenAPI has it."""
    path: str
    """With its parameters in braces."""
    name: str
    """Unique; what generated clients call it."""
    summary: str
    answers: Mapping[str, Schema]
    """The body of a 200, by media type."""
    parameters: tuple[Parameter, ...] = ()
    """Those of the path are there without being listed."""
    body: Schema | None = None
    """Of the JSON that is sent; None: there is none."""
    errors: tuple[int, ...] = ()
    """Statuses with the one error body."""
    other_answers: Mapping[int, Mapping[str, Schema]] = {}
    """Statuses with a body of their own."""
    is_public: bool = False
    """Whether it needs no key."""
    headers: tuple[str, ...] = ()
    """Of a 200, besides those that all have."""
    is_ours: bool = False
    """Whether OpenAI has no such thing."""
    note: str = ""
    """How it differs from OpenAI's, as one or more sentences."""


_STREAM = Parameter(name="stream", place="query", schema=FLAG, meaning="Whether to tell its events.")
_KEY = Parameter(
    name=IDEMPOTENCY_KEY,
    place="header",
    schema=text(least=1, most=KEY_CHARACTERS_MAX, pattern="^[!-~]+$"),
    meaning="The same key and body make one response, however often they are sent.",
)
_INCLUDE = Parameter(
    name="include[]",
    place="query",
    schema=array(choice(accepted(INCLUDES))),
    meaning="Checked; all there is is shown anyway.",
)
_PAGE = (
    _INCLUDE,
    Parameter(name="limit", place="query", schema=integer(1, LIMIT_MAX), meaning=f"{LIMIT_DEFAULT} without it."),
    Parameter(name="order", place="query", schema=choice(ORDERS), meaning="By time; `desc` without it."),
    Parameter(name="after", place="query", schema=STRING, meaning="The id of the last one that you have."),
)
_QUEUE_HEADERS = ("x-response-id", "idempotent-replayed")

OPERATIONS = (
    Operation(
        method="post",
        path="/v1/responses",
        name="createResponse",
        summary="Create a response",
        parameters=(_KEY,),
        body=ref("CreateResponse"),
        answers={JSON: ref("Response"), EVENT_STREAM: ref("ResponseStreamEvent")},
        errors=(*_STARTING, 409),
        headers=_QUEUE_HEADERS,
    ),
    Operation(
        method="get",
        path="/v1/responses/{response_id}",
        name="readResponse",
        summary="Read a response, or have its events told again",
        note="OpenAI tells the events of background responses for five minutes; here it is any that are kept.",
        parameters=(
            _STREAM,
            Parameter(
                name="starting_after",
                place="query",
                schema=COUNT | {"maximum": 10**18 - 1},
                meaning="The `sequence_number` of the last event that you have; needs `stream=true`.",
            ),
            Parameter(name="include_obfuscation", place="query", schema=FLAG, meaning="Nothing is obfuscated."),
            _INCLUDE,
            Parameter(
                name="Last-Event-ID",
                place="header",
                schema=COUNT | {"maximum": 10**18 - 1},
                meaning="The same as `starting_after`, which counts if both are there; looked at with `stream=true`.",
            ),
        ),
        answers={JSON: ref("Response"), EVENT_STREAM: ref("ResponseStreamEvent")},
        errors=(400, *_OWNED, 429),
        headers=("x-response-id",),
    ),
    Operation(
        method="delete",
        path="/v1/responses/{response_id}",
        name="deleteResponse",
        summary="Delete a response, after cancelling it if it is under way",
        note="Its steps and events go with it.",
        answers={JSON: ref("DeletedResponse")},
        errors=(*_OWNED, 409),
    ),
    Operation(
        method="post",
        path="/v1/responses/{response_id}/cancel",
        name="cancelResponse",
        summary="Cancel a response; one that has ended stays as it is",
        note="OpenAI cancels background responses only.",
        answers={JSON: ref("Response")},
        errors=_OWNED,
    ),
    Operation(
        method="get",
        path="/v1/responses/{response_id}/steps",
        name="listSteps",
        summary="List the model calls and tool calls behind a response",
        is_ours=True,
        answers={JSON: ref("StepList")},
        errors=_OWNED,
    ),
    Operation(
        method="get",
        path="/v1/responses/{response_id}/input_items",
        name="listInputItems",
        summary="List what a response was generated from: the conversation so far, and its own input",
        parameters=_PAGE,
        answers={JSON: ref("InputItemList")},
        errors=(400, *_OWNED),
    ),
    Operation(
        method="post",
        path="/v1/responses/input_tokens",
        name="countInputTokens",
        summary="Count the tokens that the input of a response would have",
        parameters=(_KEY,),
        body=ref("CountInputTokens"),
        answers={JSON: ref("InputTokens")},
        errors=(*_STARTING, 409),
        note=(
            "The upstream is asked with one token to answer, for nobody else knows. `model` is needed, as it names the "
            "upstream, and so is `input` or `previous_response_id`: without one it is a 400, though OpenAI's types "
            "require none. "
            "`personality` is an unknown parameter."
        ),
    ),
    Operation(
        method="get",
        path="/v1/responses",
        name="listResponses",
        summary="List the caller's responses",
        parameters=_PAGE,
        answers={JSON: ref("ResponseList")},
        errors=(400, *_READING),
        is_ours=True,
    ),
    Operation(
        method="post",
        path="/v1/chat/completions",
        name="createChatCompletion",
        summary="Create a chat completion",
        note="Handed over as the upstream gives it, and metered; with `service_tier: flex` from the queue.",
        parameters=(_KEY,),
        body=ref("CreateChatCompletion"),
        answers={JSON: ref("ChatCompletion"), EVENT_STREAM: ref("ChatCompletionChunk")},
        errors=(*_STARTING, 409),
        headers=_QUEUE_HEADERS,
    ),
    Operation(
        method="post",
        path="/v1/completions",
        name="createCompletion",
        summary="Have a text completed",
        parameters=(_KEY,),
        body=ref("CreateCompletion"),
        answers={JSON: ref("Completion"), EVENT_STREAM: ref("CompletionChunk")},
        errors=(*_STARTING, 409),
        note="Handed over as the upstream gives it, and metered.",
    ),
    Operation(
        method="post",
        path="/v1/embeddings",
        name="createEmbeddings",
        summary="Have texts embedded",
        parameters=(_KEY,),
        body=ref("CreateEmbeddings"),
        answers={JSON: ref("Embeddings")},
        errors=(*_STARTING, 409),
        note="Handed over as the upstream gives it, and metered.",
    ),
    Operation(
        method="get",
        path="/v1/models",
        name="listModels",
        summary="List the models by name",
        answers={JSON: ref("ModelList")},
        errors=_READING,
    ),
    Operation(
        method="get",
        path="/v1/models/{name}",
        name="readModel",
        summary="Read one model",
        answers={JSON: ref("Model")},
        errors=_OWNED,
    ),
    Operation(
        method="get",
        path="/healthz",
        name="tellHealth",
        summary="Whether the process answers",
        answers={JSON: ref("Health")},
        is_public=True,
        is_ours=True,
    ),
    Operation(
        method="get",
        path="/readyz",
        name="tellReadiness",
        summary="Whether the database answers and the server takes work",
        answers={JSON: ref("Health")},
        other_answers={503: {JSON: ref("Health")}},
        is_public=True,
        is_ours=True,
    ),
    Operation(
        method="get",
        path="/metrics",
        name="tellMetrics",
        summary="What the process counts, for Prometheus",
        answers={"text/plain": STRING},
        is_public=True,
        is_ours=True,
    ),
    Operation(
        method="get",
        path="/openapi.json",
        name="readOpenapi",
        summary="This document",
        parameters=(
            Parameter(name="If-None-Match", place="header", schema=STRING, meaning="ETags of documents that you have."),
        ),
        answers={JSON: {"type": "object", "required": ["openapi", "info", "paths"]}},
        other_answers={304: {}},
        is_public=True,
        is_ours=True,
        headers=("etag",),
    ),
)
"""In the order of the reference."""

PATH_PARAMETERS: Mapping[str, tuple[Schema, str]] = {
    "response_id": (text(pattern="^resp_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"), _RESPONSE_ID),
    "name": (text(least=1, pattern="^[^/]+$"), "The name of a model."),
}
"""By their names in paths: what they look like, and what they are."""
