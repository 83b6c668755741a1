"""fraud_text: the conformance kit, exact explanations, offsets in awkward text, the user's own GBK file, measures."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import scenarium_fraud_text as plugin
from scenarium.core import ScenariumError
from scenarium.core.config import Settings
from scenarium.core.handle import Handle
from scenarium.core.kit.pytest_plugin import ScenarioConformance
from scenarium.core.registry import Registry
from scenarium.core.text import tokenize
from scenarium_fraud_text import dialogues, explain, features, mails, measures

SMALL = ["train.epochs=4", "model.buckets=8192", "model.width=16", "train.threads=1"]
FRAUD = "恭喜您中奖了，请点击链接领取"
AWKWARD = {
    "emoji": "🎉👨‍👩‍👧 恭喜您中奖了！请点击http://abc.top/88领取💰",
    "CRLF": "您好，\r\n\r\n您的包裹在海关被扣，\r\n请缴纳保证金5000元",
    "full width": "ＣＯＮＧＲＡＴＵＬＡＴＩＯＮＳ！　点击ｈｔｔｐ：／／ａｂｃ．ｔｏｐ",
    "traditional": "您的賬戶涉嫌洗錢，請將資金轉到安全賬戶",
    "mixed": "Dear 客户, your 银行卡 is suspended, verify at bit.ly/ab12 立即",
    "combining": "Cafe\u0301 prize: cl\u0301aim £1000 now",
    "beyond the basic plane": "𠮷𠮷您中奖了，请领取𝟙𝟘𝟘元",
}


class TestFraudText(ScenarioConformance):
    name = "fraud_text"


def handle(folder: Path, *sets: str) -> Handle:
    settings = Settings.read(environ={"SCENARIUM_STORE": str(folder / "store"), "XDG_DATA_HOME": str(folder)}, sets=[*SMALL, *sets], scenario="fraud_text")
    return Handle(Registry(settings).scenario("fraud_text"))


def write_gbk(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", encoding="gb18030", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["编号", "内容", "标签"])
        for number, row in enumerate(rows):
            writer.writerow([number, row["text"].replace("£", "$").replace("€", "$"), {"fraud": "诈骗", "normal": "正常"}[row["label"]]])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Handle:
    """Trained through the user's-own-file path: GBK, Chinese column names, one label renamed and one kept."""
    folder = tmp_path_factory.mktemp("fraud")
    write_gbk(folder / "我的.csv", dialogues.rows(fills=8))
    made = handle(folder, f"data.path={folder / '我的.csv'}", 'data.map={"text": "内容", "label": "标签"}', 'data.map_label={"诈骗": "fraud"}', "data.test=0.2")
    made.train()
    return made


def test_labels_come_from_the_file_and_its_map(trained: Handle) -> None:
    answer = trained.predict(text=FRAUD)
    assert set(answer["probabilities"]) == {"fraud", "正常"}
    assert answer["label"] == "fraud"
    assert answer["probability"] >= 0.8, "the sentence that the README's first call sends"
    assert answer["fraud_probability"] == pytest.approx(answer["probabilities"]["fraud"])
    assert trained.version.manifest.data_origin == "real"


def test_report_shows_confusions_and_precision_over_recall(trained: Handle) -> None:
    text = (trained.version.folder / "report.html").read_text("utf8")
    for title in ("Confusion matrix / 混淆矩阵", "Precision and recall of fraud / 诈骗的精确率与召回率"):
        assert "<svg" in text.partition(f"<h2>{title}")[2].partition("<h2>")[0], title


def test_probabilities_sum_to_one_and_the_best_is_the_label(trained: Handle) -> None:
    for row in dialogues.rows(fills=1)[::7]:
        answer = trained.predict(text=row["text"])
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["probability"] == max(answer["probabilities"].values()) == answer["probabilities"][answer["label"]]


def test_the_words_weights_and_the_bias_are_the_log_odds(trained: Handle) -> None:
    runtime = trained.runtime
    item = plugin.preprocess(runtime.scenario.config, plugin.Message(text=FRAUD))
    output = {name: array[0] for name, array in runtime.model({name: array[None] for name, array in item.items()}).items()}
    bias = output["logits"] - output["evidence"].sum(0)
    probabilities = measures.softmax(output["logits"])
    odds = explain.token_weights(output["evidence"], probabilities, 0).sum() + bias[0] - bias[1]
    assert odds == pytest.approx(np.log(probabilities[0] / probabilities[1]), abs=1e-3)


