"""One mapping of a YAML document, read strictly, with errors that name the key.

Rule 1: an error says which key, which value, and what is allowed.
Rule 2: a value that may be a secret, and a whole list or mapping, which may hold one, is never shown.
Rule 3: a key without a value (null) is a key that is not there.
"""

import difflib
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

_SHOWN_CHARACTERS_MAX = 200
_PRICE_MAX = 1_000_000
_PRICE_DECIMALS_MAX = 12
_SECONDS_MAX = 86400


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key."""


class Section:
    """One mapping of the document.

    Args:
        values: As decoded from YAML; None stands for an empty mapping.
        path: Where it stands, as in ``upstreams.local``; empty for the whole document.
    """

    def __init__(self, values: object, path: str) -> None:
        if values is None:
            values = {}
        if not isinstance(values, dict):
            raise ConfigError(f"{path or 'document'}: expected a mapping of keys, but got {describe_kind(values)}")
        self._values = values
        self._path = path

    def key(self, name: str) -> str:
        """The full path of *name*."""
        return f"{self._path}.{name}" if self._path else name

    def fail(self, name: str, problem: str) -> NoReturn:
        """Raise for key *name*."""
        raise ConfigError(f"{self.key(name)}: {problem}")

    def get(self, name: str) -> Any:
        """The value as decoded; None if absent."""
        return self._values.get(name)

    def names(self) -> list[str]:
        """All keys, in the order of the document."""
        for name in self._values:
            if not isinstance(name, str):
                raise ConfigError(f"{self.key(str(name))}: a key must be a string")
        return list(self._values)

    def refuse_unknown(self, known: tuple[str, ...]) -> None:
        """Raise for the first key that is not in *known*, with the nearest that is."""
        for name in self.names():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {self.key(near[0])!r}?" if near else f"known keys: {', '.join(sorted(known))}"
                self.fail(name, f"unknown key; {hint}")

    def section(self, name: str) -> "Section":
        """The mapping under *name*; an empty one if absent."""
        return Section(self._values.get(name), self.key(name))

    def items(self, name: str, noun: str = "a list") -> list[Any]:
        """A list; an empty one if absent."""
        value = self._values.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(name, f"expected {noun}, but got {show(value)}")
        return value

    def words(self, name: str, noun: str) -> tuple[str, ...]:
        """A list of strings, none of them twice; an empty one if absent."""
        values = self.items(name, f"a list of {noun}")
        for value in values:
            if not isinstance(value, str):
                self.fail(name, f"expected a list of {noun}, each a string")
            if values.count(value) > 1:
                self.fail(name, f"{show(value)} stands twice")
        return tuple(values)

    def optional_text(self, name: str) -> str | None:
        """A string; None if absent."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            self.fail(name, f"expected a string, but got {show(value)}")
        return value

    def optional_secret(self, name: str) -> str | None:
        """A string that fits into an HTTP header; None if absent or empty; never shown in an error."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str):
            self.fail(name, f"expected a string, but got {describe_kind(value)}; put it in quotes")
        if not (value.isascii() and value.isprintable()):
            self.fail(name, "expected printable ASCII characters only; is there a line break at its end?")
        return value or None

    def text(self, name: str, default: str | None = None) -> str:
        """A string that is not empty; required unless there is a default."""
        value = self.optional_text(name)
        if value is None:
            if default is None:
                self.fail(name, "is required")
            return default
        if not value.strip():
            self.fail(name, "must not be empty")
        return value

    def choice(self, name: str, default: str | None, allowed: tuple[str, ...]) -> str:
        """A string out of *allowed*; required unless there is a default."""
        value = self.text(name, default)
        if value not in allowed:
            self.fail(name, f"{show(value)} is not allowed; allowed: {', '.join(allowed)}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fail(name, f"expected true or false, but got {show(value)}")
        return value

    def integer(self, name: str, default: int, *, minimum: int, maximum: int) -> int:
        """An integer within ``[minimum, maximum]``."""
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            self.fail(name, f"expected an integer from {minimum} to {maximum}, but got {show(value)}")
        return value

    def seconds(self, name: str) -> float | None:
        """Seconds above 0, up to a day; None if absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _SECONDS_MAX:
            self.fail(name, f"expected seconds, above 0 and up to {_SECONDS_MAX}, but got {show(value)}")
        return float(value)

    def price(self, name: str) -> Decimal:
        """A price, 0 or more, without rounding; required."""
        value = self._values.get(name)
        if value is None:
            self.fail(name, "is required")
        number = _decimal(value)
        if number is None or not 0 <= number <= _PRICE_MAX:
            allowed = f"from 0 to {_PRICE_MAX} with at most {_PRICE_DECIMALS_MAX} decimals"
            self.fail(name, f"expected a price {allowed}, but got {show(value)}")
        return number


def _decimal(value: object) -> Decimal | None:
    """The number that *value* is; None if it is none, or has more decimals than a price may have."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value))
    except (InvalidOperation, ValueError):
        return None
    exponent = number.as_tuple().exponent
    return number if isinstance(exponent, int) and exponent >= -_PRICE_DECIMALS_MAX else None


def show(value: object) -> str:
    """*value* for an error message: one that is short as it is, a list or a mapping by its kind only."""
    if isinstance(value, list | dict):
        return describe_kind(value)
    try:
        shown = repr(value)
    except ValueError:  # an integer of thousands of digits
        return describe_kind(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS_MAX else f"{shown[:_SHOWN_CHARACTERS_MAX]}…"


def describe_kind(value: object) -> str:
    """What *value* is, without a word of what it says."""
    match value:
        case dict():
            return "a mapping"
        case list():
            return "a list"
        case str():
            return "a string"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case _:
            return "something else"
