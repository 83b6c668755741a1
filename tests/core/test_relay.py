"""One relay per scenario: defaults behind, the plugin before them, extensions around both."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pluggy
import pytest

from scenarium.core.config import ScenarioConfig
from scenarium.core.hookspecs import hookimpl
from scenarium.core.relay import HOOKS, direct, implemented, make_relay
from scenarium.core.types import Signature, TensorSpec


class Plain:
    @hookimpl
    def fit(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"count": len(rows)}


class Loud:
    """An extension: wraps one plain hook and one iterator."""

    @hookimpl(wrapper=True)
    def fit(self) -> Generator[None, dict[str, Any], dict[str, Any]]:
        return {**(yield), "wrapped": True}

    @hookimpl(wrapper=True)
    def stream(self) -> Generator[None, Iterator[str] | None, Iterator[str] | None]:
        parts = yield
        return None if parts is None else (part.upper() for part in parts)


def test_defaults_stand_behind_the_plugin() -> None:
    hook = make_relay(Plain(), "plain")
    config = ScenarioConfig()
    assert hook.fit(config=config, rows=[{}, {}]) == {"count": 2}
    assert hook.sources(config=config) == ()
    assert hook.processor(config=config, state={"a": 1}) == {"a": 1}
    assert hook.config() is ScenarioConfig
    assert hook.environment() is None


def test_extensions_wrap_any_scenario_and_relays_are_apart() -> None:
    first, second = make_relay(Plain(), "a", {"loud": Loud()}), make_relay(Plain(), "b")
    assert first.fit(config=ScenarioConfig(), rows=[]) == {"count": 0, "wrapped": True}
    assert second.fit(config=ScenarioConfig(), rows=[]) == {"count": 0}


def test_a_direct_call_answers_as_the_hook_does() -> None:
    """The plugin first, the default where the plugin answers None; wrappers keep their place."""

    class Picky:
        @hookimpl
        def fit(self, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
            return {"count": len(rows)} if rows else None

    wrapped = make_relay(Picky(), "wrapped", {"loud": Loud()}).fit
    assert direct(wrapped) is wrapped
    hook = make_relay(Picky(), "picky").fit
    assert direct(hook) is not hook
    for rows in ([], [{}]):
        assert direct(hook)(config=ScenarioConfig(), rows=rows) == hook(config=ScenarioConfig(), rows=rows)
    assert direct(hook)(config=ScenarioConfig(), rows=[{}]) == {"count": 1}
    with pytest.raises(KeyError):
        direct(hook)(config=ScenarioConfig())


def test_a_wrapper_of_stream_wraps_the_iterator() -> None:
    talker = SimpleNamespace(stream=hookimpl(lambda request: iter([request, "b"])))
    hook = make_relay(talker, "talker", {"loud": Loud()})
    assert list(hook.stream(config=ScenarioConfig(), processor=None, model=None, request="a")) == ["A", "B"]
    assert make_relay(Plain(), "plain", {"loud": Loud()}).stream(config=ScenarioConfig(), processor=None, model=None, request="a") is None


def test_misspelt_hooks_and_arguments_are_refused() -> None:
    with pytest.raises(pluggy.PluginValidationError, match="unknown hook 'fits'"):
        make_relay(SimpleNamespace(fits=hookimpl(lambda: 1)), "x")
    with pytest.raises(pluggy.PluginValidationError, match="row"):
        make_relay(SimpleNamespace(fit=hookimpl(lambda row: row)), "x")


def test_names_of_hooks() -> None:
    assert HOOKS.index("fields") < HOOKS.index("model") < HOOKS.index("train") < HOOKS.index("load") < HOOKS.index("stream")
    assert implemented(Plain()) == ["fit"]


def test_collate_pads_free_axes_only() -> None:
    hook = make_relay(Plain(), "plain")
    signature = Signature((TensorSpec("tokens", "int64", (-1,), pad=7),), ())
    batch = [{"tokens": np.array([1, 2, 3]), "labels": np.array([1, 2, 3])}, {"tokens": np.array([4]), "labels": np.array([9])}]
    joined = hook.collate(config=ScenarioConfig(), signature=signature, batch=batch)
    assert joined["tokens"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert joined["labels"].tolist() == [[1, 2, 3], [9, -100, -100]]
    assert joined["tokens"].dtype == np.int64
