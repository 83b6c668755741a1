"""Which part may import which: every file is walked, and an interpreter is started to see what really comes in."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = {part: ROOT / part for part in ("core", "training", "gateway", "client")}
PLUGINS = sorted(p.parent for folder in ("plugins", "extensions") for p in ROOT.glob(f"{folder}/*/pyproject.toml"))
ALLOWED = {"core": {"core"}, "training": {"core", "training"}, "gateway": {"core", "gateway"}, "client": {"client"}}
HEAVY = {"torch", "torchvision", "transformers", "onnxruntime", "openvino", "tritonclient", "tensorflow", "rasa"}


def imports(file: Path) -> list[tuple[int, str, bool]]:
    """(line, module, whether it stands at the top of the module and runs) of every import of a file."""
    tree = ast.parse(file.read_text(encoding="utf8"))
    typing_only = {id(node) for block in ast.walk(tree) if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test) for node in ast.walk(block)}
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module, id(node) in top))
    return found


def part_of(module: str) -> str | None:
    """The part that a ``scenarium.…`` module belongs to."""
    names = module.split(".")
    return names[1] if names[0] == "scenarium" and len(names) > 1 else None


@pytest.mark.parametrize("part", PARTS)
def test_parts_import_only_what_they_may(part: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for file in sorted(PARTS[part].rglob("*.py"))
        if "templates" not in file.parts
        for line, module, _ in imports(file)
        if module.startswith("scenarium_") or (part_of(module) not in {None, *ALLOWED[part]})
    ]
    assert wrong == []


def test_only_the_commands_and_dev_import_the_conformance_kit() -> None:
    users = {
        str(file.relative_to(ROOT))
        for part in ("core", "training", "gateway")
        for file in PARTS[part].rglob("*.py")
        if "kit" not in file.parent.parts
        for _, module, _ in imports(file)
        if module.startswith("scenarium.core.kit")
    }
    assert users == {"core/scenarium/core/cli/kit.py", "gateway/scenarium/gateway/dev.py"}


def test_the_client_needs_httpx_alone() -> None:
    own = {"scenarium", "httpx", *sys.stdlib_module_names}
    found = {
        (file.name, module.partition(".")[0], top)
        for file in PARTS["client"].rglob("*.py")
        for _, module, top in imports(file)
        if module.partition(".")[0] not in own
    }
    assert found <= {("live.py", "websockets", False), ("models.py", "pydantic", True)}
    code = "import sys, scenarium.client; print(*{'numpy', 'pydantic', 'fastapi', 'websockets', 'scenarium.core'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_core_and_gateway_import_nothing_heavy_at_the_top() -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line} imports {module}"
        for part in ("core", "gateway")
        for file in sorted(PARTS[part].rglob("*.py"))
        if "engines" not in file.parts and "templates" not in file.parts
        for line, module, top in imports(file)
        if (top and module.partition(".")[0] in HEAVY) or (part == "core" and module.partition(".")[0] in ("fastapi", "starlette", "uvicorn"))
    ]
    assert wrong == []


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda p: p.name)
def test_plugins_import_core_and_public_training_only(plugin: Path) -> None:
    package = f"scenarium_{plugin.name}"
    wrong = []
    for file in sorted((plugin / package).rglob("*.py")):
        for line, module, _ in imports(file):
            foreign = module.startswith("scenarium_") and module.partition(".")[0] not in (package, "scenarium_environment")
            private = any(name.startswith("_") and name != "__future__" for name in module.split(".")) and module.startswith("scenarium")
            if foreign or private or part_of(module) == "gateway":
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {module}")
    assert wrong == []


@pytest.mark.parametrize("statement", ["import scenarium.core", "from scenarium.core import *", "import scenarium.core.cli", "import scenarium.gateway.app"])
def test_an_interpreter_stays_light(statement: str) -> None:
    code = f"import sys\n{statement}\nprint(*sorted({HEAVY!r} & set(sys.modules)), *sorted(m for m in sys.modules if m.startswith('scenarium_')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_namespace_has_no_init() -> None:
    assert [str(p) for part in PARTS.values() for p in part.glob("scenarium/__init__.py")] == []
