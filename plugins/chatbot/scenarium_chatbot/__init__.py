"""Customer service by Rasa 3.6: order status, refund, hand-over to a person, small talk; Chinese and English.

Rasa runs in an environment of its own (``scenarium env create chatbot``); this module lives in the main interpreter and talks to it.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import Field as Described

from scenarium.core import (
    BadInput,
    Baseline,
    Data,
    Environment,
    Evaluation,
    Field,
    Figure,
    Metric,
    Request,
    Response,
    Row,
    Run,
    Runtime,
    ScenariumError,
    Schema,
    Signature,
    Source,
    Traits,
    hookimpl,
)
from scenarium.core.engines.environment_engine import EnvironmentProcess
from scenarium.core.errors import Words
from scenarium_chatbot import project
from scenarium_chatbot.bots import ARCHIVE, ENVIRONMENT, Bot, LocalBot, RemoteBot, bot_settings
from scenarium_chatbot.settings import ChatbotConfig
from scenarium_chatbot.utterances import shipped

OUT_OF_SCOPE = "out_of_scope"
FALLBACK = {
    "en": "Sorry, I have no answer to that. Please say it in other words, or ask for a person.",
    "zh": "抱歉，我暂时无法回答。请换一种说法，或回复“转人工”。",
}
"""What is said where the bot says nothing: an empty answer helps no one."""
PROBES = 50
"""Utterances sent to an external bot that tells no intents, to see whether it answers."""


class Ask(Request):
    """One message of a conversation."""

    session_id: str = Described(min_length=1, max_length=200, description="Names the conversation; its messages are answered in order.")
    text: str = Described(min_length=1, max_length=2000, description="What the user says.")
    language: Literal["zh", "en"] | None = Described(None, description="Language of the replies; by default that of the text.")


class Answer(Response):
    """What the bot says to it."""

    replies: list[str] = Described(description="At least one message, in order.")
    intent: str | None = Described(description="What the user wants; `nlu_fallback` where the bot is unsure, null where an external bot does not tell.")
    confidence: float = Described(description="Of the intent, 0 to 1.")
    slots: dict[str, Any] = Described(description="What the conversation has gathered, such as `order_id`.")
    handover: bool = Described(description="True when a person is to take over now.")
    language: Literal["zh", "en"]


@hookimpl
def config() -> type[ChatbotConfig]:
    return ChatbotConfig


@hookimpl
def environment() -> Environment:
    return ENVIRONMENT


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@hookimpl
def fields() -> Mapping[str, Field]:
    return {
        "text": Field("text", "What a user says"),
        "intent": Field("label", "What it means"),
        "language": Field("label", "zh or en", required=False),
        "reply": Field("text", "The bot's answer to this intent, for intents of your own", required=False),
    }


@hookimpl
def sources(config: ChatbotConfig) -> Sequence[Source]:
    if config.model.project:
        folder = Path(config.model.project).expanduser()
        return [Source("own project", "real", "yours", lambda _: project.project_rows(folder), doc=f"The NLU examples of {folder}")]
    doc = "Utterances written for this plugin, Chinese and English; no customer ever said them"
    return [Source("utterances", "generated", "Apache-2.0", lambda _: shipped(), doc=doc)]


@hookimpl
def schema() -> Schema:
    return Schema(Ask, Answer)


@hookimpl
def sample() -> Ask:
    return Ask(session_id="sample", text="查询订单状态")


@hookimpl
def fit(config: ChatbotConfig, rows: Sequence[Row]) -> Mapping[str, Any]:
    replies = {row["intent"]: row["reply"] for row in rows if row.get("reply")}
    return {"names": project.intent_names([row["intent"] for row in rows]), "replies": {**replies, **config.model.replies}}


# ── train ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@hookimpl
def train(config: ChatbotConfig, data: Data, run: Run) -> bool:
    """Write a Rasa project, train it in the environment, and keep the archive. An archive or a server of the user's is taken as it is."""
    own = config.model
    if own.url:
        return True
    if own.archive:
        archive = Path(own.archive).expanduser()
        if not archive.is_file():
            raise ScenariumError("SCN-6027", path=archive, reason=Words("there is no such file", "没有这个文件"))
        shutil.copy(archive, run.out / ARCHIVE)
        return True
    process = EnvironmentProcess(ENVIRONMENT, {"role": "train", "threads": config.train.threads})
    try:
        with tempfile.TemporaryDirectory(prefix="scenarium-rasa-") as scratch:
            folder = Path(scratch) / "project"
            rows = [*data.train, *data.val]
            if own.project:
                project.copy_project(Path(own.project).expanduser(), folder, rows)
            else:
                project.write(folder, config, run.state, rows)
            run.progress.note("starting Rasa")
            process.wait_ready(300)
            _train(process, folder, run)
    finally:
        process.close(grace=0)
    return True


