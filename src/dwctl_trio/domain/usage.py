"""Token counts of model calls, and their sum.

Rule: a count that nobody reported is None, never zero.
"""

from collections.abc import Iterable

import attrs


@attrs.frozen(kw_only=True)
class Usage:
    """What one model call, or several, consumed, as the upstream counted it."""

    input_tokens: int
    """Tokens of the prompt, cached ones included."""
    output_tokens: int
    """Tokens generated, reasoning included."""
    cached_tokens: int | None = None
    """Prompt tokens served from a cache; None when the upstream does not say."""
    reasoning_tokens: int | None = None
    """Generated tokens spent on reasoning; None when the upstream does not say."""
    cache_write_tokens: int | None = None
    """Prompt tokens put into a cache; None when the upstream does not say."""

    @property
    def total_tokens(self) -> int:
        """Prompt and output together."""
        return self.input_tokens + self.output_tokens


def add_usage(left: Usage | None, right: Usage | None) -> Usage | None:
    """The sum; an unknown operand leaves the other as it is, so addition is associative with identity None."""
    if left is None or right is None:
        return left or right
    return Usage(
        input_tokens=left.input_tokens + right.input_tokens,
        output_tokens=left.output_tokens + right.output_tokens,
        cached_tokens=_add_known(left.cached_tokens, right.cached_tokens),
        reasoning_tokens=_add_known(left.reasoning_tokens, right.reasoning_tokens),
        cache_write_tokens=_add_known(left.cache_write_tokens, right.cache_write_tokens),
    )


def total_usage(usages: Iterable[Usage | None]) -> Usage | None:
    """The sum of all known usages; None when not one is known."""
    total: Usage | None = None
    for usage in usages:
        total = add_usage(total, usage)
    return total


def _add_known(left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return right if left is None else left
    return left + right
