"""``/v1/responses``: create, read with or without its steps, stream again, cancel, delete."""

from uuid import uuid4

from quart import Response as HttpResponse
from quart import request
from quart_trio import QuartTrio

from dwctl_trio.domain.routing import Path, choose_path, refuse_unreadable
from dwctl_trio.engine.conversations import put_together
from dwctl_trio.engine.scope import run_inline_blocking, run_inline_streaming
from dwctl_trio.http.answers import answer_json, answer_response, answer_stream
from dwctl_trio.http.api import Api, refuse_unknown_includes
from dwctl_trio.http.connection import request_nursery
from dwctl_trio.http.following import answer_events, read_wanted_stream
from dwctl_trio.http.idempotency import answer_once, read_idempotency_key
from dwctl_trio.http.queued import answer_queued
from dwctl_trio.http.stored import cancel_stored, delete_stored, parse_id, read_stored, show
from dwctl_trio.http.tracing import current_trace
from dwctl_trio.ports import NewResponse
from dwctl_trio.protocol import json
from dwctl_trio.protocol.step_list import render_steps


def add_responses_routes(app: QuartTrio, api: Api) -> None:
    """Put the views on *app*."""
    services = api.services

    @app.post("/v1/responses")
    async def create_response() -> HttpResponse:
        caller = await api.find_caller()
        api.admit(caller)
        body = await api.read_json()
        wanted = api.parse_request(body)
        refuse_unreadable(wanted)
        path = choose_path(wanted)
        new = NewResponse(
            response_id=uuid4(),
            owner=caller.owner,
            key_prefix=caller.key_prefix,
            request=wanted,
            route=api.find_route(wanted.model),
            first_step_id=uuid4(),
            trace=current_trace(),
            idempotency=read_idempotency_key(body),
            tools=api.find_tools(wanted),
        )
        if path not in {Path.WARM_STREAM, Path.WARM_BLOCKING}:
            return await answer_queued(api, new, path)
        if new.idempotency is not None:
            return await answer_once(api, new)
        new = await put_together(services, new, api.hold)
        if path is Path.WARM_STREAM:
            return answer_stream(api, await run_inline_streaming(services, new, request_nursery()))
        return answer_response(await run_inline_blocking(services, new, request_nursery()))

    @app.get("/v1/responses/<response_id>")
    async def read_response(response_id: str) -> HttpResponse:
        caller = await api.find_caller()
        refuse_unknown_includes()
        wanted = read_wanted_stream()
        if wanted is not None and request.method != "HEAD":  # which wants no body
            api.admit(caller)
            return await answer_events(api, parse_id(response_id), caller.owner, wanted)
        stored = await read_stored(services, parse_id(response_id), caller.owner)
        return answer_json(await show(services, stored, caller.owner))

    @app.get("/v1/responses/<response_id>/steps")
    async def read_steps(response_id: str) -> HttpResponse:
        caller = await api.find_caller()
        parsed = parse_id(response_id)
        steps = await services.store.read_chain(parsed, caller.owner)
        if not steps:  # it waits in the queue, or it is not there
            await read_stored(services, parsed, caller.owner)
        return answer_json(json.encode(render_steps(steps)))

    @app.post("/v1/responses/<response_id>/cancel")
    async def cancel_response(response_id: str) -> HttpResponse:
        """OpenAI cancels background responses only; here any response, and one that has ended stays as it is."""
        caller = await api.find_caller()
        stored = await cancel_stored(services, parse_id(response_id), caller.owner)
        return answer_json(await show(services, stored, caller.owner))

    @app.delete("/v1/responses/<response_id>")
    async def delete_response(response_id: str) -> HttpResponse:
        caller = await api.find_caller()
        await delete_stored(services, parse_id(response_id), caller.owner)
        return answer_json(json.encode({"id": response_id, "object": "response", "deleted": True}))
