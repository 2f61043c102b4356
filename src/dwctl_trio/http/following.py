"""Streaming a response from its stored events, from its beginning or from where a client was cut.

    GET ?stream=true ─┐
    POST, queued ─────┴── follow ── channel ── EventBody, which breaks the connection of a stream that was cut

Rule 1: what cannot be streamed is refused before the head, and the error says what to do instead.
Rule 2: a follower that leaves changes nothing, but for a flex client where the configuration says so.
Rule 3: ``[DONE]`` comes after the terminal event only.
"""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from uuid import UUID

import attrs
import trio
from quart import Response as HttpResponse
from quart import request

from dwctl_trio.domain.assembly import terminal_event
from dwctl_trio.domain.errors import InvalidRequest, StoreError
from dwctl_trio.domain.events import ResponseCreated, ResponseInProgress
from dwctl_trio.domain.ids import response_id_text
from dwctl_trio.domain.lifecycle import TERMINAL_STATES
from dwctl_trio.domain.response import ErrorType, ResponseStatus
from dwctl_trio.domain.retelling import retell
from dwctl_trio.domain.steps import Chain
from dwctl_trio.engine.cancel import cancel_response
from dwctl_trio.engine.follow import Place, follow
from dwctl_trio.http.answers import answer_stream
from dwctl_trio.http.api import Api
from dwctl_trio.http.connection import request_nursery
from dwctl_trio.http.stored import no_such, opening_of, read_stored, unfinished
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import StoredResponse
from dwctl_trio.protocol.event_reading import frames_after
from dwctl_trio.protocol.event_stream import EventEncoder

_log = get_logger(__name__)

STARTING_AFTER = "starting_after"
LAST_EVENT_ID = "Last-Event-ID"
_FLAGS = {"true": True, "1": True, "false": False, "0": False}
"""As clients write booleans in a query."""
_NUMBER = re.compile(r"[0-9]{1,18}")
"""What fits into a bigint."""


@attrs.frozen
class WantedStream:
    """A stream that a GET asks for."""

    after: int
    """Number of the last event that the client has; -1 for none."""
    param: str | None
    """The parameter that says so."""


def read_wanted_stream() -> WantedStream | None:
    """The stream that the current GET asks for; None if it wants the response itself.

    Raises:
        InvalidRequest: A parameter is not what it should be.
    """
    starting_after = request.args.get(STARTING_AFTER)
    _read_flag("include_obfuscation")  # nothing is obfuscated
    if not _read_flag("stream"):
        if starting_after is not None:  # OpenAI ignores it; but who names an event waits for events, and gets none
            raise InvalidRequest(
                f"Unsupported parameter: '{STARTING_AFTER}' needs 'stream=true'; without it the answer has no events.",
                param=STARTING_AFTER,
                code="unsupported_parameter",
            )
        return None
    if starting_after is not None:
        return WantedStream(_parse_number(STARTING_AFTER, starting_after), STARTING_AFTER)
    last_event_id = request.headers.get(LAST_EVENT_ID)
    if last_event_id is not None:
        return WantedStream(_parse_number(LAST_EVENT_ID, last_event_id), LAST_EVENT_ID)
    return WantedStream(-1, None)


def _read_flag(name: str) -> bool:
    """What a boolean in the query says; any other word is refused, for a guess would be wrong half of the time."""
    word = (request.args.get(name) or "false").lower()
    if word not in _FLAGS:
        raise InvalidRequest(
            f"Invalid value for '{name}': supported values are 'true' and 'false'.", param=name, code="invalid_value"
        )
    return _FLAGS[word]


