"""Plugins found by metadata, scenarios made of them, and faults that stay with the plugin that has them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scenarium.core.errors import ScenariumError
from scenarium.core.registry import Plugin, Registry, installed_plugins, load, open_registry
from scenarium.core.settings import Settings


def registry(text: str, folder: Path, plugins: dict[str, Plugin] | None = None, **kwargs: object) -> Registry:
    (folder / "s.toml").write_text(text, encoding="utf8")
    plugins = {"shop": Plugin("shop", "shop", "scenarium-shop", "0.1.0")} if plugins is None else plugins
    return Registry(Settings.read(folder / "s.toml", **{"environ": {}, **kwargs}), plugins)  # type: ignore[arg-type]


def test_installed_plugins_come_from_metadata_and_import_nothing(site: Path) -> None:
    plugin = installed_plugins()["pebbles"]
    assert (plugin.target, plugin.distribution, plugin.version, plugin.hook_api) == ("scenarium_pebbles", "scenarium-pebbles", "0.1.0", "1.0")
    assert "scenarium_pebbles" not in sys.modules
    assert open_registry().scenario("pebbles").config.model.shift == 0.0  # type: ignore[attr-defined]


def test_several_scenarios_of_one_plugin_have_their_own_settings(clean: Path, site: Path) -> None:
    text = '[scenarios.quarry]\nplugin = "pebbles"\nmodel.shift = 2.5\n[scenarios.pebbles]\nenabled = true\n'
    (clean / "s.toml").write_text(text, encoding="utf8")
    made = open_registry(clean / "s.toml")
    assert {"quarry", "pebbles"} <= set(made.names())
    shifts = {name: made.scenario(name).config.model_dump()["model"]["shift"] for name in ("quarry", "pebbles")}
    assert shifts == {"quarry": 2.5, "pebbles": 0.0}
    assert made.scenario("quarry").hook is not made.scenario("pebbles").hook


def test_switched_off_unknown_and_missing(clean: Path) -> None:
    made = registry("[scenarios.shop]\nenabled = false\n", clean)
    assert made.names() == {}
    with pytest.raises(ScenariumError, match="SCN-1001"):
        made.scenario("shop")
    made = registry('[scenarios.stall]\nplugin = "market"\n[scenarios.far_away.train]\nepochs = 1\n', clean)
    assert list(made.names()) == ["far_away", "shop", "stall"]
    with pytest.raises(ScenariumError, match=r"SCN-1001[\s\S]*shop") as unknown:
        made.scenario("shp")
    assert "shop" in unknown.value.hint("zh")
    with pytest.raises(ScenariumError, match=r"SCN-1006 .*s\.toml:2[\s\S]*pip install scenarium-market"):
        made.scenario("stall")
    with pytest.raises(ScenariumError, match=r"SCN-1008 .*s\.toml:4[\s\S]*pip install scenarium-far-away"):
        made.scenario("far_away")


def test_a_table_with_nearly_the_name_of_a_plugin_is_a_slip(clean: Path) -> None:
    with pytest.raises(ScenariumError, match=r"SCN-1003 .*s\.toml:2[\s\S]*scenarios\.shop") as caught:
        registry("[scenarios.shopp.train]\nepochs = 1\n", clean).names()
    assert caught.value.field == "scenarios.shopp"
    with pytest.raises(ScenariumError, match="SCN-1003"):
        registry("", clean, sets=["zebra.train.epochs=1"]).names()
    assert list(registry("", clean, environ={"SCENARIUM_ELSEWHERE__X": "1"}).names()) == ["shop"]


def test_wrong_shared_tables_stop_every_scenario(clean: Path) -> None:
    with pytest.raises(ScenariumError, match=r"SCN-1003.*hots"):
        registry("[gateway]\nhots = '::'\n", clean).scenario("shop")


BROKEN = {
    "syntax": ("def (:\n", "SyntaxError", "Correct that line"),
    "leaver": ("import sys\nsys.exit(3)\n", "sys.exit(3)", "Remove the call"),
    "lonely": ("import a_module_that_is_nowhere\n", "a_module_that_is_nowhere", "pip install a_module_that_is_nowhere"),
    "raiser": ("1 / 0\n", "ZeroDivisionError", "Correct the plugin"),
    "misspelt": ("from scenarium.core import hookimpl\n@hookimpl\ndef fild(): return {}\n", "fild", "hook reference"),
    "argument": ("from scenarium.core import hookimpl\n@hookimpl\ndef fields(konfig): return {}\n", "konfig", "hook reference"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_one_error_with_reason_and_remedy(name: str, site: Path, distribution: Callable[..., None], site_modules: None) -> None:
    source, reason, remedy = BROKEN[name]
    distribution(site, name, source)
    made = open_registry()
    with pytest.raises(ScenariumError) as caught:
        made.scenario(name).hook  # noqa: B018
    assert caught.value.code == "SCN-1002"
    assert f"scenarium-{name} 0.1.0" in caught.value.title()
    assert reason in caught.value.title("zh")
    assert remedy in caught.value.hint()
    assert made.scenario("pebbles").hook.metric(config=made.scenario("pebbles").config).name == "accuracy"


def test_a_file_that_would_hide_a_hook_is_named(site: Path, distribution: Callable[..., None], site_modules: None) -> None:
    distribution(site, "shadowed", "from scenarium.core import hookimpl\n@hookimpl\ndef model(): return None\n")
    assert open_registry().scenario("shadowed").hook.model(config=None, state={}) is None
    (site / "scenarium_shadowed" / "model.py").write_text("")
    with pytest.raises(ScenariumError, match=r"SCN-1002[\s\S]*model\.py hides its hook 'model'"):
        open_registry().scenario("shadowed").hook  # noqa: B018


@pytest.fixture
def site_modules() -> Iterator[None]:
    """Forget the broken modules again."""
    yield
    for name in [name for name in sys.modules if name.startswith("scenarium_")]:
        del sys.modules[name]


def test_clashes_and_hook_versions_are_seen_without_an_import(site: Path, distribution: Callable[..., None]) -> None:
    distribution(site, "twin_a", "", plugin="twin")
    distribution(site, "twin_b", "", plugin="twin")
    distribution(site, "future", "", api="1.9")
    distribution(site, "past", "", api="0.4")
    distribution(site, "odd", "", api="new")
    distribution(site, "silent", "", api=None)
    found = installed_plugins()
    errors = {name: str(found[name].error) for name in ("twin", "future", "past", "odd")}
    assert "scenarium-twin-a and scenarium-twin-b both claim" in errors["twin"]
    assert "pip uninstall scenarium-twin-b" in errors["twin"]
    assert "pip install -U scenarium" in errors["future"]
    assert "pip install -U scenarium-past" in errors["past"]
    assert "'new'" in errors["odd"]
    assert found["silent"].error is None
    assert not [name for name in sys.modules if name.startswith("scenarium_twin")]


def test_one_distribution_listed_twice_is_no_clash(site: Path, clean: Path, distribution: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(clean / "again", "pebbles", None)
    monkeypatch.syspath_prepend(str(clean / "again"))
    assert installed_plugins()["pebbles"].error is None


def test_an_extension_that_fails_stops_everything(site: Path) -> None:
    """It may be what masks personal data."""
    info = site / "scenarium_mask-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scenarium-mask\nVersion: 1\n", encoding="utf8")
    (info / "entry_points.txt").write_text("[scenarium.extensions]\nmask = nowhere_to_be_found\n", encoding="utf8")
    with pytest.raises(ScenariumError, match=r"scenarium-mask 1.*nowhere_to_be_found"):
        open_registry().scenario("pebbles")


def test_load_gives_a_handle(site: Path) -> None:
    assert repr(load("pebbles")) == "<scenario pebbles, not trained yet: .train()>"
