"""One mapping of a YAML document, read strictly, with errors that name the key."""

import difflib
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn


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
            raise ConfigError(f"{path}: expected a mapping of keys, but got {values!r}")
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

    def optional_text(self, name: str) -> str | None:
        """A string; None if absent."""
        value = self._values.get(name)
        if value is not None and not isinstance(value, str):
            self.fail(name, f"expected a string, but got {value!r}")
        return value

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

    def choice(self, name: str, default: str, allowed: tuple[str, ...]) -> str:
        """A string out of *allowed*."""
        value = self.text(name, default)
        if value not in allowed:
            self.fail(name, f"{value!r} is not allowed; allowed: {', '.join(allowed)}")
        return value

    def flag(self, name: str, *, default: bool) -> bool:
        """A boolean."""
        value = self._values.get(name, default)
        if not isinstance(value, bool):
            self.fail(name, f"expected true or false, but got {value!r}")
        return value

    def integer(self, name: str, default: int, *, minimum: int, maximum: int) -> int:
        """An integer within ``[minimum, maximum]``."""
        value = self._values.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            self.fail(name, f"expected an integer from {minimum} to {maximum}, but got {value!r}")
        return value

    def seconds(self, name: str) -> float | None:
        """Seconds above 0, up to a day; None if absent."""
        value = self._values.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 86400:  # noqa: PLR2004
            self.fail(name, f"expected seconds, above 0 and up to 86400, but got {value!r}")
        return float(value)

    def decimal(self, name: str) -> Decimal:
        """A number, 0 or more, without rounding."""
        value = self._values.get(name)
        try:
            number = Decimal(str(value))
        except InvalidOperation:
            number = Decimal(-1)
        if isinstance(value, bool) or not number.is_finite() or number < 0:
            self.fail(name, f"expected a price, 0 or more, but got {value!r}")
        return number
