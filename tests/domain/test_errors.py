"""The tree of errors: what its module says is what the classes are."""

import inspect

import pytest

from dwctl_trio.domain import errors
from dwctl_trio.domain.errors import DwctlError, InvalidRequest, LimitExceeded, UpstreamError

_CLASSES = [value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__]


def _drawn_tree() -> dict[str, str]:
    """Each error of the drawing with its parent, in the drawing's words."""
    parents: dict[str, str] = {}
    above: dict[int, str] = {-1: "Exception"}
    for line in (errors.__doc__ or "").splitlines():
        branch, _, rest = line.rpartition("─ ")
        if branch or line == "DwctlError":
            depth = (len(branch) + 2) // 4
            above[depth] = rest.split()[0]
            parents[above[depth]] = above[depth - 1]
    return parents


def test_the_drawing_shows_every_class_under_its_parent() -> None:
    assert _drawn_tree() == {error.__name__: error.__bases__[0].__name__ for error in _CLASSES}


@pytest.mark.parametrize("error", _CLASSES)
def test_every_error_of_ours_can_be_caught_as_one(error: type[Exception]) -> None:
    assert issubclass(error, DwctlError)


def test_a_refused_request_names_its_parameter_code_and_status() -> None:
    error = InvalidRequest("Too long.", param="input[0]", code="string_above_max_length", status=413)
    assert (str(error), error.param, error.code, error.status) == (
        "Too long.",
        "input[0]",
        "string_above_max_length",
        413,
    )


def test_a_met_limit_tells_when_to_try_again() -> None:
    assert LimitExceeded("Too many at once.", retry_after_s=2.5).retry_after_s == 2.5


@pytest.mark.parametrize("error", [error for error in _CLASSES if issubclass(error, UpstreamError)])
def test_every_upstream_error_keeps_status_and_time_to_wait(error: type[UpstreamError]) -> None:
    raised = error("The upstream is busy.", status=429, retry_after_s=1.0)
    assert (str(raised), raised.status, raised.retry_after_s) == ("The upstream is busy.", 429, 1.0)