def _parse_number(param: str, text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(
            f"Invalid value for '{param}': expected the 'sequence_number' of the last event that you have, "
            "an integer from 0 on.",
            param=param,
            code="invalid_value",
        )
    return int(text)


async def answer_events(api: Api, response_id: UUID, owner: str, wanted: WantedStream) -> HttpResponse:
    """The events of a stored response behind the wanted one, and those to come.

    Raises:
        NotFound: There is no such response for this owner.
        InvalidRequest: Its events are not kept, or not yet, or there is no such event.
    """
    services = api.services
    stored = await read_stored(services, response_id, owner)
    page = await services.events.read_events(response_id, owner, wanted.after)
    if page is None:
        raise no_such(response_id_text(response_id))
    has_ended = page.state in TERMINAL_STATES
    if not has_ended and not page.is_queued:
        raise InvalidRequest(
            "This response is streamed to whoever created it, and cannot be followed by others before it has ended. "
            "GET it without 'stream', or create responses with 'background': true to follow them from anywhere.",
            param="stream",
            code="response_not_streamable",
        )
    if page.last_sequence is not None:
        _check_known(wanted, page.last_sequence, has_ended=has_ended)
        return start_following(api, response_id, owner, after=wanted.after)
    if page.is_queued or stored.error is None or stored.error.type is not ErrorType.STEP_ABANDONED:
        raise await _not_kept(api, stored)
    chain = await services.store.read_chain(response_id, owner)
    frames, last = _retell_abandoned(stored, chain)
    _check_known(wanted, last, has_ended=True)
    return _answer_frames(api, response_id, frames_after(frames, wanted.after))


def _check_known(wanted: WantedStream, last: int, *, has_ended: bool) -> None:
    """Refuse to stream from behind what there is: the stream would be empty, or have a gap."""
    if wanted.after > last:
        many = "the last event of this response is" if has_ended else "so far the last event of this response is"
        raise InvalidRequest(
            f"Invalid value for '{wanted.param}': {many} number {last}, but got {wanted.after}.",
            param=wanted.param,
            code="invalid_value",
        )


async def _not_kept(api: Api, stored: StoredResponse) -> InvalidRequest:
    """Why the events of a response that has ended are not there, as far as its age tells."""
    limits, age_s = api.services.limits, await api.services.queue.read_clock() - stored.created_at
    reason = f"its stream was longer than {limits.event_log_bytes} bytes ('event_log_bytes')"
    if age_s > limits.event_retention_s:
        reason = f"events are kept for {limits.event_retention_s:.0f} s ('event_retention_s'), or {reason}"
    return InvalidRequest(
        f"The events of this response are not kept: {reason}. "
        f"Read the response itself with GET /v1/responses/{response_id_text(stored.response_id)}.",
        param="stream",
        code="response_events_not_kept",
    )


def _retell_abandoned(stored: StoredResponse, chain: Chain) -> tuple[bytes, int]:
    """The frames that tell what the rows hold of a response whose process died, and the number of the last one."""
    ended = unfinished(stored, chain)
    opening = attrs.evolve(opening_of(stored), status=ResponseStatus.IN_PROGRESS)
    own = [step for step in chain if step.parent_step_id is None]
    told = retell(own, chain if opening.request.shows_sub_agents else ())
    events = [ResponseCreated(opening), ResponseInProgress(opening), *told, terminal_event(ended)]
    return EventEncoder().encode(0, events), len(events) - 1


def _answer_frames(api: Api, response_id: UUID, frames: bytes) -> HttpResponse:
    send_frames, receive_frames = trio.open_memory_channel[bytes](1)
    with send_frames:
        if frames:
            send_frames.send_nowait(frames)
    answer = answer_stream(api, receive_frames)
    return name_response(answer, response_id)


def name_response(answer: HttpResponse, response_id: UUID) -> HttpResponse:
    """*answer*, with the response that it is about in its headers."""
    answer.headers["x-response-id"] = response_id_text(response_id)
    return answer


def start_following(
    api: Api, response_id: UUID, owner: str, *, after: int = -1, ends_with_client: bool = False
) -> HttpResponse:
    """A stream of the events behind number *after*, read in the request's nursery.

    Args:
        api: The store, and the bounds.
        response_id: A response whose events are kept.
        owner: Of the response.
        after: Number of the last event that the client has; -1 for none.
        ends_with_client: Whether the response is to be cancelled if the client leaves.
    """
    return answer_follower(Follower(api, response_id, owner, ends_with_client=ends_with_client), after)


def answer_follower(follower: "Follower", after: int = -1) -> HttpResponse:
    """A stream of what *follower* reads behind event number *after*, in the request's nursery."""
    api = follower.api
    send_frames, receive_frames = trio.open_memory_channel[bytes](api.services.limits.follow_channel_items)
    request_nursery().start_soon(partial(follower.run, after, send_frames), name="follower")
    answer = answer_stream(api, receive_frames, is_whole=lambda: follower.is_whole)
    return name_response(answer, follower.response_id)


async def _no_frames() -> bytes:
    """For streams whose stored events are all of them."""
    return b""


@attrs.define(eq=False)
class Follower:
    """One client's reading of a response's events."""

    api: Api
    response_id: UUID
    owner: str
    ends_with_client: bool = False
    """Whether the response is to be cancelled if the client leaves."""
    last_frames: Callable[[], Awaitable[bytes]] = _no_frames
    """What is told after the last event; a stream that has such an end is whole, also without any event."""
    is_whole: bool = attrs.field(default=False, init=False)
    """Whether all was handed over."""

    async def run(self, after: int, send_frames: trio.MemorySendChannel[bytes]) -> None:
        """Hand over the events until the last one, or until the stream is cut."""
        api, place = self.api, Place(after)
        async with send_frames:
            try:
                async with ending_with_client(api, self.response_id, self.owner, applies=self.ends_with_client):
                    with api.watchers.watching() as scope:
                        await self._hand_over(place, send_frames)
                    if scope.cancelled_caught and await self._has_ended_here(place):
                        await self._hand_over(place, send_frames)
            except trio.BrokenResourceError:  # the client has left
                return
            except StoreError as error:
                self._note_cut(str(error))
                return
            if scope.cancelled_caught and not self.is_whole:
                self._note_cut("the server is stopping")

    async def _hand_over(self, place: Place, send_frames: trio.MemorySendChannel[bytes]) -> None:
        """Hand over what is behind *place*, to the end of the stream."""
        is_whole = await follow(self.api.services, self.response_id, self.owner, place, send_frames)
        last = await self.last_frames()
        if last:
            await send_frames.send(last)
        self.is_whole = is_whole or bool(last)

    async def _has_ended_here(self, place: Place) -> bool:
        """Whether the end of the server is the response's as well; one that is worked on elsewhere goes on."""
        services = self.api.services
        await services.live.wait_over(self.response_id)
        page = await services.events.read_events(self.response_id, self.owner, place.after)
        return page is not None and page.state in TERMINAL_STATES

    def _note_cut(self, reason: str) -> None:
        _log.warning("follower_cut", response_id=response_id_text(self.response_id), reason=reason)


@asynccontextmanager
async def ending_with_client(api: Api, response_id: UUID, owner: str, *, applies: bool) -> AsyncIterator[None]:
    """Cancel the response if the client leaves in the block, if that *applies*; not if it is the server that ends."""
    try:
        yield
    except (trio.Cancelled, trio.BrokenResourceError):
        if applies and not api.stopping:
            await _cancel_left(api, response_id, owner)
        raise


async def _cancel_left(api: Api, response_id: UUID, owner: str) -> None:
    """Cancel the response, as far as that can be done in time."""
    limits = api.services.limits
    with trio.move_on_after(limits.cancel_wait_s + limits.terminal_write_s, shield=True):
        try:
            await cancel_response(api.services, response_id, owner)
        except StoreError as error:
            _log.warning("response_not_cancelled", response_id=response_id_text(response_id), reason=str(error))
