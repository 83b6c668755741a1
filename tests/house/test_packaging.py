"""What the wheels hold, and that a fresh environment with two wheels trains, serves and predicts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = [ROOT, *sorted(p.parent for folder in ("plugins", "extensions") for p in ROOT.glob(f"{folder}/*/pyproject.toml"))]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every distribution's wheel, by distribution name."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), *map(str, PARTS)]
    subprocess.run(command, check=True, capture_output=True)
    return {wheel.name.split("-")[0].replace("_", "-"): wheel for wheel in folder.glob("*.whl")}


def members(wheel: Path) -> list[str]:
    return zipfile.ZipFile(wheel).namelist()


def test_the_root_wheel_holds_all_parts_and_their_data(wheels: dict[str, Path]) -> None:
    names = members(wheels["scenarium"])
    assert not [n for n in names if n == "scenarium/__init__.py" or n.startswith(("core/", "training/", "gateway/", "client/", "tests/"))]
    typed = [f"{part}/py.typed" for part in ("core", "training", "gateway", "client")]
    for wanted in (*typed, "core/hookspecs.py", "gateway/app.py", "training/trainer.py", "client/blocking.py"):
        assert f"scenarium/{wanted}" in names
    on_disk = {p.name for p in (ROOT / "core/scenarium/core/messages").glob("*.toml")}
    assert {Path(n).name for n in names if "/messages/" in n} == on_disk
    assert any("/templates/" in n for n in names)


@pytest.mark.parametrize("part", PARTS[1:], ids=lambda p: p.name)
def test_a_plugins_wheel_is_complete(wheels: dict[str, Path], part: Path) -> None:
    project = tomllib.loads((part / "pyproject.toml").read_text(encoding="utf8"))["project"]
    names = members(wheels[project["name"]])
    package = f"scenarium_{part.name}"
    tops = {n.split("/")[0] for n in names}
    assert tops == {package, next(t for t in tops if t.endswith(".dist-info"))}
    assert f"{package}/py.typed" in names
    on_disk = {str(p.relative_to(part)) for p in (part / package).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert on_disk <= set(names)
    assert project["requires-python"] == ">=3.11"
    assert any(re.match(r"scenarium(\[[a-z,]+\])?>=0\.1,<1", d) for d in project["dependencies"])


def test_versions_agree() -> None:
    from scenarium.core import __version__

    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["version"] == __version__


def test_the_base_install_is_light() -> None:
    base = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))["project"]["dependencies"]
    heavy = {"torch", "torchvision", "transformers", "pandas", "scikit-learn", "matplotlib", "onnxruntime", "mlflow-skinny", "pyarrow", "pillow"}
    assert not heavy & {re.split(r"[<>=;\[ ]", d)[0] for d in base}


@pytest.mark.slow
def test_two_wheels_in_a_fresh_environment_train_serve_and_predict(wheels: dict[str, Path], tmp_path: Path) -> None:
    """The torch-free plugin, so that what is proved is the packaging and not the download of torch."""
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), "--find-links", str(wheels["scenarium"].parent)]
    subprocess.run([*install, "scenarium-credit-risk"], check=True)
    have = json.loads(subprocess.run([str(python), "-m", "pip", "list", "--format", "json"], check=True, capture_output=True, text=True).stdout)
    assert "torch" not in {package["name"] for package in have}
    environment = {"SCENARIUM_STORE": str(tmp_path / "store"), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PIP_CERT": ""}
    run = [str(python), "-m", "scenarium.core.cli"]
    subprocess.run([*run, "train", "credit_risk"], check=True, env=_with_pip(environment), cwd=tmp_path)
    shown = json.loads(subprocess.run([*run, "show", "credit_risk", "--json"], check=True, env=environment, cwd=tmp_path, capture_output=True).stdout)
    server = subprocess.Popen([*run, "serve", "--port", "0"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    try:
        url = next(found[1] for line in server.stderr if (found := re.search(r'"url": ?"(http[^"]+)"', line)))
        for _ in range(300):  # the first worker may still be loading
            about = httpx.get(f"{url}/scenarios/credit_risk").json()
            if "sample" in about:
                break
            time.sleep(0.1)
        answer = httpx.post(f"{url}/scenarios/credit_risk/predict", json=about["sample"], timeout=60)
        assert answer.status_code == 200
        assert shown["name"] == "credit_risk"
    finally:
        server.terminate()
        server.communicate(timeout=30)
    assert server.returncode == 0


def _with_pip(environment: dict[str, str]) -> dict[str, str]:
    """The user's own pip settings, which a data source from a package needs."""
    import os

    return {**environment, **{k: v for k, v in os.environ.items() if k.startswith("PIP_")}}
