"""Checks of the data hooks: sources, fields, fit, items, encode."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np

from scenarium.core.difference import difference
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.kit.checks import NotApplicable, check
from scenarium.core.kit.plugin_checks import signature_of
from scenarium.core.kit.subject import Subject
from scenarium.core.types import Field, Origin, Row, TensorSpec


@check("bronze", "data", "字段用 Field 声明，每个数据来源都写明来历与许可证", after=("declarations",))
def sources_stated(s: Subject) -> None:
    """The fields are Field values, and every source states origin and licence"""
    for name, field in s.hook.fields(config=s.config).items():
        if not isinstance(field, Field):
            raise ScenariumError("SCN-7107", hook="fields", got=f"{name}: {field!r}"[:120], wants="a mapping of name to Field")
    for source in s.hook.sources(config=s.config):
        if not source.licence.strip() or source.origin not in get_args(Origin):
            raise ScenariumError("SCN-7301", source=source.name, licence=source.licence, origin=source.origin)


@check("bronze", "data", "数据的每一行都有必需的字段", after=("sources-stated",))
def rows_have_fields(s: Subject) -> None:
    """Every row of the data has the required fields"""
    fields = s.hook.fields(config=s.config)
    for row in [*s.data.train, *s.data.val, *s.data.test]:
        missing = [name for name, field in fields.items() if field.required and row.get(name) is None]
        if missing:
            raise ScenariumError("SCN-7302", file=row.get("_file"), line=row.get("_line"), missing=", ".join(missing))


@check("bronze", "data", "fit 返回的状态是 JSON", after=("rows-have-fields", "required-hooks"))
def state_json(s: Subject) -> None:
    """What fit returns is JSON and reads back unchanged"""
    state = s.hook.fit(config=s.config, rows=s.data.train)
    try:
        back = json.loads(json.dumps(dict(state), ensure_ascii=False, allow_nan=False))
    except (TypeError, ValueError) as fault:
        raise ScenariumError("SCN-7303", reason=str(fault)) from None
    # A tuple comes back as a list, which is the plugin's business; a number that comes back as a text key is a fault.
    if found := difference(state, back):
        raise ScenariumError("SCN-7303", reason=Words(f"it reads back changed at {found}", f"读回后发生变化：{found}"))


@check("silver", "data", "钩子不改动传入的数据行", after=("state-json",))
def rows_unchanged(s: Subject) -> None:
    """The hooks leave the rows that they are given as they are"""
    steps: dict[str, Callable[[list[Row]], Any]] = {"fit": lambda rows: s.hook.fit(config=s.config, rows=rows)}
    processor = s.hook.processor(config=s.config, state=_state(s))
    steps["items"] = lambda rows: s.hook.items(config=s.config, processor=processor, rows=rows, split="val")
    if "encode" in s.implemented:
        steps["encode"] = lambda rows: [
            s.hook.encode(config=s.config, processor=processor, item=item, rng=np.random.default_rng(0))
            for item in list(s.hook.items(config=s.config, processor=processor, rows=rows, split="train"))[:4]
        ]
    for hook, step in steps.items():
        rows = copy.deepcopy(s.data.train[:64])
        before = copy.deepcopy(rows)
        step(rows)
        if found := difference(before, rows):
            raise ScenariumError("SCN-7304", hook=hook, reason=found)


@check("bronze", "data", "encode 给出签名的全部输入，类型和形状一致", after=("state-json",))
def encode_arrays(s: Subject) -> None:
    """Encode gives every input of the signature, with its dtype and shape"""
    signature = signature_of(s)
    arrays = _encoder(s)(None)
    for spec in signature.inputs:
        agrees("encode", spec, arrays)


@check("silver", "data", "encode 只用传入的随机数生成器", after=("encode-arrays",))
def augmentation_seeded(s: Subject) -> None:
    """Encode draws from the generator that it is given, and from nothing else"""
    encode = _encoder(s)
    for seed in (None, 3):
        first, second = (encode(None if seed is None else np.random.default_rng(seed)) for _ in range(2))
        if found := difference(first, second):
            raise ScenariumError("SCN-7305", reason=found)


@check("silver", "data", "输入不依赖标签，也不依赖未来的数据", after=("augmentation-seeded",))
def look_ahead(s: Subject) -> None:
    """No input depends on the target or on later rows"""
    fields = s.hook.fields(config=s.config)
    if "items" in s.implemented:
        if not any(field.kind == "time" for field in fields.values()):
            raise NotApplicable("the items are neither rows nor windows in time", "训练项既不是行，也不是时间窗口")
        _causal(s, [name for name, field in fields.items() if field.kind == "number"])
    else:
        _label_blind(s, fields)


def _label_blind(s: Subject, fields: Mapping[str, Field]) -> None:
    """Change the fields that a request does not have; the inputs must stay."""
    request = s.hook.schema(config=s.config).request.model_fields
    targets = [name for name, field in fields.items() if name not in request and field.kind in ("label", "number", "integer")]
    if not targets or "request" in s.implemented:
        raise NotApplicable("no field is a plain target", "没有单纯作为目标的字段")
    inputs = [spec.name for spec in signature_of(s).inputs]
    processor = s.hook.processor(config=s.config, state=_state(s))
    for target in targets:
        rows = [row for row in s.data.train if target in row]
        other = next((row for row in rows if row[target] != rows[0][target]), None)
        if other is None:
            continue
        plain, changed = (s.hook.encode(config=s.config, processor=processor, item=row, rng=None) for row in (rows[0], {**rows[0], target: other[target]}))
        for name in inputs:
            if found := difference(plain[name], changed[name], where=name):
                raise ScenariumError("SCN-7306", target=target, reason=found)


def _causal(s: Subject, numbers: list[str]) -> None:
    """The last row that an item's targets depend on must come after the last one that its inputs depend on.

    The last row is found by bisection: changing all rows from k on changes the arrays exactly when k is not past it.
    """
    rows = s.data.train
    state = _state(s)
    processor = s.hook.processor(config=s.config, state=state)
    inputs = {spec.name for spec in s.hook.signature(config=s.config, state=state).inputs}
    length = len(s.hook.items(config=s.config, processor=processor, rows=rows, split="val"))

    def arrays(changed_from: int) -> Mapping[str, Any]:
        other = [{**row, **{n: row[n] * 1.37 + 1 for n in numbers if row.get(n) is not None}} for row in rows[changed_from:]]
        items = s.hook.items(config=s.config, processor=processor, rows=[*rows[:changed_from], *other], split="val")
        encoded: Mapping[str, Any] = s.hook.encode(config=s.config, processor=processor, item=items[length // 2], rng=None)
        return encoded

    whole = arrays(len(rows))

    def last_row(names: set[str]) -> int:
        low, high = 0, len(rows)
        while high - low > 1:
            middle = (low + high) // 2
            now = arrays(middle)
            if any(difference(whole[name], now[name]) for name in names):
                low = middle
            else:
                high = middle
        return low

    seen, wanted = last_row(inputs), last_row(set(whole) - inputs)
    if seen >= wanted:
        raise ScenariumError("SCN-7307", seen=seen, wanted=wanted)


def agrees(hook: str, spec: TensorSpec, arrays: Mapping[str, Any]) -> None:
    """Raise unless ``arrays`` holds what ``spec`` declares."""
    if spec.name not in arrays:
        raise ScenariumError("SCN-7308", hook=hook, name=spec.name, got="nothing", wants=f"{spec.dtype}{list(spec.shape)}")
    array = np.asarray(arrays[spec.name])
    fits = array.ndim == len(spec.shape) and all(want in (-1, have) for want, have in zip(spec.shape, array.shape, strict=False))
    if str(array.dtype) != spec.dtype or not fits:
        raise ScenariumError("SCN-7308", hook=hook, name=spec.name, got=f"{array.dtype}{list(array.shape)}", wants=f"{spec.dtype}{list(spec.shape)}")


def _state(s: Subject) -> dict[str, Any]:
    return dict(s.hook.fit(config=s.config, rows=s.data.train))


def _encoder(s: Subject) -> Callable[[np.random.Generator | None], Mapping[str, Any]]:
    """Encodes the first training item with a generator."""
    if "encode" not in s.implemented:
        raise NotApplicable("the plugin does not encode", "插件没有实现 encode")
    processor = s.hook.processor(config=s.config, state=_state(s))
    item = s.hook.items(config=s.config, processor=processor, rows=s.data.train, split="train")[0]
    return lambda rng: s.hook.encode(config=s.config, processor=processor, item=copy.deepcopy(item), rng=rng)
