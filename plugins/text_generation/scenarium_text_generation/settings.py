"""The settings of the plugin: which model, and how it is trained and served."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from scenarium.core import BadValue, ModelConfig, ScenarioConfig, TrainConfig


class GenerationModel(ModelConfig):
    """Which model, and how it is trained."""

    base: str = "smollm2-135m"
    """`smollm2-135m` (English, from a package file), a folder, `org/model` (Hugging Face), `ms://org/model` (ModelScope), or `scratch`."""
    finetune: Literal["none", "full", "lora"] = "none"
    """`none` takes the base as it is; `full` trains all weights; `lora` trains low-rank adapters and merges them."""
    lora_rank: int = Field(8, gt=0)
    """Rank of the adapters."""
    context: int = Field(256, ge=16)
    """Tokens of one training item."""
    vocabulary: int = Field(4096, ge=300)
    """From scratch: size of the tokenizer's vocabulary."""
    hidden: int = Field(192, ge=32)
    """From scratch: width."""
    layers: int = Field(4, gt=0)
    """From scratch: number of layers."""
    heads: int = Field(4, gt=0)
    """From scratch: attention heads; must divide the width into even parts."""
    eval_tokens: int = Field(4096, gt=0)
    """Held-out tokens that are measured at most."""
    cache_blocks: int = Field(64, gt=0)
    """Pages of 256 tokens in the cache that all running requests share."""
    batch_tokens: int = Field(256, gt=0)
    """Tokens that one step of the running batch processes at most."""

    @model_validator(mode="after")
    def _divides(self) -> GenerationModel:
        if self.hidden % (2 * self.heads):
            raise BadValue(
                f"hidden ({self.hidden}) must be a multiple of twice heads ({self.heads})", f"hidden（{self.hidden}）应为 heads（{self.heads}）两倍的整数倍"
            )
        return self


class TextGenerationConfig(ScenarioConfig):
    """Settings of the scenario."""

    model: GenerationModel = GenerationModel()
    train: TrainConfig = TrainConfig(epochs=3, batch_size=8, lr=5e-4, clip=1.0)
