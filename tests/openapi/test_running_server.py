"""The running server does what its document says, and nothing else: schemathesis sends what fits and what does not.

Checked of each answer: status, media type, headers and body are documented; no status is a server's error; what does
not fit the document is refused, and what fits it is not, but for rules between several fields; no method and no
missing key gets further than it should; what was deleted is gone.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import trio
from tests.http.queued import QUICK

from dwctl_trio.postgres.keys import PostgresKeyStore
from dwctl_trio.testing.service import open_service

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
COMMAND = Path(sys.executable).parent / "schemathesis"
OVERRIDES = {"auth": {"mode": "keys"}, "limits": QUICK}


async def check(dsn: str, directory: Path, *arguments: str, within_s: float) -> None:
    """Run schemathesis against a server of its own; it must find nothing, and prints what it has done."""
    report = directory / "report.json"
    async with open_service(dsn, OVERRIDES) as service:
        key = await PostgresKeyStore(service.pool).create_key("acme")
        with trio.fail_after(within_s):
            done = await trio.run_process(
                [
                    *(COMMAND, "--config-file", HERE / "schemathesis.toml", "run", f"{service.url}/openapi.json"),
                    *("--header", f"Authorization: Bearer {key}", "--report-json-path", report, *arguments),
                ],
                check=False,
                capture_stdout=True,
                cwd=directory,
                env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.openapi.schemathesis_hooks", "PYTHONPATH": str(ROOT)},
            )
    output = done.stdout.decode()
    assert report.exists(), output
    told = json.loads(report.read_text())
    cases, operations = told["test_cases"], told["operations"]
    print(f"{cases['generated']} cases, {cases['unique_failures']} failures, {told['running_time']:.1f} s")
    assert done.returncode == 0, output
    assert (told["stop_reason"], cases["errored"], told["errors"]) == ("completed", 0, []), output
    assert operations["tested"] == operations["total"], output


@pytest.mark.slow
async def test_the_server_keeps_to_its_document(postgres_dsn: str, tmp_path: Path) -> None:
    await check(postgres_dsn, tmp_path, "--phases", "fuzzing,stateful", "--max-examples", "10", within_s=60)


@pytest.mark.long
async def test_the_server_keeps_to_its_document_at_every_bound_and_in_many_cases(
    postgres_dsn: str, tmp_path: Path
) -> None:
    phases = ("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", "200")

    await check(postgres_dsn, tmp_path, *phases, within_s=1800)
