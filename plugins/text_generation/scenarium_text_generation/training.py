"""Import, fine-tune or train from scratch, all by the shared trainer; and the measure of a language model."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_model, save_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.utils.logging import disable_progress_bar

from scenarium.core import Data, Run
from scenarium.training import fit
from scenarium_text_generation.base import SCRATCH, SMOLLM2, resolve
from scenarium_text_generation.generator import CausalLM

if TYPE_CHECKING:
    from scenarium_text_generation.settings import GenerationModel, TextGenerationConfig

disable_progress_bar()  # the trainer shows its own

WEIGHTS = "model.safetensors"
END_OF_TEXT = "<|endoftext|>"


def describe(model: GenerationModel, texts: Iterable[str]) -> dict[str, Any]:
    """What the state holds: tokenizer, architecture and end tokens of the base model, or of a new small one."""
    if model.base == SCRATCH:
        return _new(model, texts)
    folder = resolve(model.base)
    config = AutoConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id or [])
    generation = folder / "generation_config.json"
    if generation.is_file():
        more = json.loads(generation.read_text(encoding="utf8")).get("eos_token_id") or []
        ends |= {more} if isinstance(more, int) else set(more)
    return {
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "chat_template": tokenizer.chat_template,
        "special_tokens": {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)},
        "architecture": json.loads(config.to_json_string()),
        "eos": sorted(ends),
        "languages": ["en"] if model.base == SMOLLM2 else [],
    }


def _new(model: GenerationModel, texts: Iterable[str]) -> dict[str, Any]:
    """A byte-level BPE tokenizer learned from the training texts, and a small Llama architecture."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=model.vocabulary, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=model.hidden,
        intermediate_size=model.hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.heads,
        max_position_embeddings=max(2 * model.context, 512),
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    architecture = json.loads(config.to_json_string())
    special = {"eos_token": END_OF_TEXT}
    return {"tokenizer": tokenizer.to_str(), "chat_template": None, "special_tokens": special, "architecture": architecture, "eos": [0], "languages": []}


def build(state: Mapping[str, Any]) -> CausalLM:
    """The untrained module that the state describes."""
    architecture = dict(state["architecture"])
    config = AutoConfig.for_model(architecture.pop("model_type"), **architecture)
    return CausalLM(AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=torch.float32))


def trainable(model: GenerationModel, state: Mapping[str, Any]) -> CausalLM:
    """The module to train: the base's weights, with low-rank adapters where asked for (Hu et al., 2021)."""
    if model.base == SCRATCH:
        return build(state)
    base: Any = AutoModelForCausalLM.from_pretrained(resolve(model.base), dtype=torch.float32, attn_implementation="sdpa")
    if model.finetune == "lora":
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=model.lora_rank, lora_alpha=2 * model.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft reads an attribute that transformers has renamed
            base = get_peft_model(base, adapters)
    return CausalLM(base)


def train(config: TextGenerationConfig, data: Data, run: Run) -> None:
    """Write ``model.safetensors``: the base as it is, or the trained weights with adapters merged into them."""
    if config.model.base != SCRATCH and config.model.finetune == "none":
        run.progress.note(f"taking {config.model.base} as it is (model.finetune = full or lora trains it on your text)")
        save_model(trainable(config.model, run.state), str(run.out / WEIGHTS))
        return
    fit(config, data, run)
    if config.model.base != SCRATCH and config.model.finetune == "lora":
        module = trainable(config.model, run.state)
        load_model(module, run.out / WEIGHTS)
        adapted: Any = module.model
        module.model = adapted.merge_and_unload()
        save_model(module, str(run.out / WEIGHTS))


def load(state: Mapping[str, Any], folder: Path, device: str) -> torch.nn.Module:
    """The trained module on its device: float32 on a processor, bfloat16 on a GPU."""
    module = build(state)
    load_model(module, folder / WEIGHTS)
    return module.to(device, torch.bfloat16 if device.startswith("cuda") else torch.float32).eval()


@torch.inference_mode()
def surprise(model: Any, ids: Sequence[int], context: int) -> float:
    """Negative log likelihood in bits of ``ids`` after their first token, in windows of ``context`` that overlap by half."""
    total, start = 0.0, 1
    while start < len(ids):
        begin = max(0, start - context // 2) if start > 1 else 0
        window = torch.tensor([ids[begin : begin + context]], device=model.device)
        scores = model(input_ids=window, use_cache=False).logits[0, :-1].float()
        losses = functional.cross_entropy(scores, window[0, 1:], reduction="none")
        total += float(losses[start - begin - 1 :].sum()) / math.log(2)
        start = begin + window.shape[1]
    return total
