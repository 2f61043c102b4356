r"""JSON at the edges: strict where a client sends it, safe where we write it.

Rule 1: whatever a client's body holds, the outcome is a value or ``InvalidRequest``.
Rule 2: what passes ``decode_strict`` can be stored and sent on: no NUL, no lone surrogates, no NaN.
Rule 3: JSON that we write is one line for every reader, also for one that breaks lines as Unicode does.

Of duplicate keys the last one wins, as in every JSON library that clients use.

Source: RFC 8259; PostgreSQL documentation, "JSON Types" (``\u0000`` and surrogates); Unicode, "Replacement character".
"""

import hashlib
import re
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
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>u[dD][89a-fA-F])|.)", re.DOTALL
)
_BOM = b"\xef\xbb\xbf"
_PATH_CHARS_MAX = 200
_PATH_BODY_BYTES_MAX = 256 * 1024
"""In larger bodies the path to a NUL is not looked for: 16 MiB of it would take seconds."""
_NUL = "Keys and texts must not hold the character NUL (U+0000)."


def encode(value: object) -> bytes:
    """*value* as compact UTF-8 JSON without any kind of line break.

    Raises:
        UnicodeEncodeError: A text holds a lone surrogate; ``clean_text`` it first.
    """
    encoded = _ENCODER.encode(value)
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


def decode_strict(body: bytes, *, depth_max: int, brackets_max: int) -> object:
    """The value of a client's JSON *body*.

    Args:
        body: UTF-8 without a BOM; its length was bounded by whoever read it.
        depth_max: How many arrays and objects may lie within one another.
        brackets_max: How many opening brackets the body may hold, so that decoding it takes no seconds.

    Raises:
        InvalidRequest: It is not JSON, too deep, or holds a NUL, a lone surrogate or a number beyond a double.
    """
    message: str | None = None
    value: object = None
    brackets = body.count(b"[") + body.count(b"{")
    if brackets > brackets_max:
        raise InvalidRequest(
            f"The body holds too many arrays and objects: at most {brackets_max} are allowed.", code="invalid_json"
        )
    try:
        value = _DECODER.decode(body)
    except RecursionError:
        message = _too_deep(depth_max)
    except UnicodeDecodeError:
        message = "The body must be UTF-8."
    except msgspec.DecodeError as error:
        message = _explain(body, error)
    if message is not None:  # raised here, so that no exception in the chain holds the body
        raise InvalidRequest(message, code="invalid_json")
    may_be_deep = brackets > depth_max
    may_have_nul = b"\\u0000" in body
    if may_be_deep or may_have_nul:
        _check_tree(value, depth_max, names_path=len(body) <= _PATH_BODY_BYTES_MAX)
    return value


def _explain(body: bytes, error: msgspec.DecodeError) -> str:
    """Why *body* is not JSON, in words that help its author."""
    if not body.strip():
        return "The body is empty; it must be a JSON object."
    if body.startswith(_BOM):
        return "The body must not begin with a byte order mark."
    if len(body) <= _PATH_BODY_BYTES_MAX and any(found["lone"] for found in _ESCAPE.finditer(body)):
        return "The body holds half of a UTF-16 surrogate pair; such escapes come in pairs only."
    if "out of range" in str(error):
        return "The body holds a number that is out of range."
    return f"The body is not valid JSON: {str(error).removeprefix('JSON is malformed: ')}."


def _too_deep(depth_max: int) -> str:
    return f"The body is nested too deeply; at most {depth_max} levels are allowed."


def _check_tree(root: object, depth_max: int, *, names_path: bool) -> None:
    """Refuse what lies too deep and texts with a NUL; level by level, so that depth costs no recursion."""
    level: list[Any] = [root]
    depth = 1
    while level := [value for value in level if isinstance(value, dict | list) or _is_nul_text(value)]:
        below: list[Any] = []
        for value in level:
            if isinstance(value, str):
                raise InvalidRequest(_NUL, param=_path_to_nul(root) if names_path else None)
            if depth > depth_max:
                raise InvalidRequest(_too_deep(depth_max), code="invalid_json")
            if isinstance(value, dict):
                if any(map(_is_nul_text, value)):
                    raise InvalidRequest(_NUL, param=_path_to_nul(root) if names_path else None)
                below.extend(value.values())
            else:
                below.extend(value)
        level = below
        depth += 1


def _is_nul_text(value: object) -> bool:
    return isinstance(value, str) and "\0" in value


def _path_to_nul(root: object) -> str | None:
    """Where the first text with a NUL is, as in ``input[0].content``; None when the path would be too long."""
    path = "".join(_segments_to_nul(root) or ()).removeprefix(".")
    return path if 0 < len(path) <= _PATH_CHARS_MAX else None


def _segments_to_nul(value: object) -> list[str] | None:
    if isinstance(value, str):
        return [] if "\0" in value else None
    if isinstance(value, dict):
        if any(map(_is_nul_text, value)):
            return []  # the key cannot be shown; its object can
        children = ((f".{key}", child) for key, child in value.items())
    elif isinstance(value, list):
        children = ((f"[{index}]", child) for index, child in enumerate(value))
    else:
        return None
    for segment, child in children:
        below = _segments_to_nul(child)
        if below is not None:
            return [segment, *below]
    return None
