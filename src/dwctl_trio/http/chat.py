"""``/v1/chat/completions``: at once, as ``proxied`` does, or with ``service_tier: "flex"`` from the queue.

    POST ── enqueue ─┬─ blocking: wait for the end ── the upstream's completion, or the error
                     └─ stream: 200 at once ── follow ── the upstream's chunks, or an error among them, then [DONE]

Rule 1: what cannot be enqueued is a JSON error; nothing of a stream has been sent by then.
Rule 2: an answer is the upstream's own; an error is ours, in the four-key body, also within a stream.
Rule 3: as for responses: hanging up changes nothing but where ``flex_on_disconnect`` says so, and a request that
repeats another one's ``Idempotency-Key`` goes on with that one's row.
"""

from functools import partial
from uuid import UUID

from quart import Response as HttpResponse
from quart_trio import QuartTrio

from dwctl_trio.domain.claiming import Surface
from dwctl_trio.domain.errors import DwctlError, IdempotencyConflict, StoreUnavailable
from dwctl_trio.domain.failures import Failure
from dwctl_trio.domain.idempotency import IDEMPOTENCY_KEY, KeyHolder
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import RowState
from dwctl_trio.engine.enqueue import enqueue_chat
from dwctl_trio.engine.follow import wait_ended
from dwctl_trio.http.answers import answer_json
from dwctl_trio.http.api import Api, answer_error
from dwctl_trio.http.following import Follower, answer_follower, ending_with_client, name_response
from dwctl_trio.http.proxied import answer_call, read_call
from dwctl_trio.http.queued import place
from dwctl_trio.http.stored import no_such
from dwctl_trio.ports import EventPage, NewChat
from dwctl_trio.protocol.chat_body import parse_chat
from dwctl_trio.protocol.error_body import HttpError, error_body, failure_error
from dwctl_trio.protocol.sse import encode_frame

_CANCELLED_STATUS = 409
"""The original answered 499, which no registry knows. A conflict with what somebody else asked for is what it is; SDKs
would repeat after one, so the answer tells them not to."""
_RETRY_AFTER_S = 1.0


def add_chat_routes(app: QuartTrio, api: Api) -> None:
    """Put the view on *app*."""

    @app.post("/v1/chat/completions")
    async def create_chat_completion() -> HttpResponse:
        new = await read_call(api, parse_chat)
        if not new.request.is_queued:
            return await answer_call(api, new)
        holder = await place(api, new, partial(enqueue_chat, api.services, new))
        response_id = holder.response_id if isinstance(holder, KeyHolder) else new.response_id
        answer = await _answer(api, new, response_id)
        if isinstance(holder, KeyHolder):
            answer.headers["idempotent-replayed"] = "true"
        return name_response(answer, response_id)


async def _answer(api: Api, new: NewChat, response_id: UUID) -> HttpResponse:
    """What the row *response_id* comes to, as *new* asked for it; a row of another request does not end with this."""
    is_own = response_id == new.response_id
    ends_with_client = is_own and api.config.flex_on_disconnect == "cancel"
    if not new.request.stream:
        return await _wait(api, new, response_id, ends_with_client=ends_with_client)
    if not is_own:
        page = await api.services.events.read_events(response_id, new.owner, -1)
        if page is not None and page.state is RowState.COMPLETED and not page.segments:
            raise _lost(response_id)
    return answer_follower(
        Follower(
            api,
            response_id,
            new.owner,
            ends_with_client=ends_with_client,
            last_frames=partial(_error_frame, api, response_id, new.owner),
        )
    )


async def _wait(api: Api, new: NewChat, response_id: UUID, *, ends_with_client: bool) -> HttpResponse:
    """The completion once it is there, or the error."""
    services, owner = api.services, new.owner
    try:
        async with ending_with_client(api, response_id, owner, applies=ends_with_client):
            with api.watchers.watching() as scope:
                page = await wait_ended(services, response_id, owner, after=-1)
    except StoreUnavailable:
        return _goes_on(new, "The server's database is not available.")
    if scope.cancelled_caught:
        return _goes_on(new, "The server is shutting down.")
    if page is None:
        raise no_such(response_id_text(response_id))
    error = _error_of(page)
    if error is not None:
        return answer_error(error)
    if not page.segments:
        raise _lost(response_id)
    return answer_json(b"".join(segment.frames for segment in page.segments))


async def _error_frame(api: Api, response_id: UUID, owner: str) -> bytes:
    """The frame that ends a stream which did not come to its end; nothing for one that did."""
    page = await wait_ended(api.services, response_id, owner)
    error = _error_of(page) if page is not None else None
    return b"" if error is None else encode_frame(None, error.body)


def _error_of(page: EventPage) -> HttpError | None:
    """The error that a row has ended with; None for a completion."""
    match page.state:
        case RowState.COMPLETED:
            return None
        case RowState.CANCELED:
            body = error_body("The completion was cancelled.", "invalid_request_error", code="request_cancelled")
            return HttpError(status=_CANCELLED_STATUS, body=body, is_final=True)
        case _:
            assert page.error is not None, "a failed row has an error"
            assert page.response_status is not None, "a row that has ended has a status"
            return failure_error(
                Failure(error=page.error, http_status=page.response_status, is_final=True),
                Surface.CHAT,
            )


def _lost(response_id: UUID) -> DwctlError:
    """The error of a completion of which nothing is left to answer with."""
    return IdempotencyConflict(
        f"The request with this '{IDEMPOTENCY_KEY}' has ended as {response_id_text(response_id)}, whose completion is "
        "not kept any more. Send a new key for a new completion.",
        code="idempotency_replay_unavailable",
    )


def _goes_on(new: NewChat, reason: str) -> HttpResponse:
    """The answer to a client that cannot wait here any longer, for a completion that does not end with it."""
    can_repeat = new.idempotency is not None
    advice = (
        f"Repeat this request with the same {IDEMPOTENCY_KEY} to wait for it."
        if can_repeat
        else f"It cannot be had without an {IDEMPOTENCY_KEY}; send this request again for another one."
    )
    error = HttpError(
        status=503,
        body=error_body(f"{reason} The completion goes on. {advice}", "server_error", code="server_error"),
        retry_after_s=_RETRY_AFTER_S if can_repeat else None,
        is_final=not can_repeat,
    )
    return answer_error(error)
