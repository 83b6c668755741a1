"""Sampling of next tokens inside continuous batching, with each request's own settings and seed."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor


class Chosen(NamedTuple):
    """One token that was taken."""

    logprob: float
    """Natural logarithm of its probability."""
    top: list[tuple[int, float]]
    """The most likely tokens with theirs, most likely first."""


class Record:
    """The log probabilities of one request's tokens, as the model itself has them: before temperature, penalty and filters."""

    def __init__(self, top: int) -> None:
        self.top = top
        """Most likely tokens that are wanted beside each."""
        self.chosen: dict[int, Chosen] = {}
        """By the number of tokens before it, those of the prompt among them."""

    def keep(self, at: int, scores: Tensor, token: int) -> None:
        """Keep those of one step. ``scores``: [vocabulary]; ``token``: the one that is taken."""
        found = scores.float().log_softmax(-1)
        best = found.topk(min(self.top, len(found)))
        self.chosen[at] = Chosen(float(found[token]), list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))


class Sampling(NamedTuple):
    """How one request wants its tokens chosen."""

    temperature: float
    """0: always the most likely token."""
    top_k: int
    """Only the k most likely tokens; 0: all."""
    top_p: float
    """Nucleus sampling (Holtzman et al., 2020): the smallest set of tokens with this much probability."""
    repetition_penalty: float
    """Divides the score of tokens that stand in the text already (Keskar et al., 2019)."""
    seed: int
    record: Record | None = None
    """Where the log probabilities go that the request wants."""


class SeededSampler(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]  # transformers is read without its annotations
    """Adds Gumbel noise to the filtered scores, so that the manager's argmax is an exact sample (Gumbel-max; Maddison et al., 2014).

    The noise of a token comes from (seed, position) alone. So a request with a seed gives the same text whoever shares its
    batch, which a draw from the batch's common generator would not.
    """

    supported_kwargs: dict[str, type] = {"sampling": Sampling}
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.rows: list[tuple[Sampling, int, list[int]]] = []

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> Tensor:
        states = [request.state for request in requests_with_new_token]
        self.rows = [(s.logit_processor_kwargs["sampling"], len(s.generated_tokens), [*s.initial_tokens, *s.generated_tokens]) for s in states]
        return torch.zeros(len(states), dtype=torch.int32)

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """``scores``: float32 [rows, vocabulary]. Rows beyond the requests' are padding and stay as they are."""
        for index, (sampling, position, seen) in enumerate(self.rows[: len(scores)]):
            own = scores[index].clone() if sampling.record else None
            scores[index] = choose(scores[index], sampling, position, seen)
            if sampling.record and own is not None:
                sampling.record.keep(len(seen), own, int(scores[index].argmax()))
        return scores


def choose(scores: Tensor, sampling: Sampling, position: int, seen: list[int]) -> Tensor:
    """Scores whose argmax is the token to take. ``scores``: [vocabulary]; ``seen``: the tokens so far."""
    if sampling.repetition_penalty != 1:
        ids = torch.tensor(sorted(set(seen)), device=scores.device)
        old = scores[ids]
        scores[ids] = torch.where(old > 0, old / sampling.repetition_penalty, old * sampling.repetition_penalty)
    if sampling.temperature == 0:
        return scores
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores = scores.masked_fill(scores < scores.topk(sampling.top_k).values[-1], -torch.inf)
    if sampling.top_p < 1:
        ordered, order = scores.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        scores = scores.index_fill(0, order[before >= sampling.top_p], -torch.inf)
    generator = torch.Generator().manual_seed((sampling.seed * 1_000_003 + position) % 2**63)
    noise = torch.rand(len(scores), generator=generator, dtype=torch.float64).clamp_(min=1e-300)
    return scores - (-noise.log()).log().float().to(scores.device)
