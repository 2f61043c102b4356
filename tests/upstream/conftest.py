"""What the tests of upstreams have in common."""

import pytest


@pytest.fixture(params=["direct", "httpx"])
def transport(request: pytest.FixtureRequest) -> str:
    """What carries the calls: each test that asks for it runs over all that can be configured."""
    return request.param
