"""The settings of the chatbot."""

from __future__ import annotations

import re

from pydantic import Field, field_validator, model_validator

from scenarium.core import BadValue, DataConfig, ModelConfig, ScenarioConfig, ServeConfig, TrainConfig


class ChatbotData(DataConfig):
    """Which utterances to train on."""

    val: float = Field(0.0, ge=0, lt=1)
    """Share of the rows for validation while training. DIET stops after its epochs, so none is needed."""


class ChatbotModel(ModelConfig):
    """Which bot: the shipped dialogue, or the user's own."""

    project: str | None = None
    """Folder of the user's own Rasa 3 project (`config.yml`, `domain.yml`, `data/`): trained in place of the shipped dialogue."""
    archive: str | None = None
    """The user's own trained Rasa archive (`.tar.gz`): served as it is, nothing is trained."""
    url: str | None = None
    """Address of a running Rasa server (its REST channel must be on): asked in place of an own process."""
    replies: dict[str, str] = {}
    """Intent of the user's own data to the reply that answers it; the column `reply` of the data does the same."""
    order_id_pattern: str = r"[A-Za-z]{0,3}\d{6,12}"
    """Regular expression of an order number."""
    fallback: float = Field(0.3, ge=0, le=1)
    """Below this confidence the bot asks to rephrase."""

    @field_validator("order_id_pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as fault:
            raise BadValue(f"is no regular expression: {fault}", f"不是有效的正则表达式：{fault}") from None
        return pattern

    @model_validator(mode="after")
    def _one_bot(self) -> ChatbotModel:
        if sum(value is not None for value in (self.project, self.archive, self.url)) > 1:
            raise BadValue("give only one of project, archive and url", "project、archive 和 url 只能给出一个")
        return self


class ChatbotTrain(TrainConfig):
    """DIET's training. Of the shared trainer's settings `epochs`, `batch_size`, `lr`, `seed` and `threads` are used."""

    epochs: int = Field(15, gt=0)
    """Passes over the training rows."""
    batch_size: int = Field(64, gt=0)
    """Rows of a batch."""


class ChatbotServe(ServeConfig):
    """How the bot is served."""

    tracker_store: str = "sqlite"
    """Where conversations are kept: `sqlite` (a file in the store's `data` folder), `memory` (lost on restart), or a URL
    (`postgresql://user:password@host/db`, `redis://host:6379/0`)."""
    orders: str | None = None
    """The order table: a CSV file with the columns `order_id`, `status` and perhaps `status_zh`. None: five demo orders, labelled as such."""
    actions: str | None = None
    """Python file (or package folder) with the user's own `rasa_sdk` actions; they replace shipped ones of the same name."""
    session_turns: int = Field(20, gt=0)
    """After so many turns a conversation begins a new Rasa session (slots stay), so that long ones do not grow slow."""
    timeout_s: float = Field(20.0, gt=0)
    """Longest wait for one answer of the bot, in seconds."""
    token: str | None = None
    """Token of the external Rasa server."""
    threads: int | None = Field(1, gt=0)
    """Threads of one worker; the model is small, more than one gains nothing."""


class ChatbotConfig(ScenarioConfig):
    """All settings of the chatbot."""

    data: ChatbotData = ChatbotData()
    model: ChatbotModel = ChatbotModel()
    train: ChatbotTrain = ChatbotTrain()
    serve: ChatbotServe = ChatbotServe()
