"""Checks of the hooks themselves: which there are, how they are annotated, what they declare. Nothing is trained here."""

from __future__ import annotations

import inspect
from typing import Any, get_args

from pydantic import BaseModel

from scenarium.core import hookspecs
from scenarium.core.config import ScenarioConfig
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.kit.annotations import fits, hints, text
from scenarium.core.kit.checks import NotApplicable, check
from scenarium.core.kit.subject import Subject
from scenarium.core.types import Metric, Schema, Signature, Traits

REQUIRED = ("fields", "schema", "sample", "metric", "score")


@check("bronze", "plugin", "插件可以导入，其钩子的名称和参数名称正确")
def loads(s: Subject) -> None:
    """The plugin imports, and the names of its hooks and of their arguments are known"""
    assert s.hook


@check("bronze", "plugin", "必需的钩子都已实现", after=("loads",))
def required_hooks(s: Subject) -> None:
    """The required hooks are implemented"""
    have = set(s.implemented)
    missing = [name for name in REQUIRED if name not in have]
    if "train" not in have:
        missing += [name for name in ("encode", "signature", "model") if name not in have]
    elif not have & {"load", "model"}:
        missing.append("load")
    if missing:
        raise ScenariumError("SCN-7101", hooks=", ".join(missing))


@check("bronze", "plugin", "钩子的类型注解与规范一致", after=("loads",))
def annotated(s: Subject) -> None:
    """The hooks' annotations agree with the specification"""
    for name in s.implemented:
        own = getattr(s.scenario.implementation, name)
        spec_hints, own_hints = hints(getattr(hookspecs, name)), hints(own)
        for argument, annotation in own_hints.items():
            if argument == "return" and own.scenarium_impl["wrapper"]:
                # What a wrapper returns is the third of Generator[yields, takes, returns].
                annotation = (*get_args(annotation), Any, Any, Any)[2]
            if not fits(annotation, spec_hints.get(argument, Any)):
                where = "return" if argument == "return" else argument
                code = inspect.unwrap(own).__code__
                raise ScenariumError(
                    "SCN-7102", file=code.co_filename, line=code.co_firstlineno, hook=name, where=where, got=text(annotation), wants=text(spec_hints[argument])
                )


@check("bronze", "plugin", "config、schema、metric、traits、signature 返回规定的类型", after=("required-hooks",))
def declarations(s: Subject) -> None:
    """The hooks config, schema, metric and traits return what the specification says"""
    config_class = s.hook.config()
    _is("config", isinstance(config_class, type) and issubclass(config_class, ScenarioConfig), config_class, "a subclass of ScenarioConfig")
    schema = s.hook.schema(config=s.config)
    pair = isinstance(schema, Schema) and all(isinstance(part, type) and issubclass(part, BaseModel) for part in schema)
    _is("schema", pair, schema, "Schema(request class, response class), both pydantic models")
    metric, traits = s.hook.metric(config=s.config), s.hook.traits(config=s.config)
    _is("metric", isinstance(metric, Metric), metric, "a Metric")
    _is("traits", isinstance(traits, Traits), traits, "Traits")


@check("bronze", "plugin", "请求类和应答类拒绝未知字段", after=("declarations",))
def forbids_extras(s: Subject) -> None:
    """The request and response classes refuse unknown fields, in nested classes too"""
    schema = s.hook.schema(config=s.config)
    for cls in _nested([schema.request, schema.response]):
        if cls.model_config.get("extra") != "forbid":
            raise ScenariumError("SCN-7103", cls=cls.__name__)


@check("bronze", "plugin", "示例是有效的请求，转成 JSON 再读回后不变", after=("declarations",))
def sample_valid(s: Subject) -> None:
    """The sample is a valid request and survives JSON"""
    from scenarium.core.bodies import decode

    sample = s.hook.sample(config=s.config)
    cls = s.hook.schema(config=s.config).request
    if not isinstance(sample, cls):
        raise ScenariumError(
            "SCN-7104", reason=Words(f"it is a {type(sample).__name__}, not a {cls.__name__}", f"其类型为 {type(sample).__name__}，而不是 {cls.__name__}")
        )
    body = sample.model_dump_json(exclude_unset=True).encode()
    try:
        back = decode(body, "application/json", cls)
    except ScenariumError as fault:
        raise ScenariumError("SCN-7104", field=fault.field, reason=Words(fault.title(), fault.title("zh"))) from None
    if back.model_dump(mode="json") != sample.model_dump(mode="json"):
        raise ScenariumError("SCN-7104", reason=Words("it reads back from JSON as another value", "从 JSON 读回后成为另一个值"))


@check("silver", "plugin", "指标有下限，或者有基线可作下限", after=("declarations",))
def floor_stated(s: Subject) -> None:
    """The metric has a floor, or a baseline stands for it"""
    if s.hook.metric(config=s.config).floor is None and "baseline" not in s.implemented:
        raise ScenariumError("SCN-7105", metric=s.hook.metric(config=s.config).name)


@check("bronze", "plugin", "环境的文件夹里有 env_main.py 和锁定文件", after=("loads",))
def environment_complete(s: Subject) -> None:
    """The environment's folder holds env_main.py and a lock for each Python"""
    environment = s.hook.environment()
    if environment is None:
        raise NotApplicable("the scenario runs in the main interpreter", "该场景在主解释器中运行")
    wanted = ["env_main.py", *(f"lock-{python}.txt" for python in environment.pythons)]
    missing = [name for name in wanted if not (environment.folder / name).is_file()]
    if missing:
        raise ScenariumError("SCN-7106", file=environment.folder, missing=", ".join(missing))


def _is(hook: str, good: bool, got: object, wants: str) -> None:
    if not good:
        raise ScenariumError("SCN-7107", hook=hook, got=repr(got)[:120], wants=wants)


def _nested(classes: list[type[BaseModel]]) -> list[type[BaseModel]]:
    """The classes and every pydantic class that their fields mention."""
    found: list[type[BaseModel]] = []
    waiting: list[Any] = list(classes)
    while waiting:
        part = waiting.pop()
        waiting += get_args(part)
        if isinstance(part, type) and issubclass(part, BaseModel) and part not in found:
            found.append(part)
            waiting += [info.annotation for info in part.model_fields.values()]
    return found


def signature_of(s: Subject) -> Signature:
    """The signature with the state that ``fit`` returns on the slice of data."""
    signature: Signature = s.hook.signature(config=s.config, state=dict(s.hook.fit(config=s.config, rows=s.data.train)))
    return signature
