"""What a request leaves behind goes with it: no cycle of ours waits for a collection, in which all would wait."""

import gc
from collections import Counter

from tests.http.conftest import ask

from dwctl_trio.testing.service import open_service

REQUESTS = 5
_NOT_THE_SERVER = "dwctl_trio.testing"


async def test_a_request_leaves_no_cycle_of_ours_to_the_collector(postgres_dsn: str) -> None:
    async with open_service(postgres_dsn) as service:
        for stream in (False, True):  # what is made once
            await service.client.post("/v1/responses", json=ask("echo-5", stream=stream))
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            for number in range(REQUESTS):
                for stream in (False, True):
                    answer = await service.client.post(
                        "/v1/responses", json=ask("echo-5", key=str(number), stream=stream)
                    )
                    assert answer.status_code == 200
            gc.collect()
            left = Counter(_name_of(one) for one in gc.garbage)
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()

    ours = {name: count for name, count in left.items() if name.startswith("dwctl_trio.")}
    assert {name: count for name, count in ours.items() if not name.startswith(_NOT_THE_SERVER)} == {}, (
        "an object of a request refers to itself through others: let go of one of them when the request ends"
    )


def _name_of(one: object) -> str:
    named = one if hasattr(one, "__qualname__") and hasattr(one, "__module__") else type(one)
    return f"{named.__module__}.{named.__qualname__}"
