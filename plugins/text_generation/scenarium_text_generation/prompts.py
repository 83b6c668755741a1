"""From a prompt or a conversation to tokens: the tokenizer of a version, and its chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from scenarium.core import BadInput
from scenarium_text_generation.messages import Message

if TYPE_CHECKING:
    from scenarium_text_generation.sampling import Chosen


class Processor:
    """The tokenizer, and the chat template where the model has one."""

    def __init__(self, state: Mapping[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_str(state["tokenizer"])
        self.chat_template: str | None = state["chat_template"]
        self.special_tokens: dict[str, str] = state.get("special_tokens", {})  # older versions have none
        self.eos: list[int] = state["eos"]
        self.languages: list[str] = state["languages"]
        self.limit: int = state["architecture"].get("max_position_embeddings") or 2**31

    def ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        found: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return found

    def shown(self, token: int, chosen: Chosen) -> dict[str, Any]:
        """A token of an answer with its log probability and those of the most likely, as ``ChosenLogprob`` has them."""
        top = [{"token": self._text(each), "logprob": logprob} for each, logprob in chosen.top]
        return {"token": self._text(token), "logprob": chosen.logprob, "top": top}

    def _text(self, token: int) -> str:
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return text

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation as the model was trained to see it.

        Raises:
            BadInput: there is no template, or it does not take this conversation; many refuse some order of roles.
        """
        from jinja2 import TemplateError

        if self.chat_template is None:
            raise BadInput("messages", "need a chat model; this one has no chat template, use prompt", "需要对话模型；该模型没有对话模板，请使用 prompt")
        try:
            text: str = self._wrapped.apply_chat_template([m.model_dump() for m in messages], tokenize=False, add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError, LookupError) as fault:
            reason = str(fault) or type(fault).__name__
            raise BadInput("messages", f"do not suit the model's chat template: {reason}", f"不适合该模型的对话模板：{reason}") from None
        return text

    @cached_property
    def _wrapped(self) -> Any:
        """What renders templates, which may name the special tokens (``bos_token``)."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=self.tokenizer, chat_template=self.chat_template, **self.special_tokens)
