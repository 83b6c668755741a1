"""What is masked, what is not, and that it holds for any scenario's relay."""

from __future__ import annotations

import time
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest

import scenarium_mask_personal_data as extension
from scenarium.core.hookspecs import hookimpl
from scenarium.core.relay import make_relay


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("请致电13812345678联系王先生", "请致电[phone]联系王先生"),
        ("手机：+86 138-1234-5678。", "手机：[phone]。"),
        ("手机１３８１２３４５６７８，谢谢", "手机[phone]，谢谢"),
        ("固定电话 010-62345678 转 12", "固定电话 [phone] 转 12"),
        ("客服400-820-8820", "客服[phone]"),
        ("call (415) 555-0132 or 415-555-0132 now", "call [phone] or [phone] now"),
        ("UK +44 20 7946 0958, DE +49 (30) 1234567.", "UK [phone], DE [phone]."),
        ("身份证11010519491231002X", "身份证[id]"),
        ("身份证号：110105194912310021（已核验）", "身份证号：[id]（已核验）"),
        ("HKID A123456(3), SSN 078-05-1120, NINO AB 12 34 56 C", "HKID [id], SSN [id], NINO [id]"),
        ("卡号6222 0213 2450 7412 354，开户行", "卡号[card]，开户行"),
        ("卡号6222021324507412354", "卡号[card]"),
        ("card 4111-1111-1111-1111 exp 12/27", "card [card] exp 12/27"),
        ("Amex 378282246310005", "Amex [card]"),
        ("发邮件到zhang.san+a@example.com.cn吧", "发邮件到[email]吧"),
        ("a@b and @home stay", "a@b and @home stay"),
    ],
)
def test_texts(text: str, masked: str) -> None:
    assert extension.mask_text(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "订单号 202411240000123456 已发货",  # 18 digits, no date of birth in them
        "2024-11-24 12:30:45.123",
        "价格 12,800.50 元，共 3 件",
        "version 1.10.3-4567",
        "卡号6222 0213 2450 7412 355",
        "4111 1111 1111 1112",  # the check digit is wrong
        "the year 1984 and 13,812,345,678 people",
        "10.0.0.138 port 8080",
        "0.1234567890123",
    ],
)
def test_what_is_not_personal_stays(text: str) -> None:
    assert extension.mask_text(text) == text


def test_values_of_any_shape() -> None:
    entry = {"request": {"text": "13812345678", "n": 3, "phone": 13812345678, "ok": True}, "answer": [{"13912345678": 0.5}, None, "x@y.org"]}
    masked = {"request": {"text": "[phone]", "n": 3, "phone": "[phone]", "ok": True}, "answer": [{"[phone]": 0.5}, None, "[email]"]}
    assert extension.mask(entry) == masked
    assert entry["request"]["text"] == "13812345678", "the entry itself is not changed"  # type: ignore[index, call-overload]


def test_it_wraps_any_scenario_and_what_its_plugin_wrote() -> None:
    plain = make_relay(SimpleNamespace(), "plain", {"mask": extension})
    assert plain.log_entry(scenario="plain", entry={"request": {"text": "to x@y.org"}}) == {"request": {"text": "to [email]"}}
    writer = SimpleNamespace(log_entry=hookimpl(lambda entry: {**entry, "by": "4111111111111111"}))
    assert make_relay(writer, "writer", {"mask": extension}).log_entry(scenario="writer", entry={}) == {"by": "[card]"}


def test_it_is_found_by_pip() -> None:
    found = {entry.name: entry.value for entry in entry_points(group="scenarium.extensions")}
    assert found["mask_personal_data"] == "scenarium_mask_personal_data"


@pytest.mark.parametrize("text", ["1" * 200_000, "1 " * 100_000, "a@" * 100_000, "+1(" * 70_000, "a." * 100_000, "62220213 " * 20_000])
def test_long_input_takes_no_time(text: str) -> None:
    began = time.process_time()
    extension.mask_text(text)
    assert time.process_time() - began < 3
