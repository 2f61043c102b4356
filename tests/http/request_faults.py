"""Every way to break a valid body of ``POST /v1/responses`` once.

Rule: a fault is one change of a valid body, and names the parameter that the error must name.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import attrs
from tests.http.request_grammar import (
    Choice,
    Flag,
    ListOf,
    Node,
    Number,
    ObjectOf,
    Offered,
    OneOf,
    Pairs,
    Refused,
    Tagged,
    Text,
)

LEFT_OUT = None
"""For a value that is missing."""


@attrs.frozen
class Fault:
    """One thing wrong with a valid body."""

    place: tuple[str | int, ...]
    """Which value; the last step may lead to one that is not there yet."""
    token: bytes | None
    """The JSON that stands there instead; ``LEFT_OUT``: nothing does."""
    param: str | None
    """What the error must name; None where the body is not JSON any more."""


_KINDS: tuple[tuple[str, bytes], ...] = (
    ("null", b"null"), ("flag", b"true"), ("flag", b"false"), ("whole", b"0"), ("whole", b"-1"), ("whole", b"1" * 30),
    ("whole", b"-0"), ("fraction", b"0.5"), ("fraction", b"1e2"), ("fraction", b"16.0"), ("fraction", b"1e-400"),
    ("text", b'""'), ("text", b'"x"'), ("text", b'"1"'), ("text", b'"true"'), ("text", b'"null"'), ("array", b"[]"),
    ("array", b"[null]"), ("array", b"[[]]"), ("array", b'["x"]'), ("object", b"{}"), ("object", b'{"x": 1}'),
)  # fmt: skip
_REFUSED = (b"false", b"true", b"0", b"-0.0", b'""', b'"x"', b"[]", b"[1]", b"{}", b'{"x": 1}', b'"\\u0000"')
"""The first one is no fault where it says the same as null."""
_NUMBERS_BEYOND = (b"1e400", b"-1e400", b"1" * 5000, b"-" + b"9" * 4301, b"0.5e99999")
_TEXTS_BEYOND = (b'"\\u0000"', b'"a\\u0000b"', b'"\\ud800"', b'"\\udc00 x"', b'"\\udc00\\ud800"', b'"\\\\\\udbff"')
_NOT_JSON = (
    b"NaN", b"Infinity", b"-Infinity", b"016", b"+1", b".5", b"1.", b"0x10", b"1_000", b"1e", b"--1", b"1 2",
    "\u0661".encode(), b"'x'", b"undefined", b"None", b"True", b"TRUE", b'"a\x01b"', b'"a\nb"', b'"\\x41"', b'"\\u12"',
    b'"abc', b'"\\"', b"[1,]", b"[1 2]", b"[1", b"1]", b'{"a": 1,}', b'{"a" 1}', b"{a: 1}", b'{"a"}', b"{1: 2}", b"{,}",
    b"/* */ 1", b"1 // x\n", b"", b",", b'"\xff"', b'"\xc0\xaf"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"',
    b'"\xe2\x82"', b'"\xed\xa0\xbd\xed\xb8\x80"', b'"\xf8\x88\x80\x80\x80"', b"\xa0", b"\x00", b'"a\x00b"',
    b"\xef\xbb\xbf1",
)  # fmt: skip
_ODD_NAMES = (
    "odd", "", "a.b", "a[0]", "ключ", "😀", "__proto__", "\u2028", '"', "\\", "'", " model", "MODEL", "x" * 100, "null",
)  # fmt: skip
_LONG_NAME = "x" * 5000
_NAME_SHOWN = "x" * 100 + "…"


def faults(node: Node, value: Any, path: str = "", place: tuple[str | int, ...] = ()) -> Iterator[Fault]:
    """Everything that can be wrong at or below *place*, where the valid *value* of *node* stands."""
    if isinstance(node, Refused):
        yield from (Fault(place, token, path) for token in _REFUSED[node.takes_false :])
        return
    if place:
        for kind, token in _KINDS:
            if kind not in _kinds_of(node) and kind != "null":
                yield Fault(place, token, path)
        broken = _NOT_JSON[sum(path.encode()) % len(_NOT_JSON) :][:2]
        yield from (Fault(place, token, None) for token in broken)
    if isinstance(node, OneOf):
        (node,) = [one for one in node.nodes if _kind_of_value(value) in _kinds_of(one)]
    yield from (Fault(place, token, path) for token in _wrong_values(node))
    match node:
        case ListOf(element):
            for index, item in enumerate(value):
                yield from faults(element, item, f"{path}[{index}]", (*place, index))
            end = f"{path}[{len(value)}]"
            unfit = [token for kind, token in _KINDS if kind not in _kinds_of(element)]
            yield from (Fault((*place, len(value)), token, end) for token in unfit)
            yield from _faults_of_names(node, value, path, place)
        case ObjectOf(None):
            yield from _faults_of_anything(path, place)
        case ObjectOf(fields, required) if fields is not None:
            yield from _faults_of_object(fields, required, value, path, place)
        case Tagged(kinds, default):
            tag = value.get("type") or default
            assert tag is not None
            known = kinds[tag].fields
            if known is not None:
                fields = {**known, "type": Choice(tuple(kinds))}
                required = kinds[tag].required | ({"type"} if default is None else set())
                yield from _faults_of_object(fields, required, value, path, place)
        case Pairs():
            yield from _faults_of_pairs(value, path, place)


def _kinds_of(node: Node) -> frozenset[str]:
    match node:
        case Text() | Choice() | Offered():
            return frozenset({"text"})
        case Flag():
            return frozenset({"flag"})
        case Number(is_whole=is_whole):
            return frozenset({"whole"} if is_whole else {"whole", "fraction"})
        case ListOf():
            return frozenset({"array"})
        case OneOf(nodes):
            return frozenset().union(*map(_kinds_of, nodes))
        case ObjectOf() | Tagged() | Pairs():
            return frozenset({"object"})
        case Refused():
            return frozenset({"null"})


def _wrong_values(node: Node) -> Iterator[bytes]:
    """Values of the right kind that are refused."""
    match node:
        case Text(characters_max, wrong):
            yield from _TEXTS_BEYOND
            yield from (json.dumps(text).encode() for text in wrong)
            if characters_max is not None:
                yield from (json.dumps(char * (characters_max + 1)).encode() for char in "x😀")
                yield b'"' + b"x" * 100_000 + b'"'
        case Choice(values):
            near = (
                values[0].upper() + "!",
                f"{values[0]} ",
                f" {values[-1]}",
                values[0][:-1] + "\u0131",
                "",
                "nonsense",
            )
            yield from (json.dumps(text).encode() for text in near if text not in values)
            yield from _TEXTS_BEYOND
        case Number(low, high):
            yield from _NUMBERS_BEYOND
            yield from (json.dumps(number).encode() for number in (low - 1, -(10**30), -(10**300), -(2**63)))
            if high is not None:
                yield from (json.dumps(number).encode() for number in (high + 1, 10**30, 2**63, 2**64, 10**300))
            if not node.is_whole:
                yield from (json.dumps(number).encode() for number in (low - 1e-9, (high or 0) + 1e-9, 1e308, -1e308))
        case ListOf(is_filled=is_filled, too_many=too_many):
            yield from (b"[]",) if is_filled else ()
            yield from (too_many.encode(),) if too_many is not None else ()
        case Offered():
            yield from _TEXTS_BEYOND
            yield from (b'""', b'"a b"', b'"*"', b'"' + b"x" * 129 + b'"')


def _kind_of_value(value: Any) -> str:
    return {str: "text", list: "array", dict: "object"}[type(value)]


def _faults_of_names(node: ListOf, value: list[Any], path: str, place: tuple[str | int, ...]) -> Iterator[Fault]:
    """A name that an earlier element has."""
    # The names in a namespace are others than those outside, and its own is nobody else's.
    is_own = [node.is_named and "name" in element and element["type"] != "namespace" for element in value]
    named = [index for index, taken in enumerate(is_own) if taken]
    for index in named[1:]:
        earlier = json.dumps(value[named[0]]["name"]).encode()
        yield Fault((*place, index, "name"), earlier, f"{path}[{index}].name")


def _faults_of_object(
    fields: Mapping[str, Node], required: frozenset[str] | set[str], value: Any, path: str, place: tuple[str | int, ...]
) -> Iterator[Fault]:
    def path_of(name: str) -> str:
        return f"{path}.{name}" if path else name

    names = _ODD_NAMES if not place else _ODD_NAMES[:1]
    yield from (Fault((*place, name), b"1", path_of(name)) for name in names if name not in fields)
    yield Fault((*place, "Other"), b"null", path_of("Other"))
    yield Fault((*place, _LONG_NAME), b"1", path_of(_NAME_SHOWN))
    yield from (Fault((*place, name), b"1", path or None) for name in ("a\0", "\ud800", "a\udfff"))
    for name in sorted(required & set(fields)):
        yield Fault((*place, name), LEFT_OUT, path_of(name))
        yield Fault((*place, name), b"null", path_of(name))
    for name, node in fields.items():
        if isinstance(node, Refused):
            yield from faults(node, None, path_of(name), (*place, name))
        elif value.get(name) is not None:
            if isinstance(node, Offered):
                yield Fault((*place, name), b'"nobodys"', node.param)
            yield from faults(node, value[name], path_of(name), (*place, name))
            wrong = b"1" if "whole" not in _kinds_of(node) else b'"1"'
            again = json.dumps(value[name]).encode() + b", " + json.dumps(name).encode() + b": " + wrong
            yield Fault((*place, name), again, path_of(name))  # of a key that stands twice, the last one counts


def _faults_of_pairs(value: Mapping[str, str], path: str, place: tuple[str | int, ...]) -> Iterator[Fault]:
    for name in (*value, "k.l[0]", "😀", "x" * 64) if len(value) < 16 else tuple(value):
        unfit = [token for kind, token in _KINDS if kind != "text"]
        long = json.dumps("v" * 513).encode()
        yield from (Fault((*place, name), token, f"{path}.{name}") for token in (*unfit, long, *_TEXTS_BEYOND))
    yield from (Fault((*place, name), b'""', path) for name in ("x" * 65, "😀" * 65, _LONG_NAME, "a\0", "\ud800"))
    many = {f"k{index}": "v" for index in range(17)}
    yield Fault(place, json.dumps(many).encode(), path)


def _faults_of_anything(path: str, place: tuple[str | int, ...]) -> Iterator[Fault]:
    """Within what is not looked at, all that cannot be kept is refused still."""
    for token in _TEXTS_BEYOND:
        yield Fault((*place, "deep"), b'{"list": [1, ' + token + b"]}", f"{path}.deep.list[1]")
    yield Fault((*place, "deep"), b'{"a\\u0000": 1}', f"{path}.deep")
    yield Fault((*place, "deep"), b"[1e400]", f"{path}.deep[0]")


_MARK = "7c1e the value that is wrong 7c1e"


def spoil(body: Any, fault: Fault) -> bytes:
    """The JSON of *body* with *fault* in it."""
    body = json.loads(json.dumps(body))
    inner, last = body, fault.place[-1]
    for step in fault.place[:-1]:
        inner = inner[step]
    if fault.token is LEFT_OUT:
        del inner[last]
        return json.dumps(body).encode()
    if isinstance(inner, list) and last == len(inner):
        inner.append(_MARK)
    else:
        inner[last] = _MARK
    return json.dumps(body).encode().replace(f'"{_MARK}"'.encode(), fault.token)
