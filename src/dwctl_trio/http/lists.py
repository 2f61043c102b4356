"""Lists of stored responses and of what they were asked, a page at a time.

Rule 1: a page begins behind the item that ``after`` names, which must be there.
Rule 2: the list is the owner's; of another's response nothing tells that it exists.

Source: OpenAI Responses API reference, "List input items".
"""

import re
from uuid import UUID

import attrs
import trio
from quart import Response as HttpResponse
from quart import request
from quart_trio import QuartTrio

from dwctl_trio.domain import ids
from dwctl_trio.domain.conversation import input_items
from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.http.answers import answer_json
from dwctl_trio.http.api import Api, refuse_unknown_includes
from dwctl_trio.http.stored import no_such, parse_id, show_listed
from dwctl_trio.ports import WantedPage
from dwctl_trio.protocol.fields import shown_text
from dwctl_trio.protocol.item_list import LIMIT_DEFAULT, LIMIT_MAX, ORDERS, encode_item_list, encode_response_list

_NUMBER = re.compile(r"[0-9]{1,9}")


@attrs.frozen(kw_only=True)
class WantedList:
    """What a GET asks for of a list."""

    limit: int
    newest_first: bool
    after: str | None


def add_list_routes(app: QuartTrio, api: Api) -> None:
    """Put the views on *app*."""

    @app.get("/v1/responses")
    async def list_responses() -> HttpResponse:
        """Ours; OpenAI has no such list."""
        caller = await api.find_caller()
        api.admit(caller)
        return answer_json(await list_stored(api, caller.owner, read_wanted_list()))

    @app.get("/v1/responses/<response_id>/input_items")
    async def list_input_items(response_id: str) -> HttpResponse:
        caller = await api.find_caller()
        api.admit(caller)
        return answer_json(await list_input(api, parse_id(response_id), caller.owner, read_wanted_list()))


def read_wanted_list() -> WantedList:
    """What the current GET asks for; ``include`` adds nothing to what is shown anyway.

    Raises:
        InvalidRequest: A parameter is not what it should be.
    """
    refuse_unknown_includes()
    if "before" in request.args:
        raise InvalidRequest(
            "Unsupported parameter: 'before'. Ask with the other 'order', and name the item in 'after'.",
            param="before",
            code="unsupported_parameter",
        )
    order = request.args.get("order", "desc")
    if order not in ORDERS:
        raise _invalid("order", "supported values are 'asc' and 'desc'.")
    limit = request.args.get("limit", str(LIMIT_DEFAULT))
    if not _NUMBER.fullmatch(limit) or not 1 <= int(limit) <= LIMIT_MAX:
        raise _invalid("limit", f"expected an integer from 1 to {LIMIT_MAX}.")
    return WantedList(limit=int(limit), newest_first=order == "desc", after=request.args.get("after") or None)


async def list_input(api: Api, response_id: UUID, owner: str, wanted: WantedList) -> bytes:
    """A page of what the response was generated from: its conversation so far, and its own input.

    What was deleted since is missing; the response's own input is always there.

    Raises:
        NotFound: There is no such response for this owner.
        InvalidRequest: ``after`` names no item of the list.
        Overloaded: The process holds as much as it can.
    """
    found = await api.services.conversations.read_conversation(response_id, owner)
    if found is None:
        raise no_such(ids.response_id_text(response_id))
    api.hold(found.stored_bytes)
    await trio.lowlevel.checkpoint()
    items = input_items(found)
    if wanted.newest_first:
        items = items[::-1]
    first = 0
    if wanted.after is not None:
        places = [place for place, item in enumerate(items) if item.id == wanted.after]
        if not places:
            raise _unknown_cursor(wanted.after, "input item of this response")
        first = places[0] + 1
    page = items[first : first + wanted.limit]
    return encode_item_list(page, has_more=first + len(page) < len(items))


async def list_stored(api: Api, owner: str, wanted: WantedList) -> bytes:
    """A page of the owner's responses, each as GET shows it, or as far as this release can read it.

    Raises:
        InvalidRequest: ``after`` names no response of this owner.
        Overloaded: The process holds as much as it can.
        StoreError: They could not be read now.
    """
    after = None if wanted.after is None else ids.parse_response_id(wanted.after)
    is_named = after is not None or wanted.after is None
    asked = WantedPage(limit=wanted.limit, after=after, newest_first=wanted.newest_first)
    page = await api.services.conversations.list_responses(asked, owner) if is_named else None
    if page is None:
        raise _unknown_cursor(wanted.after or "", "stored response")
    api.hold(sum(len(stored.body or b"") for stored in page.responses))
    shown: list[bytes] = []
    for stored in page.responses:
        shown.append(await show_listed(api.services, stored, owner))
        api.hold(0 if stored.body is not None else len(shown[-1]))
    return encode_response_list(shown, [stored.response_id for stored in page.responses], has_more=page.has_more)


def _invalid(param: str, expected: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid value for '{param}': {expected}", param=param, code="invalid_value")


def _unknown_cursor(after: str, kind: str) -> InvalidRequest:
    return _invalid("after", f"there is no {kind} with id '{shown_text(after)}'.")
