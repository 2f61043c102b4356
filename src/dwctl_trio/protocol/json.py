r"""JSON at the edges: strict where a client sends it, safe where we write it.

Rule 1: whatever a client's body holds, the outcome is a value or ``InvalidRequest``.
Rule 2: what passes ``decode_strict`` can be stored and sent on: no NUL, no lone surrogates, no NaN.
Rule 3: JSON that we write is one line for every reader, also for one that breaks lines as Unicode does.

Of duplicate keys the last one wins, as in every JSON library that clients use.

Source: RFC 8259; PostgreSQL documentation, "JSON Types" (``\u0000`` and surrogates); Unicode, "Replacement character".
"""

import hashlib
import math
import re
from collections.abc import Callable
from json import loads
from typing import Any

import msgspec

from dwctl_trio.domain.errors import InvalidRequest

_ENCODER = msgspec.json.Encoder()
_CANONICAL_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder()

_UNICODE_LINE_ENDS = (
    (b"\xc2\x85", b"\\u0085"),
    (b"\xe2\x80\xa8", b"\\u2028"),
    (b"\xe2\x80\xa9", b"\\u2029"),
)
_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_BOM = b"\xef\xbb\xbf"
_PATH_CHARS_MAX = 200
_PATH_BODY_BYTES_MAX = 256 * 1024
"""In larger bodies the path to what cannot be kept is not looked for: 16 MiB of it would take seconds."""
_HALF_PAIR = "Keys and texts must not hold half of a UTF-16 surrogate pair; such escapes come in pairs only."
_NUL = "Keys and texts must not hold the character NUL (U+0000)."


def encode(value: object) -> bytes:
    """*value* as compact UTF-8 JSON without any kind of line break.

    Raises:
        UnicodeEncodeError: A text holds a lone surrogate; ``clean_text`` it first.
    """
    return escape_line_ends(_ENCODER.encode(value))


def encode_unescaped(value: object) -> bytes:
    """As ``encode``, but for the line ends of Unicode: ``escape_line_ends`` what it becomes a part of.

    Raises:
        UnicodeEncodeError: As there.
    """
    return _ENCODER.encode(value)


def one_line(text: bytes) -> bytes:
    """*text*, which is JSON as somebody else wrote it, without any kind of line break; its value is the same."""
    if b"\n" in text or b"\r" in text:  # between tokens: JSON allows neither within a text
        text = text.replace(b"\r", b" ").replace(b"\n", b" ")
    return escape_line_ends(text)


def escape_line_ends(encoded: bytes) -> bytes:
    """*encoded*, which is JSON, or lines of ASCII with JSON in them, without those line ends that only Unicode has."""
    if encoded.isascii():
        return encoded
    for raw, escaped in _UNICODE_LINE_ENDS:
        if raw in encoded:
            encoded = encoded.replace(raw, escaped)
    return encoded


def digest(value: object) -> bytes:
    """The SHA-256 of *value* as JSON, the same for whatever order of keys and blanks it came with.

    Raises:
        UnicodeEncodeError: A text holds a lone surrogate.
    """
    return hashlib.sha256(_CANONICAL_ENCODER.encode(value)).digest()


def clean_text(text: str) -> str:
    """*text* with U+FFFD for every NUL and lone surrogate: models write them, PostgreSQL refuses them."""
    if "\0" not in text and text.isascii():
        return text
    return _UNSTORABLE.sub("�", text)


def decode_strict(body: bytes | bytearray, *, depth_max: int, brackets_max: int) -> object:
    """The value of a client's JSON *body*.

    Args:
        body: UTF-8 without a BOM; its length was bounded by whoever read it.
        depth_max: How many arrays and objects may lie within one another.
        brackets_max: How many opening brackets the body may hold, so that decoding it takes no seconds.

    Raises:
        InvalidRequest: It is not JSON, too deep, or holds a NUL, a lone surrogate or a number beyond a double.
    """
    refusal: InvalidRequest | None = None
    value: object = None
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > brackets_max:
        raise InvalidRequest(
            f"The body holds too many arrays and objects: at most {brackets_max} are allowed.", code="invalid_json"
        )
    try:
        value = _DECODER.decode(body)
    except RecursionError:
        refusal = InvalidRequest(_too_deep(depth_max), code="invalid_json")
    except (UnicodeDecodeError, msgspec.DecodeError) as error:
        refusal = _explain(body, error)
    if refusal is not None:  # raised here, so that no exception in the chain holds the body
        raise refusal
    may_be_deep = brackets > depth_max
    may_have_nul = b"\\u0000" in body
    if may_be_deep or may_have_nul:
        _check_tree(value, depth_max, names_path=len(body) <= _PATH_BODY_BYTES_MAX)
    return value