def _train(process: EnvironmentProcess, folder: Path, run: Run) -> None:
    started = False
    for event in process.stream("train", timeout=1800, project=str(folder), out=str(run.out)):
        if not started:
            run.progress.start("training", event["epochs"])
            started = True
        figures = {{"t_loss": "loss", "i_acc": "train_accuracy"}.get(name, name): value for name, value in event["metrics"].items()}
        run.progress.advance(1, **figures)
        run.log(event["epoch"], **figures)
    if started:
        run.progress.finish()


@hookimpl
def metric(config: ChatbotConfig) -> Metric:
    if config.model.url:
        return Metric("answered", floor=0.0)
    # What the user trained elsewhere is taken as it is; the shipped way must beat the baseline.
    return Metric("accuracy", floor=0.0 if config.model.archive or config.model.project else None)


@hookimpl
def evaluate(config: ChatbotConfig, runtime: Runtime, rows: Sequence[Row]) -> Evaluation:
    """Intents of held-out utterances by the NLU alone, outside any conversation.

    What it is unsure of counts as out of scope where the data has that intent: the user is told the same.
    """
    bot: Bot = runtime.model
    label_of = {name: label for label, name in runtime.state.get("names", {}).items()}
    unsure = {row["intent"] for row in rows} & {OUT_OF_SCOPE}
    answers: list[dict[str, Any]]
    try:
        answers = [
            {**parsed, "answered": True, "intent": OUT_OF_SCOPE if parsed["fallback"] and unsure else label_of.get(parsed["intent"], parsed["intent"])}
            for parsed in bot.parse([row["text"] for row in rows])
        ]
    except ScenariumError:
        if not config.model.url:
            raise
        # An external server tells intents only where its API is switched on; that it answers can always be seen.
        rows = rows[:PROBES]
        replies = [bot.message(f"scenarium-probe-{number}", row["text"], None)["replies"] for number, row in enumerate(rows)]
        answers = [{"intent": None, "confidence": 0.0, "fallback": not reply, "answered": bool(reply)} for reply in replies]
    return Evaluation(dict(score(rows=rows, answers=answers)), list(rows), answers)


