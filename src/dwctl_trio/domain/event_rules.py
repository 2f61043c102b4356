"""The rules of an event stream, by name, and what it is to break one.

Rule: a rule is said here and checked in ``domain/event_grammar.py``; a violation names exactly one.

Source: the documents named in ``domain/event_grammar.py``.
"""

from enum import StrEnum

import attrs


class Rule(StrEnum):
    """The rules of a stream, by name."""

    NUMBERS = "numbers"
    """Sequence numbers are 0, 1, 2, … without gap or repeat."""
    STREAM_ORDER = "stream_order"
    """Created, queued if it waits, in progress once, the items, one terminal event, nothing."""
    SNAPSHOT = "snapshot"
    """A snapshot before the end has the status of its event and nothing of the outcome."""
    IDENTITY = "identity"
    """Every snapshot has the id, the creation time, the request and the tools of the first."""
    ITEM_ADDED = "item_added"
    """An item is added at the next output index, under a new id, in progress and empty; a call knows its name."""
    ITEM_ADDRESS = "item_address"
    """An event of an item names an output index that exists and the id that was added there."""
    ITEM_ORDER = "item_order"
    """Within an item: part added, deltas and annotations, content done, part done, next part; or arguments, their end,
    and the outcome if the server ran the call; at last item done, then nothing."""
    PART_ADDED = "part_added"
    """A part is added at the next content index, empty, and of a kind that fits its item."""
    DELTA = "delta"
    """A delta is not empty, and is of the kind and the index of the open part; only text has log probabilities."""
    ANNOTATION = "annotation"
    """An annotation is added to the open part, which is text, at the next annotation index."""
    DONE = "done"
    """What a done event repeats (kind, text, log probabilities, part, name and arguments) is what the events before it
    added up to."""
    ITEM_DONE = "item_done"
    """A done item is the added one with its parts, in a final status; a completed one is not empty, and a call that
    the server ran has the outcome that was said of it."""
    SUB_AGENT = "sub_agent"
    """An event of a sub-agent names a call that is running at that moment, by item and tool."""
    OPEN_ITEM = "open_item"
    """No item is open at the end."""
    OUTPUT = "output"
    """The output of the final response is the done items in order."""
    OUTCOME = "outcome"
    """Status, error, reason and completion time fit the terminal event and one another."""
    ITEM_OUTCOME = "item_outcome"
    """A completed response has no incomplete item but calls that the server could not or would not run, unless it was
    queued: a dead attempt may have left one."""
    ENDING = "ending"
    """A stream has a terminal event."""


@attrs.frozen(kw_only=True)
class Violation:
    """The first place where a stream breaks a rule."""

    index: int
    """Place in the stream, from 0; the length of the stream when something is missing at its end."""
    sequence_number: int | None
    """The number that the event carried; None when something is missing at the end."""
    rule: Rule
    message: str
    """The event's class and what is wrong with it; holds no text of the model."""


class RuleBroken(Exception):
    """A rule does not hold; ``StreamChecker`` turns it into a ``Violation``, nobody else sees it."""

    def __init__(self, rule: Rule, message: str) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message


def require(holds: bool, rule: Rule, message: str) -> None:
    """Raise ``RuleBroken`` unless *rule* holds."""
    if not holds:
        raise RuleBroken(rule, message)
