"""The hand-book says what the code does: errors, settings, commands, routes, metrics, links. Hooks: tests/core/test_kit_docs.py."""

from __future__ import annotations

import json
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest

from scenarium.core.errors import catalogue

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("plugins/*/README.md"), *ROOT.glob("extensions/*/README.md")])


def text(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf8")


@pytest.mark.parametrize("page", ["errors.md", "settings.md", "commands.md"])
def test_reference_pages_follow_from_the_code(page: str) -> None:
    made = subprocess.run(
        [sys.executable, "-c", f"import reference_pages; print(reference_pages.PAGES[{page!r}](), end='')"],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
        check=True,
    )
    assert text(page) == made.stdout, "run: python scripts/reference_pages.py"


def test_both_languages_of_a_message_use_known_placeholders() -> None:
    def names(template: str) -> set[str]:
        return {field.split(".")[0].split("[")[0] for _, field, _, _ in string.Formatter().parse(template) if field}

    wrong = []
    for code, message in catalogue().items():
        assert {"status", "en", "zh", "hint_en", "hint_zh"} <= set(message), code
        english, chinese = names(message["en"]) | names(message["hint_en"]), names(message["zh"]) | names(message["hint_zh"])
        paired = {name.removesuffix("_en") for name in english}, {name.removesuffix("_zh") for name in chinese}
        if paired[0] != paired[1]:
            wrong.append(f"{code}: {sorted(paired[0] ^ paired[1])} stands in one language only")
        if not re.search(r"[一-鿿]", message["zh"]):
            wrong.append(f"{code}: the Chinese text has no Chinese")
    assert wrong == []


def test_every_raised_code_exists_and_every_code_is_raised() -> None:
    folders = ("core", "training", "gateway", "client", "plugins", "extensions")
    sources = [p for folder in folders for p in (ROOT / folder).rglob("*.py") if "tests" not in p.parts]
    raised = {code for file in sources for code in re.findall(r"SCN-\d{4}", file.read_text(encoding="utf8"))}
    assert raised - set(catalogue()) == set()
    assert set(catalogue()) - raised == set()


def test_every_route_is_documented() -> None:
    code = """
import json
from scenarium.core.config import GatewayConfig, Settings
from scenarium.core.registry import Registry
from scenarium.core.store import Store
from scenarium.gateway.app import create_app

def walk(routes):
    for route in routes:
        yield from walk(route.routes) if getattr(route, "routes", None) else [route.path]

app = create_app(Registry(Settings.read(environ={})), Store("memory://docs"), GatewayConfig())
print(json.dumps(sorted({*walk(app.routes), *(f"/scenarios/{{name}}/{path}" for path in app.hot)})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    page = text("gateway.md")
    routes = json.loads(done.stdout.splitlines()[-1])
    assert len(routes) > 10
    assert [path for path in routes if f"{path}`" not in page] == []


def test_every_v2_route_is_documented() -> None:
    from scenarium.gateway.kserve.http import ROUTES

    page = text("kserve.md")
    assert [path for path in ROUTES if f"{path.replace('/versions/{version}', '')}`" not in page] == []


def test_every_openai_route_is_documented() -> None:
    from scenarium.gateway.openai.http import ROUTES

    page = text("openai.md")
    assert [path for path in ROUTES if f"{path}`" not in page] == []


def test_every_metric_is_documented() -> None:
    from scenarium.gateway.metrics import GatewayCollector

    page = text("gateway.md")
    names = [family.name for family in GatewayCollector({}).collect()]
    assert len(names) > 5
    assert [name for name in names if name not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf8"))
    assert [t for t in targets if "://" not in t and not (page.parent / t).exists()] == []


@pytest.mark.parametrize("folder", sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml")), ids=lambda p: p.name)
def test_both_readmes_list_the_plugin(folder: Path) -> None:
    for readme in ("README.md", "README.zh.md"):
        assert f"(plugins/{folder.name}/README.md)" in (ROOT / readme).read_text(encoding="utf8")


def test_the_project_speaks_of_itself_alone() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    wrong = []
    for name in filter(None, listed):
        content = (ROOT / name).read_bytes()
        if b"\0" in content[:4096] or name == "tests/house/test_docs.py":
            continue
        found = re.findall(r"/(?:root|work)/\S+", content.decode("utf8", "replace"))
        wrong += [f"{name}: {f}" for f in found]
    assert wrong == []
