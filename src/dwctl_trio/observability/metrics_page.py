"""The page that a scrape gets: what is on it, and what it may cost."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

RENDERING_REST = 9
"""A page is handed out again for so many times the time its rendering took: without a key anybody may ask for it, and
twenty models take 15 ms; so scrapes cost a tenth of the process at the most, and a page is rarely 0.2 s old."""


class Rendered(Protocol):
    """Metrics that can be shown."""

    def render(self) -> bytes:
        """Everything, as of now, in ``CONTENT_TYPE``."""


class MetricsPage:
    """The metrics as they are handed out; however often that is, the process goes on doing other things.

    Args:
        metrics: What it shows.
        clock: Seconds, of any beginning.
    """

    def __init__(self, metrics: Rendered, clock: Callable[[], float] = time.perf_counter) -> None:
        self._metrics = metrics
        self._clock = clock
        self._text = b""
        self._stale_at = -math.inf

    def read(self) -> bytes:
        """The text, at most ``RENDERING_REST`` times as old as its rendering took."""
        begun_at = self._clock()
        if begun_at >= self._stale_at:
            self._text = self._metrics.render()
            ended_at = self._clock()
            self._stale_at = ended_at + RENDERING_REST * (ended_at - begun_at)
        return self._text


class Uncreated(Collector):
    """A registry without the time at which each series began, which would be as many lines again as there are series.

    The client library can leave them out for the whole process only.
    """

    def __init__(self, registry: Collector) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        """All families."""
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