def _explain(body: bytes | bytearray, error: Exception) -> InvalidRequest:
    """Why *body* cannot be decoded, in words that help its author, and where if it is JSON all the same."""
    if not body.strip():
        return InvalidRequest("The body is empty; it must be a JSON object.", code="invalid_json")
    if body.startswith(_BOM):
        return InvalidRequest("The body must not begin with a byte order mark.", code="invalid_json")
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return InvalidRequest("The body must be UTF-8.", code="invalid_json")
    decoded = _decode_loosely(text) if len(body) <= _PATH_BODY_BYTES_MAX else None
    half_pair = _first_bad(decoded, _is_half_pair)
    if half_pair is not None:
        return InvalidRequest(_HALF_PAIR, param=half_pair[0] or None)
    if "out of range" in str(error):
        message = "The body holds a number that is out of range: use one that a double can hold."
        param = _path_to(decoded, _is_beyond_double)
        return InvalidRequest(message, param=param, code="invalid_value" if param else "invalid_json")
    reason = str(error).removeprefix("JSON is malformed: ")
    return InvalidRequest(f"The body is not valid JSON: {reason}.", code="invalid_json")


def _decode_loosely(text: str) -> object:
    """The value of *text*, half pairs and numbers beyond a double included; None if it is not JSON."""
    try:
        return loads(text, parse_int=_parse_integer, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _parse_integer(digits: str) -> float:
    try:
        return int(digits)
    except ValueError:  # thousands of digits
        return math.inf


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def _too_deep(depth_max: int) -> str:
    return f"The body is nested too deeply; at most {depth_max} levels are allowed."


def _check_tree(root: object, depth_max: int, *, names_path: bool) -> None:
    """Refuse what lies too deep and texts with a NUL; level by level, so that depth costs no recursion."""
    level: list[Any] = [root]
    depth = 1
    while level := [value for value in level if isinstance(value, dict | list) or _is_nul_text(value)]:
        below: list[Any] = []
        for value in level:
            is_nul = _is_nul_text(value) or (isinstance(value, dict) and any(map(_is_nul_text, value)))
            if is_nul:
                raise InvalidRequest(_NUL, param=_path_to(root, _is_nul_text) if names_path else None)
            if depth > depth_max:
                raise InvalidRequest(_too_deep(depth_max), code="invalid_json")
            below.extend(value.values() if isinstance(value, dict) else value)
        level = below
        depth += 1


def _is_nul_text(value: object) -> bool:
    return isinstance(value, str) and "\0" in value


def _is_half_pair(value: object) -> bool:
    return isinstance(value, str) and _SURROGATE.search(value) is not None


def _is_beyond_double(value: object) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _path_to(root: object, is_bad: Callable[[object], bool]) -> str | None:
    """Where the first bad value is, as in ``input[0].content``; None if it has no path, or one that is too long.

    A bad key cannot be shown; its object can.
    """
    found = _first_bad(root, is_bad)
    return found[0] or None if found else None


def _first_bad(root: object, is_bad: Callable[[object], bool]) -> tuple[str | None] | None:
    """The path of the first bad key or value, None in it where it is too long; None if all are good."""
    ahead: list[tuple[object, str | None]] = [(root, "")]  # a stack of our own: a body may be deeper than Python's
    while ahead:
        value, path = ahead.pop()
        if isinstance(value, dict):
            if any(map(is_bad, value)):
                return (path,)
            ahead.extend((child, _extended(path, f".{key}" if path else key)) for key, child in reversed(value.items()))
        elif isinstance(value, list):
            last = len(value) - 1
            ahead.extend((child, _extended(path, f"[{last - back}]")) for back, child in enumerate(reversed(value)))
        elif is_bad(value):
            return (path,)
    return None


def _extended(path: str | None, segment: str) -> str | None:
    return None if path is None or len(path) + len(segment) > _PATH_CHARS_MAX else path + segment
