"""Responses that are there: how GET shows them, and how cancel and DELETE end them.

Rule: unknown, foreign, deleted and unstored ones are the same 404, whatever is asked of them.
"""

from uuid import UUID

from dwctl_trio.domain import ids
from dwctl_trio.domain.assembly import assemble
from dwctl_trio.domain.errors import Conflict, DwctlError, NotFound, StoreError
from dwctl_trio.domain.lifecycle import TERMINAL_STATES, RowState, wire_status
from dwctl_trio.domain.request import ResponseRequest
from dwctl_trio.domain.response import Cancelled, Failed, Response
from dwctl_trio.domain.steps import Chain
from dwctl_trio.engine.cancel import cancel_response
from dwctl_trio.engine.state import Services
from dwctl_trio.engine.unreadable import read_told_opening
from dwctl_trio.observability.log import get_logger
from dwctl_trio.ports import StoredResponse
from dwctl_trio.protocol.final_response import encode_object, with_status
from dwctl_trio.protocol.response_object import encode_response, render_response

_log = get_logger(__name__)

_CANCELS_MAX = 3
"""Each waits for ``cancel_wait_s`` at the most; more than one only where a worker claims in that very moment."""
_SHOWN_CHARACTERS_MAX = 64


def parse_id(text: str) -> UUID:
    """The uuid in a client's id.

    Raises:
        NotFound: It is none of ours.
    """
    parsed = ids.parse_response_id(text)
    if parsed is None:
        raise no_such(text)
    return parsed


def no_such(response_id: str) -> NotFound:
    """There is no response with this id for whoever asks."""
    is_shown = len(response_id) <= _SHOWN_CHARACTERS_MAX and response_id.isprintable()
    return NotFound(f"Response with id '{response_id if is_shown else '…'}' not found.")


async def read_stored(services: Services, response_id: UUID, owner: str) -> StoredResponse:
    """The response.

    Raises:
        NotFound: There is none for this owner.
    """
    stored = await services.store.read_response(response_id, owner)
    if stored is None:
        raise no_such(ids.response_id_text(response_id))
    return stored


async def show(services: Services, stored: StoredResponse, owner: str) -> bytes:
    """*stored* as GET answers it."""
    if stored.body is not None:
        return stored.body
    if stored.request is None:
        return await _show_unreadable(services, stored, owner)
    has_ended = stored.state in TERMINAL_STATES  # before that it shows no output
    chain = await services.store.read_chain(stored.response_id, owner) if has_ended else ()
    return encode_response(unfinished(stored, chain))


async def _show_unreadable(services: Services, stored: StoredResponse, owner: str) -> bytes:
    """*stored*, whose request another release wrote, as it was told when it began.

    Raises:
        DwctlError: Nothing is kept of that.
    """
    opening = await read_told_opening(services, stored.response_id, owner)
    if opening is None:
        raise _unreadable()
    return encode_object(with_status(opening, wire_status(stored.state), stored.error))


async def show_listed(services: Services, stored: StoredResponse, owner: str) -> bytes:
    """*stored* as GET answers it; where this release cannot read it, as far as anything is known.

    Raises:
        StoreError: It could not be read now.
    """
    try:
        return await show(services, stored, owner)
    except StoreError:
        raise
    except Exception as error:  # noqa: BLE001 - supervision boundary: one of a page, which must not hide the others
        _log.warning("response_not_readable", response_id=ids.response_id_text(stored.response_id), exc_info=error)
    known = Response(
        id=stored.response_id,
        created_at=stored.created_at,
        request=stored.request or ResponseRequest(model="", input=()),
        status=wire_status(stored.state),
        tools=stored.tools,
    )
    return encode_object(with_status(render_response(known), known.status, stored.error))


def _unreadable() -> DwctlError:
    return DwctlError("This release of the server cannot read the response: another one wrote it. Try again later.")


def opening_of(stored: StoredResponse) -> Response:
    """A response without a final body, as far as it is known without its steps.

    Raises:
        DwctlError: Another release wrote its request, and this one cannot read it.
    """
    if stored.request is None:
        raise _unreadable()
    return Response(
        id=stored.response_id,
        created_at=stored.created_at,
        request=stored.request,
        status=wire_status(stored.state),
        tools=stored.tools,
    )


def unfinished(stored: StoredResponse, chain: Chain) -> Response:
    """A response without a final body: still under way, or ended by somebody who had none to write.

    What its steps had come to by then is its output.
    """
    opening = opening_of(stored)
    match stored.state:
        case RowState.FAILED:
            assert stored.error is not None, "a failed row has an error"
            return assemble(opening, chain, Failed(error=stored.error), ended_at=0)
        case RowState.CANCELED:
            return assemble(opening, chain, Cancelled(), ended_at=0)
        case _:
            return opening


async def cancel_stored(services: Services, response_id: UUID, owner: str) -> StoredResponse:
    """Have the response ended; return it as it is then.

    Raises:
        NotFound: There is none for this owner, or it was deleted meanwhile.

    Cancellation: once it is asked for it happens.
    """
    stored = await read_stored(services, response_id, owner)
    for _ in range(_CANCELS_MAX):
        if stored.state in TERMINAL_STATES:
            break
        await cancel_response(services, response_id, owner)
        stored = await read_stored(services, response_id, owner)
    return stored


async def delete_stored(services: Services, response_id: UUID, owner: str) -> None:
    """Delete the response, and cancel it first if it is under way.

    Raises:
        NotFound: There is none for this owner.
        Conflict: It could not be cancelled in time.
    """
    for _ in range(_CANCELS_MAX):
        try:
            is_deleted = await services.store.delete_response(response_id, owner)
        except Conflict:
            await cancel_stored(services, response_id, owner)
            continue
        if not is_deleted:
            raise no_such(ids.response_id_text(response_id))
        return
    raise Conflict("The response is being cancelled. Try again in some seconds.")