def test_without_its_heaviest_words_a_message_is_less_of_its_label(trained: Handle) -> None:
    """Removing what is named must cost more than removing as much of the rest, and hardly ever raise the probability."""
    lowered, beat, asked = 0, 0, 0
    for row in [row for row in dialogues.rows(fills=1) if row["label"] == "fraud"]:
        text, whole = row["text"], trained.predict(text=row["text"])
        if whole["label"] != "fraud" or not whole["words"]:
            continue
        asked += 1
        named = {at for word in whole["words"][:3] for at in range(word["start"], word["end"])}
        rest = [at for at in range(len(text)) if at not in named and not text[at].isspace()]
        other = set(np.random.default_rng(0).permutation(rest)[: len(named)].tolist())
        odds = []
        for gone in (set(), named, other):
            left = "".join(" " if at in gone else sign for at, sign in enumerate(text))
            p = trained.predict(text=left)["probabilities"]["fraud"] if left.strip() else 0.5
            odds.append(np.log(max(p, 1e-9) / max(1 - p, 1e-9)))
        lowered += odds[1] < odds[0]
        beat += odds[1] < odds[2]
    assert asked > 30
    assert lowered / asked > 0.95
    assert beat / asked > 0.9


@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
def test_words_stand_where_they_say(trained: Handle, text: str) -> None:
    answer = trained.predict(text=text)
    assert answer["words"] or answer["probability"] < 0.99
    for word in answer["words"]:
        assert text[word["start"] : word["end"]] == word["text"]
        assert word["text"] == word["text"].strip() != ""
        assert word["weight"] > 0
    assert [w["weight"] for w in answer["words"]] == sorted((w["weight"] for w in answer["words"]), reverse=True)


@pytest.mark.parametrize("text", ["", " ", "\r\n\t\u3000"])
def test_a_message_without_a_word_is_refused(trained: Handle, text: str) -> None:
    with pytest.raises(ScenariumError) as fault:
        trained.predict(text=text)
    assert (fault.value.status, fault.value.field) == (422, "text")


def test_100_kilobytes_are_read_and_the_cut_is_told(trained: Handle) -> None:
    long = trained.predict(text="请把钱转到安全账户。" * 10_000)
    assert long["truncated"]
    assert trained.predict(text="x" * 100_000)["truncated"] is False
    assert trained.predict(text=FRAUD)["truncated"] is False


def test_a_batch_answers_as_its_members_alone(trained: Handle) -> None:
    texts = [*AWKWARD.values(), FRAUD, "hi"]
    together = trained.predict([{"text": text} for text in texts])
    for text, answer in zip(texts, together, strict=True):
        assert answer["probability"] == pytest.approx(trained.predict(text=text)["probability"], abs=1e-5)


def test_onnx_answers_as_torch_without_importing_it(trained: Handle) -> None:
    script = (
        "import json, sys\n"
        "from scenarium.core.config import Settings\nfrom scenarium.core.handle import Handle\nfrom scenarium.core.registry import Registry\n"
        "handle = Handle(Registry(Settings.read(sets=['serve.engine=onnx'], scenario='fraud_text')).scenario('fraud_text'), 1)\n"
        f"print(json.dumps(handle.predict(text={FRAUD!r})))\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules\n"
    )
    environment = {**os.environ, "SCENARIUM_STORE": str(trained.scenario.settings.store_url), "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False, encoding="utf8")
    assert done.returncode == 0, done.stderr
    answer, own = json.loads(done.stdout), trained.predict(text=FRAUD)
    assert answer["probabilities"] == pytest.approx(own["probabilities"], abs=1e-4)
    assert [(w["start"], w["end"]) for w in answer["words"]] == [(w["start"], w["end"]) for w in own["words"]]


def test_more_kinds_than_two(tmp_path: Path) -> None:
    lines = [line.split("|") for line in Path(plugin.__file__).with_name("templates.txt").read_text(encoding="utf8").splitlines() if line.startswith("zh|")]
    rng = np.random.default_rng(0)
    rows = [
        {"text": dialogues.fill("zh", text, rng), "label": kind if label == "fraud" else "normal"}
        for _, label, kind, text in lines
        if label == "normal" or kind in ("loan", "police", "lottery")
        for _ in range(10)
    ]
    path = tmp_path / "kinds.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf8")
    made = handle(tmp_path, f"data.path={path}", "train.epochs=8")
    made.train()
    answer = made.predict(text="急用钱？无抵押无担保，凭身份证秒批80000元，点击链接下载易信通立即放款。")
    assert set(answer["probabilities"]) == {"loan", "police", "lottery", "normal"}
    assert answer["label"] == "loan"
    assert answer["fraud_probability"] == pytest.approx(1 - answer["probabilities"]["normal"])


