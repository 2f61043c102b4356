"""W3C Trace Context: the headers that join the work of several services in one trace.

Rule 1: what is malformed is as good as absent, never an error; a malformed ``tracestate`` leaves ``traceparent`` alone.
Rule 2: what is sent on is written anew from what was understood, so no other text of a client can travel with it.

Source: W3C, "Trace Context" (level 1) and "Trace Context Level 2", sections 3.2, 3.3 and 4.3.
"""

import re
from collections.abc import Sequence

import attrs

TRACESTATE_CHARACTERS_MAX = 512
"""What everybody has to propagate at least (section 3.3.1.5), so nobody may count on more; a longer one is dropped."""

_TRACESTATE_MEMBERS_MAX = 32
_FLAGS_KNOWN = 0b11
"""Sampled, and random trace id; all others must be sent as zero."""
_HIGHEST_KNOWN_VERSION = "00"
_VERSION_FORBIDDEN = "ff"
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x7e]{0,455})?")
_MEMBER = re.compile(
    r"([a-z0-9][a-z0-9_*/@-]{0,255})=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
)
_ZERO = re.compile("0+")


@attrs.frozen(kw_only=True)
class TraceContext:
    """A place in a trace: what is called from here belongs below it."""

    trace_id: str
    """32 hexadecimal digits in lower case, not all 0."""
    span_id: str
    """16 of them, not all 0."""
    flags: int
    """Bit 0: sampled. Bit 1: the trace id is random."""
    tracestate: str | None = None
    """What vendors of tracing keep for themselves; at most ``TRACESTATE_CHARACTERS_MAX``."""
    is_remote: bool = False
    """Whether it came from another process."""


def parse_trace_context(traceparents: Sequence[str], tracestates: Sequence[str]) -> TraceContext | None:
    """The place in a trace that a request names.

    Args:
        traceparents: The values of all its ``traceparent`` headers; more than one count as none.
        tracestates: The values of all its ``tracestate`` headers, in order.

    Returns:
        None if there is none, or none that is well-formed.
    """
    if len(traceparents) != 1:
        return None
    found = _TRACEPARENT.fullmatch(traceparents[0])
    if found is None:
        return None
    version, trace_id, span_id, flags, more = found.groups()
    if version == _VERSION_FORBIDDEN or (version == _HIGHEST_KNOWN_VERSION and more is not None):
        return None
    if _ZERO.fullmatch(trace_id) or _ZERO.fullmatch(span_id):
        return None
    return TraceContext(
        trace_id=trace_id,
        span_id=span_id,
        flags=int(flags, 16) & _FLAGS_KNOWN,
        tracestate=_parse_tracestate(tracestates),
        is_remote=True,
    )


def render_trace_context(context: TraceContext) -> list[tuple[str, str]]:
    """The headers that carry *context* to whoever is called."""
    headers = [("traceparent", f"{_HIGHEST_KNOWN_VERSION}-{context.trace_id}-{context.span_id}-{context.flags:02x}")]
    if context.tracestate is not None:
        headers.append(("tracestate", context.tracestate))
    return headers


def _parse_tracestate(values: Sequence[str]) -> str | None:
    """All members in one value; None if there are none, too many, or any that is malformed or stands twice."""
    if sum(map(len, values)) + len(values) - 1 > TRACESTATE_CHARACTERS_MAX:
        return None
    members = [member.strip(" \t") for value in values for member in value.split(",")]
    matches = [_MEMBER.fullmatch(member) for member in members if member]
    keys = {found[1] for found in matches if found is not None}
    if not 0 < len(keys) == len(matches) <= _TRACESTATE_MEMBERS_MAX:
        return None
    return ",".join(found[0] for found in matches if found is not None)
