"""A POST whose response is worked on by a daemon: enqueue it, then answer at once, stream it, or wait for it.

Rule 1: what cannot be enqueued is a JSON error; nothing of a stream has been sent by then.
Rule 2: every answer names the response in ``x-response-id``: whoever loses the connection can find it again.
Rule 3: a request that repeats another one's ``Idempotency-Key`` goes on with that one's row as if it were its own.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

import attrs
from quart import Response as HttpResponse

from dwctl_trio.domain.errors import DwctlError, IdempotencyKeyHeld, StoreError, StoreUnavailable
from dwctl_trio.domain.failures import Failure
from dwctl_trio.domain.idempotency import KeyHolder, answer_repeat, check_same_body, still_under_way
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState
from dwctl_trio.domain.response import Response
from dwctl_trio.domain.routing import Path
from dwctl_trio.engine.enqueue import enqueue
from dwctl_trio.engine.follow import wait_ended
from dwctl_trio.engine.repeats import put_together_once
from dwctl_trio.engine.scope import ResponseRefused
from dwctl_trio.http.answers import answer_json, answer_response
from dwctl_trio.http.api import Api, answer_error
from dwctl_trio.http.following import ending_with_client, name_response, start_following
from dwctl_trio.http.stored import no_such, read_stored, show
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import EventPage, NewChat, NewResponse
from dwctl_trio.protocol.error_body import HttpError, error_body
from dwctl_trio.protocol.final_response import read_final_response

_log = get_logger(__name__)
_Placed = TypeVar("_Placed")

_TRIES_MAX = 3
"""Another try follows where the row that held the key was deleted in between."""
_RETRY_AFTER_S = 1.0
_OK = 200


async def answer_queued(api: Api, new: NewResponse, path: Path) -> HttpResponse:
    """Enqueue *new*, and answer as *path* says.

    Raises:
        InvalidRequest: It cannot be put together, and repeats no other.
        StoreUnavailable: It could not be enqueued.
        DwctlError: The same, and trying again will hardly help.
        IdempotencyConflict: Its key is taken by a request whose response cannot be given.
        ResponseRefused: It was waited for, and failed without any output.
        NotFound: It was waited for, and deleted.
    """

    async def put() -> Response:
        return await enqueue(api.services, await put_together_once(api.services, new, api.hold))

    placed = await place(api, new, put)
    queued = _Queued(api, new, placed) if isinstance(placed, KeyHolder) else _Queued(api, new)
    match path:
        case Path.QUEUED_AT_ONCE:
            answer = await queued.show() if isinstance(placed, KeyHolder) else answer_response(placed)
        case Path.FLEX_BLOCKING:
            answer = await queued.wait()
        case _:
            answer = await queued.stream()
    if isinstance(placed, KeyHolder):
        answer.headers["idempotent-replayed"] = "true"
    return name_response(answer, queued.response_id)


async def place(api: Api, new: NewResponse | NewChat, put: Callable[[], Awaitable[_Placed]]) -> _Placed | KeyHolder:
    """What *put*, which enqueues *new*, returns; or the row that was there before it with its key.

    Raises:
        StoreUnavailable: It could not be enqueued.
        DwctlError: The same, and trying again will hardly help.
        IdempotencyConflict: Its key is taken by a request with another body.
    """
    key = new.idempotency
    outlives_client = isinstance(new, NewResponse) and new.request.background
    ends_with_client = api.config.flex_on_disconnect == "cancel" and not outlives_client
    for _ in range(_TRIES_MAX):
        try:
            async with ending_with_client(api, new.response_id, new.owner, applies=ends_with_client):
                return await put()
        except IdempotencyKeyHeld:
            assert key is not None, "only a request with a key meets another's"
            holder = await api.services.store.find_key_holder(new.owner, key.text)
        except StoreUnavailable:
            raise
        except StoreError as error:
            _log.error("response_not_enqueued", response_id=response_id_text(new.response_id), reason=str(error))
            raise DwctlError("Failed to enqueue request. Please try again later.") from error
        if holder is not None:
            check_same_body(key, holder)
            api.services.metrics.replays.inc()
            _log.info("response_replayed", response_id=response_id_text(holder.response_id), owner=new.owner)
            return holder
    raise still_under_way(_RETRY_AFTER_S)


@attrs.frozen
class _Queued:
    """A row in the queue, or beyond it, and the request that is to be answered with what it comes to."""

    api: Api
    new: NewResponse
    holder: KeyHolder | None = None
    """The row, where it was there before the request."""

    @property
    def response_id(self) -> UUID:
        return self.new.response_id if self.holder is None else self.holder.response_id

    @property
    def _ends_with_client(self) -> bool:
        """Whether the client's leaving ends the run; never one that another request began."""
        asked = self.new.request
        return self.holder is None and not asked.background and self.api.config.flex_on_disconnect == "cancel"

    async def show(self) -> HttpResponse:
        """What GET answers."""
        stored = await read_stored(self.api.services, self.response_id, self.new.owner)
        return answer_json(await show(self.api.services, stored, self.new.owner))

    async def stream(self) -> HttpResponse:
        """The run's events, as they come."""
        owner = self.new.owner
        if self.holder is not None:
            page = await self.api.services.events.read_events(self.response_id, owner, -1)
            if page is not None and page.last_sequence is None and page.state in TERMINAL_STATES:
                raise self._lost()
        return start_following(self.api, self.response_id, owner, ends_with_client=self._ends_with_client)

    async def wait(self) -> HttpResponse:
        """The response once it has ended."""
        services, owner = self.api.services, self.new.owner
        try:
            async with ending_with_client(self.api, self.response_id, owner, applies=self._ends_with_client):
                with self.api.watchers.watching() as scope:
                    page = await wait_ended(services, self.response_id, owner)
        except StoreUnavailable:
            return self._goes_on("The server's database is not available.")
        if scope.cancelled_caught:
            return self._goes_on("The server is shutting down.")
        if page is None:
            raise no_such(response_id_text(self.response_id))
        if page.state is RowState.FAILED and page.response_status != _OK:
            assert page.error is not None, "a failed row has an error"
            assert page.response_status is not None, "a row that has ended has a status"
            failure = Failure(error=page.error, http_status=page.response_status, is_final=True)
            raise ResponseRefused(failure, self.response_id)
        return await self.show() if page.is_stored else await self._read_last_event(page)

    async def _read_last_event(self, page: EventPage) -> HttpResponse:
        """The response that the terminal event carried, for nothing else is left of it."""
        if page.last_sequence is not None:
            events = self.api.services.events
            last = await events.read_events(self.response_id, self.new.owner, page.last_sequence - 1)
            if last is not None and last.segments:
                return answer_json(read_final_response(last.segments[-1].frames))
        raise self._lost()

    def _lost(self) -> DwctlError:
        """The error of a response of which nothing is left to answer with."""
        if self.holder is None or self.new.idempotency is None:
            return no_such(response_id_text(self.response_id))
        try:
            answer_repeat(self.new.idempotency, attrs.evolve(self.holder, state=RowState.COMPLETED, told=None))
        except DwctlError as conflict:
            return conflict
        raise AssertionError("what was told is not there")

    def _goes_on(self, reason: str) -> HttpResponse:
        """The answer to a client that cannot wait here any longer, for a response that does not end with it."""
        name, can_repeat = response_id_text(self.response_id), self.new.idempotency is not None
        if can_repeat:
            advice = "Repeat this request with the same Idempotency-Key to wait for it."
        elif self.new.request.store:
            advice = f"Read it with GET /v1/responses/{name}; sending this request again would make another one."
        else:
            advice = "It cannot be read, as it is not stored ('store: false'); send this request again for another one."
        error = HttpError(
            status=503,
            body=error_body(f"{reason} The response {name} goes on. {advice}", "server_error", code="server_error"),
            retry_after_s=_RETRY_AFTER_S if can_repeat else None,
            is_final=not can_repeat,
        )
        return answer_error(error)
