"""A request put together: the conversation that it goes on with, and the items that it refers to.

Rule 1: whatever is not there for the owner is the same error: unknown, foreign, deleted, not stored, no longer kept.
Rule 2: a conversation with a gap is refused, never continued as if nothing were missing.
Rule 3: what is referred to becomes a part of the request, so that its response does not need the other one later.
"""

from collections.abc import Callable, Mapping

import attrs
import trio

from dwctl_trio.domain import ids
from dwctl_trio.domain.conversation import Conversation, Gap, history_of, item_count, items_by_id
from dwctl_trio.domain.errors import InvalidRequest
from dwctl_trio.domain.lifecycle import TERMINAL_STATES
from dwctl_trio.domain.limits import Limits
from dwctl_trio.domain.request import InputItem, ItemReference, ResponseRequest
from dwctl_trio.engine.state import Services
from dwctl_trio.ports import NewResponse
from dwctl_trio.protocol.request_input import check_calls

PREVIOUS = "previous_response_id"


def _hold_nothing(_size: int) -> None:
    """For those who have counted it before."""


async def put_together(
    services: Services, new: NewResponse, hold: Callable[[int], None] = _hold_nothing
) -> NewResponse:
    """*new*, with its history, and with items where it refers to some.

    Args:
        services: The store, and the bounds.
        new: As it was asked for.
        hold: Told how many bytes were read for it; raises if they are too many for the process.

    Raises:
        InvalidRequest: What it goes on with or refers to cannot be had, or its calls and outputs do not match.
        DwctlError: Another release wrote what it goes on with, and this one cannot read it.
        StoreError: It could not be read now.
    """
    request = new.request
    if request.previous_response_id is None and not _references(request):
        return new
    history = await read_history(services, request, new.owner, hold)
    items = await _resolve(services, request, new.owner, hold)
    if not history and not items:
        raise InvalidRequest(
            "Invalid 'input': expected at least one item, but what it refers to was never finished.",
            param="input",
            code="empty_array",
        )
    await trio.lowlevel.checkpoint()  # what follows takes its time for each item
    check_calls((*history, *items))
    return attrs.evolve(new, history=history, request=attrs.evolve(request, input=items))


async def read_history(
    services: Services, request: ResponseRequest, owner: str, hold: Callable[[int], None] = _hold_nothing
) -> tuple[InputItem, ...]:
    """All that was said before *request*, oldest first; nothing if it goes on with no other. *hold* as above.

    Raises:
        InvalidRequest: What it goes on with cannot be had as a whole, or has not ended.
        DwctlError: Another release wrote a part of it, and this one cannot read it.
        StoreError: It could not be read now.
    """
    named = request.previous_response_id
    if named is None:
        return ()
    previous_id = ids.parse_response_id(named)
    found = None if previous_id is None else await services.conversations.read_conversation(previous_id, owner)
    if found is None:
        raise _refusal(f"Previous response with id '{_shown(named)}' not found.", "previous_response_not_found")
    if found.turns[-1].state not in TERMINAL_STATES:
        raise _refusal(
            f"Previous response with id '{_shown(named)}' has not ended. Wait until GET shows that it has.",
            "previous_response_not_ended",
        )
    _check_whole(found, named, len(request.input), services.limits)
    hold(found.stored_bytes)
    await trio.lowlevel.checkpoint()
    return history_of(found)


def _check_whole(found: Conversation, named: str, added: int, limits: Limits) -> None:
    """Refuse to go on with a conversation of which not all was read, or that *added* items would make too long.

    Raises:
        InvalidRequest: What is missing, and what to do.
    """
    if found.gap is Gap.MISSING:
        raise _refusal(
            f"A response that the previous response '{_shown(named)}' goes on with was not found: it was deleted, "
            "or is no longer kept. Send the whole conversation as 'input' instead.",
            "previous_response_not_found",
        )
    if found.gap is Gap.TOO_LARGE:
        raise _too_long(f"{limits.conversation_bytes} bytes as it is stored ('conversation_bytes')")
    if found.gap is Gap.TOO_MANY_ITEMS or added + sum(map(item_count, found.turns)) > limits.conversation_items:
        raise _too_long(f"{limits.conversation_items} items ('conversation_items')")
    if found.gap is Gap.TOO_MANY_TURNS or len(found.turns) >= limits.conversation_turns:
        raise _too_long(f"{limits.conversation_turns} responses ('conversation_turns')")


