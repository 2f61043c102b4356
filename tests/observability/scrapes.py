"""A scrape as Prometheus' own parser reads it, for tests to look at."""

from collections.abc import Mapping

import attrs
from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]


@attrs.frozen
class Scrape:
    """All that one scrape said."""

    text: str

    def families(self) -> dict[str, str]:
        """Names and types of all metrics."""
        return {family.name: family.type for family in text_string_to_metric_families(self.text)}

    def samples(self, name: str) -> dict[Labels, float]:
        """The values of one series, by its labels."""
        return {
            frozenset(sample.labels.items()): sample.value
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
            if sample.name == name
        }

    def rows(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """The values of one series, by the values of *labels*, which are all that it has."""
        rows = {}
        for found, value in self.samples(name).items():
            assert {label for label, _ in found} == set(labels), found
            rows[tuple(dict(found)[label] for label in labels)] = value
        return rows

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """One value; 0 for one that is not there."""
        return self.samples(name).get(frozenset((labels or {}).items()), 0.0)

    def total(self, name: str) -> float:
        """The sum over all labels."""
        return sum(self.samples(name).values())

    def series(self) -> int:
        """How many lines there are that hold a value."""
        return sum(1 for line in self.text.splitlines() if line and not line.startswith("#"))
