"""Reading a JSON object field by field, so that each error names its parameter.

Rule 1: a field that is absent and a field that is null are the same.
Rule 2: nothing is coerced: ``"1"`` is not a number and ``1`` is not a boolean.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import TypeVar

from dwctl_trio.domain.errors import InvalidRequest

_Value = TypeVar("_Value")

_SHOWN_CHARACTERS_MAX = 100
"""Of what a client wrote, in an error that repeats it."""

_JSON_NAMES: Mapping[type, str] = {
    str: "a string",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    list: "an array",
    dict: "an object",
    type(None): "null",
}


def json_kind(value: object) -> str:
    """What *value* is in JSON's words, as in ``an array``."""
    return _JSON_NAMES.get(type(value), "something else")


def joined(names: Collection[str]) -> str:
    """The allowed values for an error message: ``'a', 'b' or 'c'``."""
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def shown_text(text: str) -> str:
    """*text* of a client's as an error repeats it: not all of it if it is long."""
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else f"{text[:_SHOWN_CHARACTERS_MAX]}…"


def wrong_type(path: str, expected: str, value: object) -> InvalidRequest:
    """The error for a field of the wrong type; an empty *path* is the whole body, which is no parameter."""
    return InvalidRequest(
        f"Invalid type for '{path or 'body'}': expected {expected}, but got {json_kind(value)} instead.",
        param=path or None,
        code="invalid_type",
    )


class Fields:
    """One JSON object of a request.

    Args:
        value: The decoded JSON; anything but an object is an error.
        path: Where it stands in the body, as in ``text.format``; empty for the body itself.
    """

    def __init__(self, value: object, path: str) -> None:
        if not isinstance(value, dict):
            raise wrong_type(path, "an object", value)
        self._values: dict[str, object] = value
        self._path = path

    def path(self, name: str) -> str:
        """The full path of field *name*."""
        return f"{self._path}.{name}" if self._path else name

    def refuse_unknown(self, known: Collection[str]) -> None:
        """Raise for the first field that is not in *known*."""
        for name in self._values:
            if name not in known:
                path = self.path(shown_text(name))
                raise InvalidRequest(f"Unknown parameter: '{path}'.", param=path, code="unknown_parameter")

    def refuse_set(self, names: Iterable[str]) -> None:
        """Raise for the first of *names* that says something: null and false say nothing."""
        for name in names:
            value = self._values.get(name)
            if value is not None and value is not False:
                path = self.path(name)
                raise InvalidRequest(
                    f"Unsupported parameter: '{path}' is not supported by this server.",
                    param=path,
                    code="unsupported_parameter",
                )

    def raw(self, name: str) -> object:
        """The field as decoded; None if absent or null."""
        return self._values.get(name)

    def require(self, name: str, read: Callable[[str], _Value | None]) -> _Value:
        """What *read* gives for *name*; raises where it is absent."""
        value = read(name)
        if value is None:
            path = self.path(name)
            raise InvalidRequest(
                f"Missing required parameter: '{path}'.", param=path, code="missing_required_parameter"
            )
        return value

    def text(self, name: str, *, length_max: int | None = None) -> str | None:
        """A string of at most *length_max* characters."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            raise wrong_type(self.path(name), "a string", value)
        if length_max is not None and len(value) > length_max:
            raise InvalidRequest(
                f"Invalid '{self.path(name)}': expected at most {length_max} characters, but got {len(value)}.",
                param=self.path(name),
                code="string_above_max_length",
            )
        return value

    def filled(self, name: str, *, length_max: int | None = None) -> str:
        """A string that must be there, and not be empty; of at most *length_max* characters."""
        text = self.require(name, partial(self.text, length_max=length_max))
        if not text:
            path = self.path(name)
            raise InvalidRequest(f"Invalid '{path}': it must not be empty.", param=path)
        return text

    def choice(self, name: str, allowed: Collection[str]) -> str | None:
        """A string out of *allowed*."""
        value = self.text(name)
        if value is not None and value not in allowed:
            raise InvalidRequest(
                f"Invalid value for '{self.path(name)}': supported values are {joined(allowed)}.",
                param=self.path(name),
                code="invalid_value",
            )
        return value

    def flag(self, name: str) -> bool | None:
        """A boolean."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, bool):
            raise wrong_type(self.path(name), "a boolean", value)
        return value

    def number(self, name: str, *, minimum: float, maximum: float) -> float | None:
        """A number within ``[minimum, maximum]``."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(self.path(name), "a number", value)
        self._check_range(name, value, minimum, maximum)
        return float(value)

    def integer(self, name: str, *, minimum: int, maximum: int | None = None) -> int | None:
        """An integer within ``[minimum, maximum]``."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(self.path(name), "an integer", value)
        self._check_range(name, value, minimum, maximum)
        return value

    def items(self, name: str) -> list[object] | None:
        """An array."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, list):
            raise wrong_type(self.path(name), "an array", value)
        return value

    def object(self, name: str) -> "Fields | None":
        """An object, to be read in turn."""
        value = self._values.get(name)
        return None if value is None else Fields(value, self.path(name))

    def names(self) -> Collection[str]:
        """The names of all fields, in the client's order."""
        return self._values.keys()

    def _check_range(self, name: str, value: float, minimum: float, maximum: float | None) -> None:
        path = self.path(name)
        if value < minimum:
            code = "integer_below_min_value" if isinstance(value, int) else "decimal_below_min_value"
            raise InvalidRequest(
                f"Invalid '{path}': expected a value >= {minimum}, but got {shown_text(repr(value))} instead.",
                param=path,
                code=code,
            )
        if maximum is not None and value > maximum:
            code = "integer_above_max_value" if isinstance(value, int) else "decimal_above_max_value"
            raise InvalidRequest(
                f"Invalid '{path}': expected a value <= {maximum}, but got {shown_text(repr(value))} instead.",
                param=path,
                code=code,
            )
