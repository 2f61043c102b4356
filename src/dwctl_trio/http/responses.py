"""``/v1/responses``: create, read with or without its steps, delete."""

from uuid import UUID, uuid4

from quart import Response as HttpResponse
from quart import request
from quart_trio import QuartTrio

from dwctl_trio.domain import ids
from dwctl_trio.domain.assembly import assemble
from dwctl_trio.domain.errors import InvalidRequest, NotFound
from dwctl_trio.domain.lifecycle import RowState, wire_status
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import Cancelled, Failed, Response
from dwctl_trio.domain.routing import Path, choose_path
from dwctl_trio.domain.steps import Chain
from dwctl_trio.engine.scope import run_inline_blocking, run_inline_streaming
from dwctl_trio.http.answers import answer_json, answer_response, answer_stream
from dwctl_trio.http.api import Api
from dwctl_trio.http.connection import request_nursery
from dwctl_trio.http.idempotency import answer_once, read_idempotency_key
from dwctl_trio.http.tracing import current_trace
from dwctl_trio.ports import NewResponse, StoredResponse
from dwctl_trio.protocol import json
from dwctl_trio.protocol.request_body import parse_request
from dwctl_trio.protocol.response_object import render_response
from dwctl_trio.protocol.step_list import render_steps

_FLAGS = {"true": True, "1": True, "false": False, "0": False}
"""As clients write booleans in a query."""


def add_responses_routes(app: QuartTrio, api: Api) -> None:
    """Put the views on *app*."""

    @app.post("/v1/responses")
    async def create_response() -> HttpResponse:
        caller = await api.find_caller()
        api.admit(caller)
        body = await api.read_json()
        wanted = parse_request(body, server_tools=api.services.catalog.keys())
        path = choose_path(wanted)
        if path not in {Path.WARM_STREAM, Path.WARM_BLOCKING}:
            raise _not_yet(wanted)
        route = api.find_route(wanted.model)
        new = NewResponse(
            response_id=uuid4(),
            owner=caller.owner,
            key_prefix=caller.key_prefix,
            request=wanted,
            route=route,
            first_step_id=uuid4(),
            trace=current_trace(),
            idempotency=read_idempotency_key(body),
            tools=api.find_tools(wanted),
        )
        if new.idempotency is not None:
            return await answer_once(api, new)
        if path is Path.WARM_STREAM:
            return answer_stream(api, await run_inline_streaming(api.services, new, request_nursery()))
        return answer_response(await run_inline_blocking(api.services, new, request_nursery()))

    @app.get("/v1/responses/<response_id>")
    async def read_response(response_id: str) -> HttpResponse:
        caller = await api.find_caller()
        if _wants_stream(request.args.get("stream")):
            raise InvalidRequest(
                "Unsupported parameter: 'stream' is not supported here yet; GET without it returns the response.",
                param="stream",
                code="unsupported_parameter",
            )
        stored = await api.services.store.read_response(_parse_id(response_id), caller.owner)
        if stored is None:
            raise _no_such(response_id)
        if stored.body is not None:
            return answer_json(stored.body)
        chain = await api.services.store.read_chain(stored.response_id, caller.owner)
        return answer_json(json.encode(render_response(_unfinished(stored, chain))))

    @app.get("/v1/responses/<response_id>/steps")
    async def read_steps(response_id: str) -> HttpResponse:
        caller = await api.find_caller()
        steps = await api.services.store.read_chain(_parse_id(response_id), caller.owner)
        if not steps:  # every response has its first
            raise _no_such(response_id)
        return answer_json(json.encode(render_steps(steps)))

    @app.delete("/v1/responses/<response_id>")
    async def delete_response(response_id: str) -> HttpResponse:
        caller = await api.find_caller()
        if not await api.services.store.delete_response(_parse_id(response_id), caller.owner):
            raise _no_such(response_id)
        return answer_json(json.encode({"id": response_id, "object": "response", "deleted": True}))


def _wants_stream(text: str | None) -> bool:
    """What ``stream`` in a query asks for; any other word is refused, for a guess would be wrong half of the time."""
    word = (text or "false").lower()
    if word not in _FLAGS:
        raise InvalidRequest(
            "Invalid value for 'stream': supported values are 'true' and 'false'.", param="stream", code="invalid_value"
        )
    return _FLAGS[word]


def _parse_id(text: str) -> UUID:
    parsed = ids.parse_response_id(text)
    if parsed is None:
        raise _no_such(text)
    return parsed


def _no_such(response_id: str) -> NotFound:
    shown = response_id if len(response_id) <= 64 and response_id.isprintable() else "…"  # noqa: PLR2004
    return NotFound(f"Response with id '{shown}' not found.")


def _not_yet(wanted: ResponseRequest) -> InvalidRequest:
    param = "background" if wanted.background else "service_tier"
    allowed = "false" if wanted.background else "'auto', 'default' or 'priority'"
    return InvalidRequest(
        f"Unsupported parameter: '{param}' must be {allowed}; this server has no queue yet.",
        param=param,
        code="unsupported_parameter",
    )


def _unfinished(stored: StoredResponse, chain: Chain) -> Response:
    """A response without a final body: still under way, or ended by somebody who had none to write.

    What its steps had come to by then is its output.
    """
    assert stored.request is not None, "a row has its body or its request"
    opening = Response(
        id=stored.response_id,
        created_at=stored.created_at,
        request=stored.request,
        status=wire_status(stored.state),
        tools=stored.tools,
    )
    match stored.state:
        case RowState.FAILED:
            assert stored.error is not None, "a failed row has an error"
            return assemble(opening, chain, Failed(error=stored.error), ended_at=0)
        case RowState.CANCELED:
            return assemble(opening, chain, Cancelled(), ended_at=0)
        case _:
            return opening
