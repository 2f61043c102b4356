"""The package without its extra: everything runs, and a configuration that needs it says what to install."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import trio

BLOCKER = """
import importlib.abc, sys

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"opentelemetry", "google", "requests", "urllib3"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""

IMPORT_ALL = """
import pkgutil
import dwctl_trio
names = [module.name for module in pkgutil.walk_packages(dwctl_trio.__path__, "dwctl_trio.")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        print(name, error.name)
assert len(names) > 100
"""

SERVE = """
import json
import trio
from dwctl_trio.testing.service import open_service

async def main():
    async with open_service(sys.argv[1]) as service:
        headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        answer = await service.client.post("/v1/responses", json={"model": "echo-1", "input": "x"}, headers=headers)
        sent = service.simulator.requests[-1].headers["traceparent"]
        print(json.dumps({"status": answer.status_code, "sent": sent}))

trio.run(main)
"""

CHECK_CONFIG = """
from dwctl_trio.cli import main
main(["check-config", "--config", sys.argv[1]])
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKER + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.slow
def test_every_module_but_the_exporter_is_imported_without_opentelemetry() -> None:
    done = run(IMPORT_ALL)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["dwctl_trio.observability.otlp", "opentelemetry"]


@pytest.mark.slow
async def test_the_service_serves_and_passes_traces_on_without_opentelemetry(postgres_dsn: str) -> None:
    done = await trio.to_thread.run_sync(run, SERVE, postgres_dsn)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "status": 200,
        "sent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    }


@pytest.mark.slow
def test_a_configuration_that_needs_opentelemetry_says_what_to_install(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text('tracing: {endpoint: "http://127.0.0.1:4318"}\n', encoding="utf-8")
    needing = run(CHECK_CONFIG, str(path))
    path.write_text("tracing: {}\n", encoding="utf-8")
    without = run(CHECK_CONFIG, str(path))

    assert needing.returncode == 2
    assert needing.stderr == (
        "dwctl-trio: tracing.endpoint: needs OpenTelemetry, which is not installed; "
        "run: pip install 'dwctl-trio[tracing]'\n"
    )
    assert without.returncode == 0
    assert "OpenTelemetry" not in without.stderr
