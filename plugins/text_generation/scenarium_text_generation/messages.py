"""What a client sends and what it gets."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scenarium.core import BadValue, Request, Response, Section


class Message(Section):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateRequest(Request):
    """A prompt, or a conversation for a chat model, and how to continue it."""

    prompt: str | None = None
    """Text to continue."""
    messages: list[Message] | None = None
    """A conversation; the model's own chat template is used."""
    max_new_tokens: int = Field(64, ge=1, le=4096)
    """Most tokens to generate."""
    temperature: float = Field(0.8, ge=0, le=5)
    """0: always the most likely token."""
    top_k: int = Field(50, ge=0)
    """Only the k most likely tokens; 0: all."""
    top_p: float = Field(0.95, gt=0, le=1)
    """Only the most likely tokens that make up this probability."""
    repetition_penalty: float = Field(1.1, ge=0.1, le=10)
    """Above 1: tokens that stand in the text already become less likely."""
    stop: list[str] = Field([], max_length=8)
    """Texts that end the generation; left out of the answer."""
    seed: int | None = Field(None, ge=0, lt=2**63)
    """The same seed and settings give the same text."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Tell the log probability of each token, and so many of the most likely tokens beside it; None: tell none."""

    @model_validator(mode="after")
    def _one(self) -> GenerateRequest:
        if (self.prompt is None) == (self.messages is None):
            raise BadValue("give either prompt or messages", "prompt 与 messages 应且只应给出一个")
        return self


class Usage(Section):
    """Tokens of one request."""

    prompt_tokens: int
    completion_tokens: int


class TokenLogprob(Section):
    """A token and its log probability (natural), as the model has it: before temperature, penalty and filters."""

    token: str
    """Its text; the replacement character where it is a part of a character."""
    logprob: float


class ChosenLogprob(TokenLogprob):
    """A token of the answer."""

    top: list[TokenLogprob]
    """The most likely tokens in its place, most likely first."""


class GenerateResponse(Response):
    """The generated text."""

    text: str
    finish_reason: Literal["stop", "length"]
    """`stop`: an end token or a stop sequence came; `length`: max_new_tokens were generated."""
    usage: Usage
    logprobs: list[ChosenLogprob] | None = None
    """Of each token, where they are asked for; those that made a stop sequence too."""
    warnings: list[str] = []
    """For example that the model knows no Chinese."""