def _too_long(bound: str) -> InvalidRequest:
    return _refusal(
        f"The conversation is too long: at most {bound}. Begin a new one, with what matters of this one as 'input'.",
        "conversation_too_long",
    )


def _refusal(message: str, code: str) -> InvalidRequest:
    return InvalidRequest(message, param=PREVIOUS, code=code)


def _shown(named: str) -> str:
    """The id *named* as an error repeats it: only one that is made as ours are; others may be anything."""
    is_ours = ids.parse_response_id(named) is not None or ids.parse_item_id(named) is not None
    return named if is_ours else "…"


def _references(request: ResponseRequest) -> dict[int, str]:
    """What *request* refers to, by place."""
    return {place: item.id for place, item in enumerate(request.input) if isinstance(item, ItemReference)}


async def _resolve(
    services: Services, request: ResponseRequest, owner: str, hold: Callable[[int], None]
) -> tuple[InputItem, ...]:
    """The input of *request*, with items in place of references; a half item that was superseded is left out.

    Raises:
        InvalidRequest: An item is not there, or is referred to twice, or they are too many.
    """
    references, limits = _references(request), services.limits
    if not references:
        return request.input
    if len(references) > limits.item_references:
        raise InvalidRequest(
            f"Too many references to items: at most {limits.item_references} are allowed ('item_references'), but got "
            f"{len(references)}. Use '{PREVIOUS}' instead.",
            param="input",
        )
    _refuse_repeats(references)
    makers = {maker for maker in map(ids.parse_item_id, references.values()) if maker is not None}
    found = await services.conversations.find_turns(sorted(makers), owner) if makers else None
    hold(found.stored_bytes if found is not None else 0)
    known: dict[str, tuple[InputItem, ...]] = {}
    for turn in found.turns if found is not None else ():
        known |= items_by_id(turn)
        await trio.lowlevel.checkpoint()
    items: list[InputItem] = []
    for place, item in enumerate(request.input):
        if place not in references:
            items.append(item)
        elif references[place] in known:
            items += known[references[place]]
        else:
            raise _no_such_item(place, references[place], None if found is None else found.gap, limits)
    return tuple(items)


def _refuse_repeats(references: Mapping[int, str]) -> None:
    """Each item once: a large one could be asked for a thousand times by a small request.

    Raises:
        InvalidRequest: Two *references* are to the same item.
    """
    seen: dict[str, int] = {}
    for place, item_id in references.items():
        first = seen.setdefault(item_id, place)
        if first != place:
            raise InvalidRequest(
                f"Duplicate reference to the item with id '{_shown(item_id)}': 'input[{first}]' refers to it already. "
                "Refer to each item once.",
                param=f"input[{place}].id",
            )


def _no_such_item(place: int, item_id: str, gap: Gap | None, limits: Limits) -> InvalidRequest:
    if gap is not None:
        bound = f"{limits.conversation_bytes} bytes ('conversation_bytes')"
        if gap is Gap.TOO_MANY_ITEMS:
            bound = f"{limits.conversation_items} items ('conversation_items')"
        reason = f"the responses referred to hold more than {bound}"
        message = f"Item with id '{_shown(item_id)}' was not read: {reason}. Refer to fewer, or send the items."
        return InvalidRequest(message, param=f"input[{place}].id", code="conversation_too_long")
    return InvalidRequest(
        f"Item with id '{_shown(item_id)}' not found. Items of responses with 'store': false are not kept; "
        "send the item itself.",
        param=f"input[{place}].id",
        code="item_not_found",
    )
