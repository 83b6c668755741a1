"""Checks of answering: the batch, neighbours, repetition, bad input, a process of its own."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from scenarium.core.difference import difference
from scenarium.core.errors import ScenariumError, Words
from scenarium.core.kit.checks import NotApplicable, check, raised
from scenarium.core.kit.child import Report, run_child
from scenarium.core.kit.data_checks import agrees
from scenarium.core.kit.subject import Subject
from scenarium.core.kit.train_checks import outputs
from scenarium.core.reasons import reason


@check("bronze", "serve", "应答属于应答类，转成 JSON 再读回后不变", after=("trains",))
def answer_valid(s: Subject) -> None:
    """The answers belong to the response class and survive JSON"""
    for request in s.requests:
        answer = s.runtime.predict([request])[0]
        if isinstance(answer, Exception):
            raise answer
        if found := _bad_answer(s, answer):
            raise ScenariumError("SCN-7501", reason=found)


@check("bronze", "serve", "preprocess 给出签名的全部输入", after=("trains",))
def preprocess_arrays(s: Subject) -> None:
    """Preprocess gives every input of the signature, with its dtype and shape"""
    if "predict_batch" in s.implemented or not s.runtime.signature.inputs:
        raise NotApplicable("the plugin predicts by itself", "插件自行预测")
    for item in _items(s):
        for spec in s.runtime.signature.inputs:
            agrees("preprocess", spec, item)


@check("bronze", "serve", "输出的数量等于请求的数量", after=("trains",))
def answer_count(s: Subject) -> None:
    """A batch gives as many outputs as it has items"""
    items = _items(s)
    for part in (items[:1], items[:2], items):
        got = len(outputs(s.runtime, part))
        if got != len(part):
            raise ScenariumError("SCN-7502", got=got, sent=len(part))


@check("bronze", "serve", "同一请求重复发送得到相同的应答", after=("answer-count",))
def deterministic(s: Subject) -> None:
    """The same request gives the same answer again"""
    _pure(s)
    for item in _items(s):
        first, second, third = (outputs(s.runtime, [item]) for _ in range(3))
        if found := difference(first, second, s.runtime.traits.tolerance) or difference(first, third, s.runtime.traits.tolerance):
            raise ScenariumError("SCN-7503", reason=found)


@check("bronze", "serve", "输出与请求顺序一致", after=("deterministic",))
def answer_order(s: Subject) -> None:
    """The outputs of a batch stand in the order of its items"""
    singles, batch, tolerance = _singles_and_batch(s)
    if difference(singles, batch, tolerance) and _permuted(singles, batch, tolerance):
        raise ScenariumError("SCN-7504")


@check("silver", "serve", "成批处理与逐个处理的结果相同", after=("answer-order",))
def batch_singles(s: Subject) -> None:
    """A batch of n gives what n batches of one give"""
    singles, batch, tolerance = _singles_and_batch(s)
    if found := difference(singles, batch, tolerance):
        raise ScenariumError("SCN-7505", reason=found, tolerance=tolerance)


@check("silver", "serve", "应答不受之前请求的影响", after=("deterministic", "answer-valid"))
def stateless(s: Subject) -> None:
    """An answer does not depend on the requests before it"""
    _pure(s)
    report = _child(s)
    if found := difference(report.first, report.again, s.runtime.traits.tolerance):
        raise ScenariumError("SCN-7506", reason=found)


@check("silver", "serve", "处理请求时不改动请求", after=("answer-valid",))
def request_unchanged(s: Subject) -> None:
    """Answering leaves the request as it is"""
    request = s.hook.sample(config=s.config)
    before = request.model_dump()
    s.runtime.predict([request])
    if found := difference(before, request.model_dump()):
        raise ScenariumError("SCN-7507", reason=found)


@check("bronze", "serve", "错误的输入得到 4xx，从不 5xx", after=("answer-valid", "forbids-extras"))
def bad_input(s: Subject) -> None:
    """Bad input is answered with 4xx or answered well, never with 5xx"""
    for bad, answer in s.bad_answers:
        if isinstance(answer, ScenariumError) and answer.status < 500:
            continue
        if isinstance(answer, Exception):
            cause = raised(answer.__cause__ or answer, s.home)
            raise ScenariumError("SCN-7508", file=cause.file, line=cause.line, what=bad.what, what_zh=bad.what_zh, reason=cause.values["reason"])
        if bad.must_fail:
            raise ScenariumError("SCN-7509", what=bad.what, what_zh=bad.what_zh)
        if found := _bad_answer(s, answer):
            raise ScenariumError("SCN-7508", what=bad.what, what_zh=bad.what_zh, reason=found)


@check("silver", "serve", "错误的字段在 422 中被指明", after=("bad-input",))
def names_field(s: Subject) -> None:
    """A 422 names the field at fault"""
    for bad, answer in s.bad_answers:
        if bad.field and isinstance(answer, ScenariumError) and bad.field not in (answer.field or ""):
            raise ScenariumError("SCN-7510", what=bad.what, what_zh=bad.what_zh, wants=bad.field, got=answer.field)


@check("silver", "serve", "新进程载入该版本后给出相同的应答", after=("stateless",))
def fresh_process(s: Subject) -> None:
    """A new process gives the same answers"""
    _pure(s)
    report = _child(s)
    here = _answers(s.runtime.predict(s.requests))
    if found := difference(here, report.answers, max(s.runtime.traits.tolerance, 1e-3 if report.engine != "torch" else 0)):
        raise ScenariumError("SCN-7511", reason=found)


@check("silver", "serve", "有导出文件时，服务过程不导入 torch", after=("trains",))
def bare_path(s: Subject) -> None:
    """Where the version has an export, answering imports no torch"""
    report = _child(s)
    if report.engine == "torch" and ("load" not in s.implemented or "model" in s.implemented):
        raise NotApplicable("the version has no export", "该版本没有导出文件")
    if report.torch is not None:
        raise ScenariumError("SCN-7512", file=report.torch[0], line=report.torch[1])


@check("silver", "serve", "处理请求后内存和线程数不增长", after=("trains",))
def no_growth(s: Subject) -> None:
    """Memory and threads do not grow from request to request"""
    report = _child(s)
    if report.threads_added:
        raise ScenariumError("SCN-7513", what=f"{report.threads_added} threads", what_zh=f"{report.threads_added} 个线程")
    if report.bytes_a_request > 256:
        raise ScenariumError("SCN-7513", what=f"{report.bytes_a_request} bytes a request", what_zh=f"每个请求 {report.bytes_a_request} 字节")


@check("silver", "serve", "进程结束时立即退出，内存随之归还", after=("trains",))
def ends(s: Subject) -> None:
    """The process ends at once when its work is over, so its memory comes back"""
    if not _child(s).ended:
        raise ScenariumError("SCN-7514")


@check("gold", "serve", "流式输出的每一部分都是 JSON，且可以提前关闭", after=("trains",))
def streams(s: Subject) -> None:
    """Every part of a stream is JSON, and a stream can be closed early"""
    import json

    says, does = s.runtime.traits.streams, "stream" in s.implemented
    if says != does:
        raise ScenariumError("SCN-7515", says=says, does=does)
    if not does:
        raise NotApplicable("the scenario does not stream", "该场景不支持流式输出")
    parts = [json.dumps(part, allow_nan=False) for part in s.runtime.stream(s.hook.sample(config=s.config))]
    if not parts:
        raise ScenariumError("SCN-7515", says=says, does="no part came")
    early: Any = s.runtime.stream(s.hook.sample(config=s.config))
    next(early)
    early.close()


def _pure(s: Subject) -> None:
    if not s.runtime.traits.pure:
        raise NotApplicable("the scenario keeps a state between requests (traits.pure is False)", "该场景在请求之间保留状态（traits.pure 为 False）")


def _items(s: Subject) -> list[Any]:
    return [s.hook.preprocess(config=s.config, processor=s.runtime.processor, request=request) for request in s.requests]


def _singles_and_batch(s: Subject) -> tuple[list[Any], list[Any], float]:
    _pure(s)
    items = _items(s)[: s.runtime.max_batch_size]
    if len(items) < 2:
        raise NotApplicable("the batch limit is one", "批次上限为 1")
    return [outputs(s.runtime, [item])[0] for item in items], outputs(s.runtime, items), s.runtime.traits.tolerance


def _permuted(singles: list[Any], batch: list[Any], tolerance: float) -> bool:
    left = list(batch)
    for single in singles:
        match = next((i for i, other in enumerate(left) if not difference(single, other, tolerance)), None)
        if match is None:
            return False
        left.pop(match)
    return True


def _answers(answers: list[BaseModel | Exception]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return [answer.model_dump(mode="json") for answer in answers if isinstance(answer, BaseModel)]


def _bad_answer(s: Subject, answer: object) -> str | Words | None:
    """Why an answer is none; NaN becomes null in JSON and does not read back as a number."""
    cls = s.runtime.schema.response
    if not isinstance(answer, cls):
        return Words(f"it is a {type(answer).__name__}, not a {cls.__name__}", f"其类型为 {type(answer).__name__}，而不是 {cls.__name__}")
    try:
        back = cls.model_validate_json(answer.model_dump_json())
    except ValidationError as fault:
        first = fault.errors(include_url=False)[0]
        said, where = reason(first), ".".join(map(str, first["loc"]))
        return Words(f"{where}: {said.en}", f"{where}：{said.zh}")
    return difference(answer.model_dump(mode="json"), back.model_dump(mode="json"))


def _child(s: Subject) -> Report:
    """One process that loads the version and answers, shared by the checks that look at it."""
    if s.child is None:
        exported = "model.onnx" in s.trained.manifest.files
        s.child = run_child(s, "onnx" if exported else "torch")
    return s.child
