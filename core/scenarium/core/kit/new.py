"""``scenarium new``: write a plugin that installs, trains, serves and passes its checks as written."""

from __future__ import annotations

import difflib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

from scenarium.core import names
from scenarium.core.errors import ScenariumError
from scenarium.core.hookspecs import HOOK_API
from scenarium.core.registry import installed_plugins

TEMPLATES = ("text", "image", "table", "series", "no-torch")


def create(name: str, template: str = "text", parent: Path | None = None) -> Path:
    """Write the distribution ``parent/name`` (default: here) and return its folder.

    Raises:
        ScenariumError: SCN-7601 (not a name), SCN-7602 (the folder exists), SCN-7603 (no such template), SCN-7604 (the name is taken).
    """
    check_name(name)
    if template not in TEMPLATES:
        raise ScenariumError(
            "SCN-7603", template=template, nearest=(difflib.get_close_matches(template, TEMPLATES, 1) or ["text"])[0], known=", ".join(TEMPLATES)
        )
    folder = (parent or Path.cwd()) / name
    if folder.exists():
        raise ScenariumError("SCN-7602", file=folder)
    about = tomllib.loads(_source(template, "about.toml"))
    values = _values(name, about)
    package = folder / values["package"]
    rendered = {
        folder / "pyproject.toml": _render("common", "pyproject.toml.j2", values),
        folder / "README.md": _render("common", "README.md.j2", values),
        folder / "tests" / f"test_{name}.py": _render("common", "test.py.j2", values),
        package / "card.en.md": _render("common", "card.en.md.j2", values),
        package / "card.zh.md": _render("common", "card.zh.md.j2", values),
        package / "py.typed": "",
        package / "__init__.py": _render(template, "module.py.j2", values),
    }
    if _exists(template, "network.py.j2"):
        rendered[package / "network.py"] = _render(template, "network.py.j2", values)
    for path, text in rendered.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf8")
    return folder


def check_name(name: str) -> None:
    """Raise unless ``name`` can be a scenario: it stands in URLs, module names and environment variables."""
    names.check(name)
    if name in (plugins := installed_plugins()):
        raise ScenariumError("SCN-7604", name=name, distribution=plugins[name].distribution)


def _values(name: str, about: dict[str, Any]) -> dict[str, Any]:
    """What the templates may use."""
    return {
        **about,
        "name": name,
        "dashed": name.replace("_", "-"),
        "package": f"scenarium_{name}",
        "title": name.replace("_", " ").capitalize(),
        "hook_api": ".".join(map(str, HOOK_API)),
        "en_sentence": f"{about['en'][0].upper()}{about['en'][1:]}.",
        "zh_sentence": f"{about['zh']}。",
        "columns": ", ".join(f"`{column}`" for column in about["columns"]),
        "requirements": "".join(f', "{requirement}"' for requirement in about["requirements"]),
    }


def _source(template: str, file: str) -> str:
    return files("scenarium.core.kit").joinpath("templates", template, file).read_text(encoding="utf8")


def _exists(template: str, file: str) -> bool:
    return files("scenarium.core.kit").joinpath("templates", template, file).is_file()


def _render(template: str, file: str, values: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(_source(template, file)).render(values)
