"""Generated messages and calls: fraud of many kinds, and the ordinary service messages that look like it.

Nothing here was said by anyone. A fifth of the templates of each language and label is held out whole, so a score on them
shows more than remembered sentences, and still much less than real traffic would.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files

import numpy as np

from scenarium.core.types import Row, Source

FILLS = 24
"""Messages made of one template."""

SLOTS: dict[str, dict[str, Sequence[str]]] = {
    "zh": {
        "city": ["北京", "上海", "广州", "深圳", "成都", "武汉", "西安", "杭州", "南京", "重庆", "长沙", "沈阳", "青岛", "昆明", "郑州", "厦门"],
        "bank": ["工商银行", "建设银行", "农业银行", "中国银行", "招商银行", "交通银行", "邮储银行", "浦发银行", "民生银行", "中信银行"],
        "courier": ["顺丰", "中通", "圆通", "申通", "韵达", "极兔", "京东物流", "邮政"],
        "shop": ["淘宝", "京东", "拼多多", "唯品会", "天猫", "苏宁", "抖音商城", "当当"],
        "name": ["王", "李", "张", "刘", "陈", "杨", "赵", "黄", "周", "吴", "徐", "孙", "马", "朱", "胡", "郭", "何", "林"],
        "product": ["奶粉", "手机", "电饭煲", "儿童座椅", "羽绒服", "洗发水", "空气炸锅", "平板电脑", "保健品", "按摩椅"],
        "app": ["云会议通", "瞩目", "智联宝", "金服通", "财富在线", "易信通", "安全守护", "汇聚科技", "飞鱼", "蓝信"],
        "show": ["奔跑吧", "中国好声音", "星光大道", "我是歌手", "非常6+1"],
        "company": ["华信科技", "远大集团", "鼎盛贸易", "中创建设", "蓝海传媒"],
        "hospital": ["市第一人民医院", "协和医院", "中医院", "妇幼保健院", "华西医院", "儿童医院"],
        "game": ["王者荣耀", "原神", "和平精英", "英雄联盟", "蛋仔派对"],
        "date": ["今天", "明天", "周三", "周五", "3月5日", "6月18日", "9月1日", "11月20日", "12月8日"],
        "time": ["9:00", "10点", "14:30", "下午三点", "15:45", "18点", "晚上八点"],
    },
    "en": {
        "city": ["London", "Leeds", "Boston", "Dublin", "Toronto", "Sydney", "Chicago", "Austin", "Glasgow", "Auckland"],
        "bank": ["Barclays", "HSBC", "Lloyds", "Chase", "Wells Fargo", "Citi", "NatWest", "Santander", "Monzo"],
        "courier": ["DHL", "UPS", "FedEx", "USPS", "Evri", "DPD", "Hermes"],
        "shop": ["Amazon", "eBay", "Walmart", "Argos", "Target", "Tesco", "Costco", "Etsy"],
        "name": ["Smith", "Jones", "Taylor", "Brown", "Wilson", "Davies", "Evans", "Walker", "Patel", "Garcia", "Miller", "Chen"],
        "product": ["phone", "kettle", "tablet", "coat", "television", "blender", "headset", "voucher", "laptop", "toaster"],
        "app": ["AnyDesk", "QuickSupport", "TradeMax", "CoinNest", "FxPrime", "HelpView", "BitHarbour"],
        "show": ["National Lottery", "Mega Millions", "Euro Draw", "Spring Sweepstake"],
        "company": ["Northwind", "Acme", "Brightline", "Harbour Foods", "Delta Media"],
        "hospital": ["City Hospital", "St Mary's", "the surgery", "Park Clinic", "the dental practice"],
        "date": ["Monday", "Tuesday", "Friday", "3 March", "12 June", "1 Sept", "20 Nov", "tomorrow"],
        "time": ["9am", "10:30", "noon", "2pm", "14:15", "4 pm", "6:30"],
    },
}
LINKS = ["http://{}.top/{}", "www.{}-{}.cn", "https://{}{}.vip", "{}.xyz/{}", "http://t.{}.cc/{}", "bit.ly/{}{}"]


def source() -> Source:
    """The generated messages as a default source."""
    doc = "Chinese and English messages and calls made of our own templates; a fifth of the templates is held out."
    return Source("dialogues", "generated", "Apache-2.0", lambda paths: rows(), doc=doc)


def templates() -> list[tuple[str, str, str]]:
    """Language, label and text of every template."""
    lines = files("scenarium_fraud_text").joinpath("templates.txt").read_text(encoding="utf8").splitlines()
    parts = (line.split("|", 3) for line in lines if line and not line.startswith("#"))
    return [(language, label, text) for language, label, _, text in parts]


def rows(fills: int = FILLS, seed: int = 0) -> list[Row]:
    """``fills`` rows a template, the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    counts: dict[tuple[str, str], int] = {}
    found: list[Row] = []
    for number, (language, label, text) in enumerate(templates()):
        turn = counts[language, label] = counts.get((language, label), -1) + 1
        split = "test" if turn % 5 == 4 else "val" if turn % 10 == 0 else "train"
        made = {fill(language, text, rng) for _ in range(fills)}
        found += [{"text": line, "label": label, "_split": split, "_group": f"template-{number}"} for line in sorted(made)]
    return found


def fill(language: str, text: str, rng: np.random.Generator) -> str:
    """One message: every slot filled, turns on lines of their own."""

    def slot(match: re.Match[str]) -> str:
        name = match[1]
        if name in SLOTS[language]:
            return str(rng.choice(np.array(SLOTS[language][name])))
        return _number(name, language, rng)

    return re.sub(r"\{(\w+)\}", slot, text).replace(" / ", "\n")


def _number(name: str, language: str, rng: np.random.Generator) -> str:
    """A sum of money, a number of a telephone, a parcel or a code, a link."""
    if name == "amount":
        value = str(int(rng.integers(3, 99)) * 10 ** int(rng.integers(2, 5)))
        return value if language == "zh" else str(rng.choice(np.array(["$", "£", "€"]))) + value
    if name == "small":
        value = str(int(rng.integers(15, 900)))
        return value if language == "zh" else str(rng.choice(np.array(["$", "£", "€"]))) + value
    if name == "link":
        word = "".join(rng.choice(np.array(list("abcdefghkmnprstuvwxyz")), int(rng.integers(3, 7))))
        return str(rng.choice(np.array(LINKS))).format(word, int(rng.integers(10, 9999)))
    digits = {"phone": 9, "order": 10, "code": 4}[name]
    return "".join(map(str, [int(rng.integers(1, 10)), *rng.integers(0, 10, digits - 1)]))
