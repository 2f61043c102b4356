"""Calls whose answers are handed over as they come: ``/v1/completions``, ``/v1/embeddings``, chat completions at once.

Rule 1: an answer is the upstream's own, but for the model, which has the name that the client used.
Rule 2: an error is ours, in the four-key body, also within a stream, where it comes before ``[DONE]``.
Rule 3: an ``Idempotency-Key`` keeps a call from being made twice; its answer is kept nowhere, and not given twice.
"""

from collections.abc import Callable
from typing import NoReturn
from uuid import uuid4

from quart import Response as HttpResponse
from quart_trio import QuartTrio

from dwctl_trio.domain.chat import ChatRequest
from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import IdempotencyKeyHeld
from dwctl_trio.domain.idempotency import IdempotencyKey, check_same_body, kept_nowhere, still_under_way
from dwctl_trio.domain.lifecycle import TERMINAL_STATES
from dwctl_trio.engine.proxied import answer_chat, stream_chat
from dwctl_trio.engine.state import Services
from dwctl_trio.http.answers import answer_json, answer_stream
from dwctl_trio.http.api import Api
from dwctl_trio.http.connection import request_nursery
from dwctl_trio.http.idempotency import read_idempotency_key
from dwctl_trio.http.tracing import current_trace
from dwctl_trio.ports import NewChat
from dwctl_trio.protocol.chat_body import parse_completion, parse_embeddings

_RETRY_AFTER_S = 1.0
"""While the first request with a key is under way: such a call takes seconds."""


def add_proxied_routes(app: QuartTrio, api: Api) -> None:
    """Put the views on *app*."""

    @app.post("/v1/completions")
    async def create_completion() -> HttpResponse:
        return await answer_call(api, await read_call(api, parse_completion))

    @app.post("/v1/embeddings")
    async def create_embeddings() -> HttpResponse:
        return await answer_call(api, await read_call(api, parse_embeddings))


async def read_call(api: Api, parse: Callable[[object], ChatRequest]) -> NewChat:
    """What the current request asks for, whose body *parse* reads, and which is admitted by then.

    A body that other endpoints would read as well is not the same with the same key there.

    Raises:
        DwctlError: It is not served.
    """
    caller = await api.find_caller()
    api.admit(caller)
    body = await api.read_json()
    wanted = parse(body)
    return NewChat(
        response_id=uuid4(),
        owner=caller.owner,
        key_prefix=caller.key_prefix,
        request=wanted,
        route=api.find_route(wanted.model),
        trace=current_trace(),
        idempotency=read_idempotency_key(body if wanted.surface is Surface.CHAT else [wanted.surface, body]),
    )


async def answer_call(api: Api, new: NewChat) -> HttpResponse:
    """Make the call while its client waits.

    Raises:
        ResponseRefused: It failed while nothing had been sent.
        IdempotencyConflict: Another request has its key.
    """
    try:
        if new.request.stream:
            return answer_stream(api, await stream_chat(api.services, new, request_nursery()))
        return answer_json(await answer_chat(api.services, new))
    except IdempotencyKeyHeld:
        assert new.idempotency is not None, "only a request with a key meets another's"
        await refuse_repeat(api.services, new.owner, new.idempotency)


async def refuse_repeat(services: Services, owner: str, key: IdempotencyKey) -> NoReturn:
    """Raise for a request whose *key* is another's.

    Raises:
        IdempotencyConflict: That one is under way, or has ended, or was another request.
    """
    holder = await services.store.find_key_holder(owner, key.text)
    if holder is None:  # it has just let the key go
        raise still_under_way(_RETRY_AFTER_S)
    check_same_body(key, holder)
    raise kept_nowhere() if holder.state in TERMINAL_STATES else still_under_way(_RETRY_AFTER_S)