def test_data_without_a_normal_label_has_no_fraud_probability() -> None:
    output = {"logits": np.array([1.0, 0.0], np.float32), "evidence": np.zeros((1, 2), np.float32)}
    answer = plugin.postprocess(plugin.Config(), {"labels": ["loan", "police"]}, plugin.Message(text="hi"), output)
    assert answer.fraud_probability is None
    figures = plugin.score(plugin.Config(), [{"label": "loan"}], [answer.model_dump()])
    assert "fraud_recall" not in figures


def test_ids_are_stable_and_padded_with_none() -> None:
    one = features.ids(tokenize("Win 500元"), 1 << 16)
    assert one.shape == (3, features.KINDS)
    assert one.dtype == np.int32
    assert (features.ids(tokenize("ＷＩＮ 500元"), 1 << 16)[:, 0] == one[:, 0]).all()
    assert not features.ids(tokenize("  "), 1 << 16).any()
    assert one[2, features.WORDS :].sum() == 0  # a Han character has no letters
    assert one[0, 0] == 15055  # the same in every process and release, else stored weights would mean something else


def test_held_out_templates_are_not_trained_on() -> None:
    rows = dialogues.rows(fills=2)
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row["_group"], set()).add(row["_split"])
    assert all(len(names) == 1 for names in splits.values())
    for label in ("fraud", "normal"):
        for han in (True, False):
            found = {row["_split"] for row in rows if row["label"] == label and any("一" <= sign <= "鿿" for sign in row["text"]) == han}
            assert found == {"train", "val", "test"}
    assert dialogues.rows(fills=2) == rows
    assert not any("{" in row["text"] for row in rows)


def test_mails_lose_their_headers_and_markup() -> None:
    raw = (
        "Received: from secret.example\nSubject: hi\nContent-Type: multipart/alternative; boundary=X\n\n--X\nContent-Type: text/html; charset=nonsense\n\n"
        "<style>p{}</style><p>Buy&nbsp;now</p><!-- no -->\n--X--\n"
    )
    assert mails.body(raw) == "Buy\xa0now"
    assert mails.body("From: a\nContent-Type: text/plain; charset=gb2312\nContent-Transfer-Encoding: base64\n\nuafPsqOh\n") == "恭喜！"
    assert mails.body("Subject: only headers\n\n") == ""
    assert mails.split("spam-2", "x") == "test"
    assert {mails.split("spam-1", f"{n}.json") for n in range(40)} == {"train", "val"}


def test_measures_equal_scikit_learn() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(3)
    true, predicted, scores = rng.integers(0, 3, 200), rng.integers(0, 3, 200), rng.integers(0, 20, 200) / 20
    assert measures.macro_f1(true, predicted) == pytest.approx(metrics.f1_score(true, predicted, average="macro"))
    assert measures.roc_auc(true == 1, scores) == pytest.approx(metrics.roc_auc_score(true == 1, scores))
    precision, recall = measures.precision_recall(true == 1, predicted == 1)
    assert precision == pytest.approx(metrics.precision_score(true == 1, predicted == 1))
    assert recall == pytest.approx(metrics.recall_score(true == 1, predicted == 1))
    assert measures.roc_auc(np.array([True]), np.array([0.5])) is None


