"""The layers of the design hold, and the tool that says so really looks."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "dwctl_trio"
COMMAND = Path(sys.executable).parent / "lint-imports"
AROUND_THE_LAYERS = {
    *("__init__", "__main__", "command", "config", "demo", "observability"),
    "testing",
}
"""What is not a layer: the entry, how commands run, the configuration, logging, and what tests and
the demo are made of."""


def lint(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(COMMAND), "--no-logo", "--no-cache", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def contracts() -> list[dict[str, object]]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    kept: list[dict[str, object]] = settings["tool"]["importlinter"]["contracts"]
    return kept


def test_every_contract_is_kept() -> None:
    done = lint()

    assert done.returncode == 0, done.stdout
    assert f"Contracts: {len(contracts())} kept, 0 broken." in done.stdout


def test_a_contract_that_the_code_breaks_is_noticed(tmp_path: Path) -> None:
    settings = tmp_path / "broken.ini"
    settings.write_text(
        "[importlinter]\nroot_package = dwctl_trio\ninclude_external_packages = True\n\n"
        "[importlinter:contract:1]\nname = Upside down\ntype = layers\nlayers =\n"
        "    dwctl_trio.domain\n    dwctl_trio.engine\n",
        encoding="utf-8",
    )

    done = lint("--config", str(settings))

    assert done.returncode == 1
    assert "Upside down BROKEN" in done.stdout


def test_every_module_of_the_package_is_in_a_layer_or_named_as_standing_around_them() -> None:
    (layered,) = [contract["layers"] for contract in contracts() if contract["type"] == "layers"]
    assert isinstance(layered, list)
    in_layers = {name.strip().removeprefix("dwctl_trio.") for layer in layered for name in layer.split("|")}

    there = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}

    assert there == in_layers | AROUND_THE_LAYERS
    assert not in_layers & AROUND_THE_LAYERS
