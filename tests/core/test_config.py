"""Settings: precedence, origins, and errors that name the nearest key, the file and the line."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from scenarium.core.config import SHARED, GatewayConfig, ScenarioConfig, TrainConfig, check_shared, explain
from scenarium.core.errors import ScenariumError, SeveralErrors
from scenarium.core.settings import Settings, nearest_name, setting_names

PREFIX = ("scenarios", "shop")


def read(path: Path | None = None, text: str | None = None, **kwargs: object) -> Settings:
    if path is not None and text is not None:
        path.write_text(text, encoding="utf8")
    return Settings.read(path, **{"environ": {}, **kwargs})  # type: ignore[arg-type]


def test_later_layers_win_and_every_value_knows_its_origin(clean: Path) -> None:
    file = clean / "scenarios.toml"
    text = "# comment\n[scenarios.shop.train]\nepochs = 4\nlr = 0.1\nseed = 1\n\n[scenarios.shop]\nserve = { workers = 3 }\n"
    environ = {"SCENARIUM_SHOP__TRAIN__LR": "0.2", "SCENARIUM_SHOP__TRAIN__SEED": "2"}
    settings = read(file, text, environ=environ, sets=["train.seed=3"], scenario="shop")
    config = settings.validate(ScenarioConfig, PREFIX, "shop")
    assert (config.train.epochs, config.train.lr, config.train.seed, config.serve.workers, config.train.batch_size) == (4, 0.2, 3, 3, 32)
    found = {key: str(origin) for key, _, origin, _ in explain(settings, ScenarioConfig, "shop")}
    assert found["train.epochs"] == f"{file}:3"
    assert found["train.lr"] == "SCENARIUM_SHOP__TRAIN__LR"
    assert found["train.seed"] == "--set train.seed"
    assert found["serve.workers"] == f"{file}:8"
    assert found["train.batch_size"] == "default"


def test_a_whole_table_overrides_and_is_overridden_in_order(clean: Path) -> None:
    text = "[scenarios.shop.train]\nepochs = 4\nlr = 0.1\n"
    settings = read(clean / "s.toml", text, environ={"SCENARIUM_SHOP__TRAIN": '{"epochs": 7}'}, sets=["train.epochs=9"], scenario="shop")
    config = settings.validate(ScenarioConfig, PREFIX, "shop")
    assert (config.train.epochs, config.train.lr) == (9, 1e-3)  # the variable replaced the whole table, --set came last
    reverse = read(clean / "s.toml", environ={}, sets=["train.epochs=9", 'train={"lr": 0.5}'], scenario="shop")
    assert reverse.validate(ScenarioConfig, PREFIX, "shop").train.epochs == 3


@pytest.mark.parametrize(
    ("text", "line", "field", "nearest"),
    [
        ("[scenarios.shop.train]\nlr = 1\nepoch = 4\n", 3, "train.epoch", "train.epochs"),
        ("[scenarios.shop]\ntrain.epoch = 4\n", 2, "train.epoch", "train.epochs"),
        ("[scenarios.shop]\ntrian = { lr = 1 }\n", 2, "trian", "train"),
        ('[scenarios.shop.data]\nmap = { a = "b" }\nnote = """\n[scenarios.fake]\nepochs = 1\n"""\n', 3, "data.note", "data"),
        ('[scenarios."shop"."train"]\n"epoch" = 4\n', 2, "train.epoch", "train.epochs"),
    ],
)
def test_unknown_settings_name_the_nearest_one_with_file_and_line(clean: Path, text: str, line: int, field: str, nearest: str) -> None:
    settings = read(clean / "s.toml", text)
    with pytest.raises(ScenariumError) as caught:
        settings.validate(ScenarioConfig, PREFIX, "shop")
    error = caught.value
    assert (error.code, error.field, error.file, error.line) == ("SCN-1003", field, str(clean / "s.toml"), line)
    assert nearest in error.hint("en")
    assert nearest in error.hint("zh")


@pytest.mark.parametrize(
    ("text", "line", "nearest"),
    [
        ("[scenarios.shop]\n[gatway]\nport = 1\n", 2, "[gateway]"),
        ("store = 'x'\n", 1, "gateway"),
        ("[scenarios]\nshop = 3\n", 2, "[scenarios.shop]"),
        ("[scenario.shop.train]\nlr = 1\n", 1, "[scenarios]"),
    ],
)
def test_unknown_tables_are_refused(clean: Path, text: str, line: int, nearest: str) -> None:
    with pytest.raises(ScenariumError) as caught:
        read(clean / "s.toml", text)
    assert (caught.value.code, caught.value.line) == ("SCN-1003", line)
    assert nearest in caught.value.hint()


def test_shared_tables_are_checked(clean: Path) -> None:
    with pytest.raises(ScenariumError) as caught:
        check_shared(read(clean / "s.toml", "[gateway]\nprot = 80\n"))
    assert (caught.value.code, caught.value.line) == ("SCN-1003", 2)
    assert "'port'" in caught.value.hint()
    with pytest.raises(ScenariumError, match="stroe"):
        check_shared(read(clean / "s.toml", "[scenarium]\nstroe = 'x'\n"))
    assert "host" in setting_names(SHARED["gateway"])


def test_several_errors_are_told_at_once(clean: Path) -> None:
    text = "[scenarios.shop.train]\nepochs = 'many'\nlearning = 1\n[scenarios.shop.serve]\nworkers = 0\n"
    settings = read(clean / "s.toml", text, environ={"SCENARIUM_SHOP__DATA__VAL": "2"})
    with pytest.raises(SeveralErrors) as caught:
        settings.validate(ScenarioConfig, PREFIX, "shop")
    shown = str(caught.value)
    for piece in (
        "4 settings of shop",
        "s.toml:2: Setting 'train.epochs'",
        "s.toml:3: Unknown setting 'train.learning'",
        "s.toml:5",
        "SCENARIUM_SHOP__DATA__VAL",
    ):
        assert piece in shown
    assert len(caught.value.problem("zh")["errors"]) == 4
    assert str(pickle.loads(pickle.dumps(caught.value))) == shown


@pytest.mark.parametrize(("text", "code"), [("[scenarios.shop\n", "SCN-1005"), ("a = 'x\n", "SCN-1005"), ("[a]\n[a]\n", "SCN-1005"), ("\xff", "SCN-1005")])
def test_what_is_no_toml_names_the_line(clean: Path, text: str, code: str) -> None:
    (clean / "s.toml").write_bytes(text.encode("latin1"))
    with pytest.raises(ScenariumError) as caught:
        read(clean / "s.toml")
    assert caught.value.code == code
    assert caught.value.file == str(clean / "s.toml")


def test_a_missing_file_and_a_malformed_set_are_clear(clean: Path) -> None:
    with pytest.raises(ScenariumError, match=r"SCN-1005.*No such file"):
        read(clean / "no.toml")
    for wrong in ("train.epochs", "=3", "train..epochs=3"):
        with pytest.raises(ScenariumError, match="key=value"):
            read(sets=[wrong], scenario="shop")


def test_store_is_relative_to_the_file_that_names_it(clean: Path) -> None:
    (clean / "sub").mkdir()
    assert read(clean / "sub" / "s.toml", "[scenarium]\nstore = 'mine'\n").store_url == str(clean / "sub" / "mine")
    assert read(clean / "sub" / "s.toml", "", environ={"SCENARIUM_STORE": "here"}).store_url == str(clean / "here")
    assert read(None, environ={"SCENARIUM_STORE": "s3://bucket/x"}).store_url == "s3://bucket/x"
    assert read(None).store_url == str(clean / "data" / "scenarium" / "store")


def test_values_given_as_text_are_typed(clean: Path) -> None:
    sets = ['data.accept_licence=["a"]', "train.patience=null", "train.clip=None", "serve.required=True", "data.path=3 men.csv", "data.map.text=内容"]
    config = read(sets=sets, scenario="shop").validate(ScenarioConfig, PREFIX, "shop")
    assert config.data.accept_licence == ["a"]
    assert config.train.clip is None
    assert config.serve.required is True
    assert config.data.path == "3 men.csv"
    assert config.data.map == {"text": "内容"}


def test_set_without_a_scenario_names_one(clean: Path) -> None:
    settings = read(sets=["shop.serve.workers=2", "gateway.port=9"])
    assert settings.validate(ScenarioConfig, PREFIX, "shop").serve.workers == 2
    assert settings.validate(GatewayConfig, ("gateway",), "gateway").port == 9


def test_nearest_name() -> None:
    names = setting_names(ScenarioConfig)
    assert nearest_name("train.epcohs", names) == "train.epochs"
    assert nearest_name("batchsize", names) in ("train.batch_size", "serve.max_batch_size")
    assert nearest_name("zzz", names) == "data, serve, train"


def test_the_example_file_at_the_root_is_valid(clean: Path) -> None:
    """With every line switched on, so that no comment in it shows a setting that does not exist."""
    root = Path(__file__).parents[2] / "scenarios.toml"
    lines = root.read_text(encoding="utf8").splitlines()
    on = [line[1:] if line.startswith("#") and not line.startswith("# ") else line for line in lines]
    settings = read(clean / "s.toml", "\n".join(on))
    check_shared(settings)
    from scenarium.core.registry import Registry

    registry = Registry(settings)
    assert settings.scenarios()
    for name in settings.scenarios():
        if registry.names().get(name) in registry.plugins:
            assert registry.scenario(name).config


def test_a_users_table_keeps_the_plugins_other_defaults() -> None:
    class Config(ScenarioConfig):
        train: TrainConfig = TrainConfig(epochs=8, batch_size=7)

    config = Config.model_validate({"train": {"lr": 0.5}})
    assert (config.train.lr, config.train.epochs, config.train.batch_size) == (0.5, 8, 7)


def test_an_audit_log_that_is_required_needs_a_file(clean: Path) -> None:
    settings = read(clean / "s.toml", "[gateway]\nport = 1\naudit_required = true\n")
    with pytest.raises(ScenariumError) as caught:
        settings.validate(GatewayConfig, ("gateway",), "gateway")
    assert (caught.value.code, caught.value.field, caught.value.file, caught.value.line) == ("SCN-1004", "audit_required", str(clean / "s.toml"), 3)
    assert "set gateway.audit" in caught.value.title()
    assert "请设置 gateway.audit" in caught.value.title("zh")
    assert read(sets=["gateway.audit=a.jsonl", "gateway.audit_required=true"]).validate(GatewayConfig, ("gateway",), "gateway").audit_required
