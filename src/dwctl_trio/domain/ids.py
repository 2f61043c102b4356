"""Identities: how a response, a step and an item are named.

Rule 1: ids are made where a response begins (the engine) and only derived here.
Rule 2: an item's id follows from its step and its place in it, so a resumed response names it as before; that of an
input item which came without one, from its response and its place in the input.
"""

import re
from uuid import UUID

RESPONSE_ID_PREFIX = "resp_"
_ITEM_ID = re.compile(r"[a-z]+_([0-9a-f]{32})[0-9a-f]{1,8}")
_RESPONSE_ID = re.compile(r"resp_([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")


def response_id_text(response_id: UUID) -> str:
    """The id as clients see it: ``resp_<uuid>``."""
    return f"{RESPONSE_ID_PREFIX}{response_id}"


def parse_response_id(text: str) -> UUID | None:
    """The uuid inside *text*, or None where it is not an id of ours in its one canonical spelling."""
    found = _RESPONSE_ID.fullmatch(text)
    return UUID(found[1]) if found else None


def item_id(prefix: str, maker_id: UUID, position: int) -> str:
    """The id of an item, as in ``msg_<32 hex><position>``.

    Args:
        prefix: Of the item's type.
        maker_id: The step that produced it; of an input item, the response that was asked.
        position: Among the items of that step, or of that input, from 0.
    """
    return f"{prefix}_{maker_id.hex}{position:x}"


def parse_item_id(text: str) -> UUID | None:
    """The step, or the response, that the item *text* belongs to; None where it is not an id of ours."""
    maker = item_maker(text)
    return None if maker is None else UUID(maker)


def item_maker(text: str) -> str | None:
    """As ``parse_item_id``, in 32 hexadecimal digits: what items of the same step or response have in common."""
    found = _ITEM_ID.fullmatch(text)
    return found[1] if found else None


def synthetic_call_id(step_id: UUID, position: int) -> str:
    """The call id for a tool call that the upstream left nameless; stable for the step and the call's place."""
    return f"call_{step_id.hex}{position:x}"
