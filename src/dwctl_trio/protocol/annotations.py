"""What a text refers to: from an upstream's annotations to OpenAI's four kinds, and back from our own rows.

Rule 1: everywhere between reading and writing, an annotation is one JSON text with the fields of its kind only.
Rule 2: what is malformed, or of no kind that clients know, is left out; it never costs the answer.

Source: OpenAI Chat Completions API reference, "The chat completion object", ``annotations``; OpenAI Python SDK,
``ResponseOutputText.annotations``; observed: OpenRouter, which adds members and repeats annotations.
"""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec

from dwctl_trio.protocol import json
from dwctl_trio.protocol.json import clean_text

_Place: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
"""Of a character in the text, or of a file in a list."""


class _UrlCitation(msgspec.Struct, tag="url_citation", kw_only=True):
    url: str
    title: str = ""
    """Empty where the upstream has none: clients need a text."""
    start_index: _Place
    end_index: _Place


class _FileCitation(msgspec.Struct, tag="file_citation"):
    file_id: str
    filename: str
    index: _Place


class _ContainerFileCitation(msgspec.Struct, tag="container_file_citation"):
    container_id: str
    file_id: str
    filename: str
    start_index: _Place
    end_index: _Place


class _FilePath(msgspec.Struct, tag="file_path"):
    file_id: str
    index: _Place


_Annotation: TypeAlias = _UrlCitation | _FileCitation | _ContainerFileCitation | _FilePath


def read_annotations(value: object) -> list[bytes]:
    """The annotations in the ``annotations`` of an upstream's delta or message."""
    if not isinstance(value, list):
        return []
    return [annotation for annotation in map(_read_annotation, value) if annotation is not None]


def parse_annotation(rendered: object) -> bytes:
    """The annotation that ``render_annotations`` wrote."""
    return json.encode(msgspec.convert(rendered, _Annotation))


def parse_annotations(rendered: Iterable[Any] | None) -> tuple[bytes, ...]:
    """Those that ``render_annotations`` wrote."""
    return tuple(map(parse_annotation, rendered or ()))


def render_annotations(annotations: Sequence[bytes]) -> list[msgspec.Raw]:
    """As a part shows them."""
    return [msgspec.Raw(annotation) for annotation in annotations]


def _read_annotation(value: object) -> bytes | None:
    """One annotation, be its fields its own members or, as chat completions have it, in one that is named like it."""
    if not isinstance(value, dict):
        return None
    kind = value.get("type")
    inner = value.get(kind) if isinstance(kind, str) else None
    fields = {**inner, "type": kind} if isinstance(inner, dict) else value
    cleaned = {name: clean_text(field) if isinstance(field, str) else field for name, field in fields.items()}
    try:
        return parse_annotation({name: field for name, field in cleaned.items() if field is not None})
    except msgspec.ValidationError:
        return None
