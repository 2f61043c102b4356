"""How soon an idle fleet begins to work on a new background response."""

import attrs
import pytest
import trio
from tests.acceptance.conftest import PROMISE_S, open_world, wait_none_under_way, write_config
from tests.acceptance.fleet import Member, open_client, open_fleet, percentiles_ms

from dwctl_trio.domain.limits import DEFAULT_LIMITS

RESPONSES = 100
P50_S = 0.05
"""From the answer to the POST until the upstream has the request, by half of the responses."""


@pytest.mark.slow
@pytest.mark.parametrize("daemon_is", ["in the same process", "in another process"])
async def test_a_new_background_response_is_picked_up_at_once(postgres_dsn, tmp_path, daemon_is):
    arrived: dict[str, float] = {}
    answered: dict[str, float] = {}
    is_apart = daemon_is == "in another process"
    limits = attrs.evolve(DEFAULT_LIMITS, queue_workers=0) if is_apart else DEFAULT_LIMITS
    async with open_world(postgres_dsn, tmp_path, limits) as (config, pool, simulator):
        simulator.observers.append(lambda received: arrived.setdefault(received.key or "", trio.current_time()))
        working = write_config(tmp_path / "working.yaml", simulator.base_url, DEFAULT_LIMITS, database_url=postgres_dsn)
        members = [Member("api", "serve", config), *([Member("worker", "worker", working)] if is_apart else [])]
        async with open_fleet(*members) as fleet, open_client() as http:
            url = f"{fleet['api'].server.url}/v1/responses"
            with trio.fail_after(PROMISE_S):
                for number in range(RESPONSES):
                    body = {"model": "echo-2", "input": f"key:{number}", "background": True}
                    answer = await http.post(url, json=body)
                    answered[str(number)] = trio.current_time()
                    assert answer.status_code == 200, answer.text
                    await wait_none_under_way(pool)
    delays = sorted(arrived[key] - at for key, at in answered.items())
    print(f"picked up with the daemon {daemon_is}, {len(delays)} responses: {percentiles_ms(delays)}")
    assert len(delays) == RESPONSES
    assert delays[RESPONSES // 2] < P50_S
