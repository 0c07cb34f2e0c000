"""What an installation holds: from the checkout (editable) and from a wheel."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files of a wheel, built from a copy so that the checkout gets no build folder."""
    folder = tmp_path_factory.mktemp("wheel")
    names = ["pyproject.toml", "README.md", "LICENSE", "llama2_pl", "callbacks", "configs"]
    subprocess.run(["cp", "-r", *[str(ROOT / name) for name in names], str(folder)], check=True)
    build = "import setuptools.build_meta as b; print(b.build_wheel('out'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = (folder / "out").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def test_every_package_on_disk_is_listed(project: dict) -> None:
    on_disk = {
        ".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "llama2_pl").rglob("__init__.py")
    }
    assert {*on_disk, "llama2_pl.callbacks", "llama2_pl.configs"} == set(
        project["tool"]["setuptools"]["packages"]
    )


def test_a_wheel_holds_the_package_its_types_callbacks_and_configs(wheel: list[str]) -> None:
    assert {"llama2_pl/py.typed", "llama2_pl/cli.py", "llama2_pl/callbacks/__init__.py"} <= set(wheel)
    configs = {
        f"llama2_pl/configs/{path.relative_to(ROOT / 'configs')}"
        for path in (ROOT / "configs").rglob("*.yaml")
    }
    assert configs and configs <= set(wheel)


def test_a_wheel_installs_nothing_beside_the_package(wheel: list[str]) -> None:
    tops = {name.split("/")[0] for name in wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"llama2_pl"}


def test_callbacks_are_importable_under_the_package_and_only_there(tmp_path: Path) -> None:
    code = (
        "import importlib.util as u; from llama2_pl.callbacks import CarbonFootprint;"
        "print(CarbonFootprint.__module__.split('.')[:2], u.find_spec('callbacks'), u.find_spec('configs'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "['llama2_pl', 'callbacks'] None None", done.stderr[-2000:]


def test_importing_the_package_loads_neither_torch_nor_lightning(tmp_path: Path) -> None:
    code = (
        "import sys, llama2_pl.cli; print([m for m in ('torch', 'lightning', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr[-2000:]


def test_every_public_name_imports() -> None:
    import llama2_pl

    assert len(llama2_pl.__all__) == 21
    for name in llama2_pl.__all__:
        assert getattr(llama2_pl, name) is not None
    with pytest.raises(AttributeError, match="PPOModul"):
        _ = llama2_pl.PPOModul


def test_no_public_name_is_missing_from_the_types(project: dict) -> None:
    """The lazy table, `__all__` and the TYPE_CHECKING imports name the same things."""
    import llama2_pl

    source = (ROOT / "llama2_pl" / "__init__.py").read_text(encoding="utf-8")
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    ours = [node for node in imports if node.module and node.module.startswith("llama2_pl.")]
    names = {alias.name for node in ours for alias in node.names}
    assert names == set(llama2_pl._PLACES) == set(llama2_pl.__all__) - {"__version__"}


def test_dependencies_shut_out_releases_known_to_be_harmful(project: dict) -> None:
    """lightning 2.6.2/2.6.3 were malware; torch < 2.10 and sentencepiece < 0.2.3 have published holes."""
    needs = set(project["project"]["dependencies"])
    assert {"lightning>=2.6.6,<3", "torch>=2.10", "sentencepiece>=0.2.3"} <= needs


def test_constraints_pin_every_core_dependency(project: dict) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    needs = {re.split(r"[\[<>=]", need)[0].lower() for need in project["project"]["dependencies"]}
    assert needs <= pins
    assert not [line for line in lines if "+" in line or "://" in line]


def test_the_console_script_exists(project: dict) -> None:
    module, function = project["project"]["scripts"]["llama2-pl"].split(":")
    assert importlib.util.find_spec(module) is not None
    assert callable(getattr(importlib.import_module(module), function))
