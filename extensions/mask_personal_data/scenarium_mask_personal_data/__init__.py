"""Masks personal data in whatever is logged or audited, of any scenario: wraps the hook ``log_entry``.

Masked are e-mail addresses, identity numbers (Chinese resident identity card by GB 11643-1999, Hong Kong identity card, US social
security number, UK national insurance number), bank cards (ISO/IEC 7812, by the Luhn digit) and phone numbers (Chinese mobile and
fixed lines, North American and international forms). Full-width digits count as digits. Answers to clients are never changed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from datetime import date
from typing import Any

from scenarium.core import hookimpl

HALF_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {0x3000: " "}
"""Full-width forms (U+FF01 to U+FF5E) and the ideographic space as ASCII, character for character."""


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of ISO/IEC 7812-1."""
    values = [int(digit) for digit in reversed(digits)]
    return sum(values[::2]) % 10 == -sum(sum(divmod(2 * value, 10)) for value in values[1::2]) % 10


def _card(text: str) -> bool:
    digits = re.sub(r"\D", "", text)
    return 13 <= len(digits) <= 19 and luhn(digits)


def _resident(text: str) -> bool:
    """Whether the date of birth inside exists; the check digit may be mistyped, and the number is personal all the same."""
    try:
        return 1880 < date(int(text[6:10]), int(text[10:12]), int(text[12:14])).year <= date.today().year
    except ValueError:
        return False


def _international(text: str) -> bool:
    return 8 <= len(re.sub(r"\D", "", text)) <= 15  # ITU-T E.164: at most 15


PATTERNS: tuple[tuple[str, re.Pattern[str], Callable[[str], bool] | None], ...] = (
    ("email", re.compile(r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.)+[A-Za-z]{2,24}"), None),
    ("id", re.compile(r"(?<!\d)[1-9]\d{5}(?:1[89]|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"), _resident),
    ("id", re.compile(r"(?<![A-Za-z])[A-Z]{1,2}\d{6}\([\dA]\)"), None),
    ("id", re.compile(r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"), None),
    ("id", re.compile(r"(?<![A-Za-z])[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?![A-Za-z])"), None),
    ("card", re.compile(r"(?<!\d)[2-6]\d{3}(?:[ -]?\d{2,4}){2,4}[ -]?\d{1,4}(?!\d)"), _card),
    ("phone", re.compile(r"(?<![\d+])(?:(?:\+|00)?86[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}(?!\d)"), None),
    ("phone", re.compile(r"(?<!\d)\(?0\d{2,3}\)?[ -]?\d{7,8}(?:[ -]\d{1,5})?(?!\d)"), None),
    ("phone", re.compile(r"(?<!\d)(?<!\d[ -])[48]00-?\d{3}-?\d{4}(?!\d)"), None),
    ("phone", re.compile(r"(?<![\d.-])(?:\+?1[-. ]?)?(?:\(\d{3}\) ?|\d{3}[-. ])\d{3}[-. ]\d{4}(?![\d-])"), None),
    ("phone", re.compile(r"(?<!\d)\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}(?!\d)"), _international),
)
"""What is looked for, in this order: kind, pattern over half-width text, and what must hold beside it."""


def mask_text(text: str) -> str:
    """The text with ``[email]``, ``[id]``, ``[card]`` and ``[phone]`` in place of what they name."""
    plain = text.translate(HALF_WIDTH)
    for kind, pattern, holds in PATTERNS:
        for start, end in reversed(list(_spans(pattern, holds, plain))):
            plain = f"{plain[:start]}[{kind}]{plain[end:]}"
            text = f"{text[:start]}[{kind}]{text[end:]}"
    return text


def _spans(pattern: re.Pattern[str], holds: Callable[[str], bool] | None, text: str) -> Iterator[tuple[int, int]]:
    for found in pattern.finditer(text):
        if holds is None or holds(found[0]):
            yield found.span()


def mask(value: Any) -> Any:
    """A JSON value with every text in it masked, keys included; a number that reads as a phone or card number becomes its mask."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Mapping):
        return {mask_text(key) if isinstance(key, str) else key: mask(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [mask(inner) for inner in value]
    if isinstance(value, int) and not isinstance(value, bool):
        text = str(value)
        masked = mask_text(text)
        return value if masked == text else masked
    return value


@hookimpl(wrapper=True)
def log_entry() -> Generator[None, Mapping[str, Any], Mapping[str, Any]]:
    """Mask what the scenario itself would log."""
    entry: Mapping[str, Any] = mask((yield))
    return entry
