"""``kill -9`` of random processes under load: nothing is stuck, done twice, told twice or lost."""

import random
import sys

import pytest
from tests.acceptance.storm import render, run_storm

KILLS = 4


@pytest.mark.slow
async def test_a_few_killed_processes_leave_no_trace_in_any_response(postgres_dsn, tmp_path):
    seed = random.randrange(10**6)
    result = await run_storm(postgres_dsn, tmp_path, kills=KILLS, seed=seed, report=print)
    print(f"seed {seed}\n{render(result)}")
    assert result.audit.violations == []
    assert result.audit.counts["state completed"] == result.audit.counts["responses"] > KILLS


@pytest.mark.long
async def test_twenty_killed_processes_leave_no_trace_in_any_response(postgres_dsn, tmp_path, capsys):
    seed = random.randrange(10**6)
    with capsys.disabled():
        result = await run_storm(postgres_dsn, tmp_path, kills=20, seed=seed, report=print)
        sys.stdout.write(f"\nseed {seed}\n{render(result)}\n")
    assert result.audit.violations == []
    assert result.audit.counts["followers that came back"] > 0