@hookimpl
def score(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    figures = {"answered": sum(answer["answered"] for answer in answers) / len(rows)}
    if all(answer["intent"] is None for answer in answers):
        return figures
    figures |= _intent_figures([row["intent"] for row in rows], [answer["intent"] for answer in answers])
    figures["asked_to_rephrase"] = sum(answer["fallback"] for answer in answers) / len(rows)
    hits: dict[str, list[bool]] = defaultdict(list)
    for row, answer in zip(rows, answers, strict=True):
        if row.get("language"):
            hits[row["language"]].append(row["intent"] == answer["intent"])
    if len(hits) > 1:
        figures |= {f"accuracy_{language}": sum(found) / len(found) for language, found in sorted(hits.items())}
    return figures


def _intent_figures(true: Sequence[str], predicted: Sequence[str | None]) -> dict[str, float]:
    """Accuracy, and the mean over the true intents of F1 = 2·tp / (2·tp + fp + fn)."""
    support, guessed = Counter(true), Counter(predicted)
    right = Counter(t for t, p in zip(true, predicted, strict=True) if t == p)
    f1 = [2 * right[intent] / (support[intent] + guessed[intent]) for intent in support]
    return {"accuracy": sum(right.values()) / len(true), "macro_f1": sum(f1) / len(f1)}


@hookimpl
def baseline(config: ChatbotConfig, train: Sequence[Row], test: Sequence[Row]) -> Baseline | None:
    if config.model.url or config.model.archive or len({row["intent"] for row in train}) < 2:
        return None
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4)), LogisticRegression(C=10, max_iter=1000))
    model.fit([row["text"] for row in train], [row["intent"] for row in train])
    predicted = [str(label) for label in model.predict([row["text"] for row in test])]
    return Baseline("TF-IDF of character 1- to 4-grams + logistic regression", _intent_figures([row["intent"] for row in test], predicted))


@hookimpl
def report(rows: Sequence[Row], answers: Sequence[Mapping[str, Any]]) -> Sequence[Figure]:
    from scenarium.core import charts

    pairs = [(row, answer) for row, answer in zip(rows, answers, strict=True) if answer["intent"] is not None]
    if not pairs:
        return ()
    wrong = [(row["text"], row["intent"], answer["intent"], answer["confidence"]) for row, answer in pairs if row["intent"] != answer["intent"]]
    matrix = charts.confusion_matrix([row["intent"] for row, _ in pairs], [answer["intent"] for _, answer in pairs])
    return [
        Figure("Intents of held-out utterances", matrix),
        Figure("Utterances that were misunderstood", charts.table(["text", "intent", "understood as", "confidence"], wrong[:40])),
    ]


# ── serve ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@hookimpl
def traits() -> Traits:
    return Traits(pure=False, concurrency=16, max_batch_size=16, route_key="/session_id")


@hookimpl
def load(config: ChatbotConfig, version: Path) -> Bot:
    if config.model.url:
        return RemoteBot(config.model.url, config.serve.token, config.serve.timeout_s)
    return LocalBot(bot_settings(config, version), config.serve.timeout_s)


@hookimpl
def preprocess(request: Ask) -> Ask:
    if not request.text.strip():
        raise BadInput("text", "is blank", "为空白")
    return request


@hookimpl
def predict_batch(signature: Signature, model: Bot, batch: Sequence[Ask]) -> Sequence[Any]:
    """Sessions side by side; the messages of one session in order. An item that fails has its own error."""
    sessions: dict[str, list[int]] = defaultdict(list)
    for index, ask in enumerate(batch):
        sessions[ask.session_id].append(index)
    answers: list[Any] = [None] * len(batch)

    def talk(indices: list[int]) -> None:
        for index in indices:
            ask = batch[index]
            try:
                answers[index] = model.message(ask.session_id, ask.text, ask.language or language(ask.text))
            except ScenariumError as fault:
                answers[index] = fault

    if len(sessions) == 1:
        talk(list(range(len(batch))))
    else:
        with ThreadPoolExecutor(len(sessions)) as pool:
            list(pool.map(talk, sessions.values()))
    return answers


@hookimpl
def postprocess(request: Ask, output: Mapping[str, Any]) -> Answer:
    return Answer.model_validate({**output, "replies": output["replies"] or [FALLBACK[output["language"]]]})


def language(text: str) -> Literal["zh", "en"] | None:
    """``zh`` for a text with a Chinese character, ``en`` for one with a word of letters; None for numbers and signs, which have none."""
    if re.search(r"[\u3400-\u9fff]", text):
        return "zh"
    return "en" if re.search(r"[A-Za-z]{2}", re.sub(r"\S*\d\S*", "", text)) else None