def test_the_scale_repairs_overconfidence() -> None:
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(4000, 2)) * 2
    labels = [int(rng.random() < p) for p in measures.softmax(honest)[:, 1]]
    scale, loss = measures.best_scale(honest / 3, labels)
    assert scale == pytest.approx(3, rel=0.15)
    assert loss < measures.best_scale(rng.normal(size=honest.shape), labels)[1]
    right = np.array(labels) == honest.argmax(1)
    repaired, overconfident = (measures.calibration_error(measures.softmax(logits).max(1), right) for logits in (scale * honest / 3, honest * 3))
    assert repaired < overconfident


def test_a_few_rows_that_are_all_right_are_no_certainty() -> None:
    logits = np.eye(2)[[0, 1] * 20]
    scale, _ = measures.best_scale(logits, [0, 1] * 20)
    assert measures.softmax(scale * logits).max() == pytest.approx(41 / 42, abs=0.005)


LABELS = ["English", "fraud", "normal"]


def few(*splits: str) -> list[dict[str, Any]]:
    """Items of three labels, enough of them to choose by."""
    rows = [row for row in dialogues.rows(fills=4) if row["_split"] in splits]
    rows = [{"text": row["text"], "label": "English" if row["text"].isascii() else row["label"]} for row in rows]
    items: list[dict[str, Any]] = list(plugin.items(plugin.Config(model=plugin.Model(buckets=4096)), rows))
    return items


def test_the_wide_part_in_the_network_is_the_support_vector_machine() -> None:
    from sklearn.feature_extraction.text import TfidfTransformer

    from scenarium_fraud_text import wide
    from scenarium_fraud_text.network import Evidence

    rarity = TfidfTransformer(sublinear_tf=True)
    for labels in (LABELS, LABELS[1:]):
        count, items = len(labels), [item for item in few("train") if item["label"] in labels]
        texts = rarity.fit_transform(wide.counts(items, 4096))
        target = np.array([labels.index(item["label"]) for item in items])
        part = wide.machine(texts, target, dict.fromkeys(range(count), 1.0), 1.0, 0)
        module = Evidence(count, 4096, 8, 1, 0.3).eval()
        deep = module.answers(items[::9])
        module.join(part.weights, part.bias, rarity.idf_, 2.0, 0.5)
        assert module.answers(items[::9]) == pytest.approx(2 * part.logits(texts[::9]) + 0.5 * deep, abs=1e-4)
        assert (part.logits(texts).argmax(1) == target).mean() > 0.99


def test_the_parts_are_scaled_by_the_validation_rows_where_there_are_enough() -> None:
    import torch

    from scenarium_fraud_text import wide
    from scenarium_fraud_text.network import Evidence

    train, val, test = few("train"), few("val"), few("test")
    torch.manual_seed(0)
    module = Evidence(3, 4096, 8, 1, 0.3).eval()
    assert wide.join(module, train, val, LABELS, [1.0, 1.0, 1.0], 0) > 1
    right = module.answers(test).argmax(1) == [LABELS.index(item["label"]) for item in test]
    assert right.mean() > 0.8
    assert wide.join(Evidence(3, 4096, 8, 1, 0.3).eval(), train, val[: wide.ENOUGH - 1], LABELS, [1.0, 1.0, 1.0], 0) == wide.SCALE


def test_the_baseline_learns() -> None:
    rows = dialogues.rows(fills=3)
    baseline = plugin.baseline([row for row in rows if row["_split"] == "train"], [row for row in rows if row["_split"] == "test"])
    assert 0.6 < baseline.metrics["macro_f1"] <= 1


def test_an_n_gram_counts_once_a_text() -> None:
    found = features.ids(tokenize("钱钱钱 a"), 1 << 16)
    shares = features.shares(found)
    assert shares[:3, 0] == pytest.approx(1 / 3)
    assert shares[3, 0] == 1
    assert not shares[found == 0].any()
    for number in np.unique(found[found > 0]):
        assert shares[found == number].sum() == pytest.approx(1)


def test_rare_labels_count_as_much_as_the_balance_says() -> None:
    rows = [{"label": "fraud"}] * 2 + [{"label": "normal"}] * 8
    assert plugin.fit(plugin.Config(), rows)["importance"] == pytest.approx([2.5, 0.625])
    assert plugin.fit(plugin.Config(model=plugin.Model(balance=0)), rows)["importance"] == [1, 1]
