"""From tokens to text as they come, stop sequences, and the byte model that a language model has to beat."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

CJK = re.compile(r"[一-鿿㐀-䶿]")


class TextStream:
    """Joins tokens into text pieces; holds back what may be the beginning of a stop sequence or of a character."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._stop = [text for text in stop if text]
        self._held = ""
        self.stopped = False
        self.count = 0

    def feed(self, tokens: Iterable[int]) -> Iterator[str]:
        """Yield text pieces until the tokens end or a stop sequence appears (which is left out)."""
        for token in tokens:
            self.count += 1
            self._held += self._decoder.step(self._tokenizer, token) or ""
            found = [at for stop in self._stop if (at := self._held.find(stop)) >= 0]
            if found:
                self._held = self._held[: min(found)]
                self.stopped = True
                break
            keep = self._possible_stop()
            if len(self._held) > keep:
                yield self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
        if self._held:
            yield self._held

    def _possible_stop(self) -> int:
        """How many characters at the end could still become a stop sequence."""
        longest = max((len(stop) - 1 for stop in self._stop), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0


def chinese_share(text: str) -> float:
    """Share of CJK ideographs among the characters that are no white space."""
    dense = re.sub(r"\s", "", text)
    return len(CJK.findall(dense)) / len(dense) if dense else 0.0


class ByteTrigram:
    """A byte trigram model with interpolated lower orders (Jelinek and Mercer, 1980).

    Weights 0.6, 0.3, 0.09 and 0.01 (uniform); a context that was never seen leaves its share to the others.
    """

    WEIGHTS = ((2, 0.6), (1, 0.3), (0, 0.09))
    UNIFORM = 0.01

    def __init__(self, texts: Iterable[str]) -> None:
        self._next: dict[int, dict[bytes, Counter[int]]] = {order: defaultdict(Counter) for order, _ in self.WEIGHTS}
        for text in texts:
            data = text.encode()
            for order, counts in self._next.items():
                for at in range(order, len(data)):
                    counts[data[at - order : at]][data[at]] += 1

    def bits(self, text: str) -> float:
        """Bits that the model needs for ``text``."""
        data = text.encode()
        return -sum(math.log2(self.probability(data[max(0, at - 2) : at], data[at])) for at in range(len(data)))

    def probability(self, before: bytes, byte: int) -> float:
        """Probability of ``byte`` after the at most two bytes ``before``."""
        share, weights = self.UNIFORM / 256, self.UNIFORM
        for order, weight in self.WEIGHTS:
            seen = self._next[order].get(before[len(before) - order :]) if len(before) >= order else None
            if seen:
                share += weight * seen[byte] / seen.total()
                weights += weight
        return share / weights
