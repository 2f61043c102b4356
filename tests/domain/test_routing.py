"""Which path a POST takes: the design's table, every line of it."""

import itertools

import pytest
from hypothesis import given

from dwctl_trio.domain.request import InputMessage, InputPart, PartKind, ResponseRequest, Role, ServiceTier
from dwctl_trio.domain.routing import Path, choose_path
from dwctl_trio.testing.domain_strategies import requests

_HELLO = InputMessage(role=Role.USER, content=(InputPart(kind=PartKind.INPUT_TEXT, text="hello"),))
_OTHER_TIERS = [tier for tier in ServiceTier if tier is not ServiceTier.FLEX]

# (tiers, background, stream, path), as in the design.
_TABLE = [
    (_OTHER_TIERS, False, True, Path.WARM_STREAM),
    (_OTHER_TIERS, False, False, Path.WARM_BLOCKING),
    (ServiceTier, True, False, Path.QUEUED_AT_ONCE),
    (ServiceTier, True, True, Path.QUEUED_FOLLOW),
    ([ServiceTier.FLEX], False, False, Path.FLEX_BLOCKING),
    ([ServiceTier.FLEX], False, True, Path.FLEX_STREAM),
]
_LINES = [(tier, background, stream, path) for tiers, background, stream, path in _TABLE for tier in tiers]


@pytest.mark.parametrize(("tier", "background", "stream", "path"), _LINES)
def test_each_line_of_the_table_has_its_path(tier: ServiceTier, background: bool, stream: bool, path: Path) -> None:
    request = ResponseRequest(model="echo-16", input=(_HELLO,), service_tier=tier, background=background, stream=stream)
    assert choose_path(request) is path


def test_the_table_names_every_combination_once() -> None:
    combinations = itertools.product(ServiceTier, [False, True], [False, True])
    assert sorted(line[:3] for line in _LINES) == sorted(combinations)


def test_the_table_names_every_path() -> None:
    assert {line[3] for line in _LINES} == set(Path)


@given(request=requests())
def test_nothing_but_tier_background_and_stream_decides(request: ResponseRequest) -> None:
    bare = ResponseRequest(
        model="other",
        input=(_HELLO,),
        service_tier=request.service_tier,
        background=request.background,
        stream=request.stream,
    )
    assert choose_path(request) is choose_path(bare)
