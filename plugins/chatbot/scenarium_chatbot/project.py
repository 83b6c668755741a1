"""Rasa projects: writing one from rows and the shipped dialogue, and taking the user's own."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from scenarium.core import Row, ScenariumError
from scenarium.core.errors import Words
from scenarium_chatbot.settings import ChatbotConfig

DIALOGUE = Path(__file__).parent / "dialogue"
ANNOTATION = re.compile(r"\[([^\]]+)\](?:\([^)]*\)|\{[^}]*\})")
"""``[text](entity)`` or ``[text]{"entity": …}`` in an example of Rasa's training data."""


def shipped_intents() -> list[str]:
    """The intents that the shipped dialogue answers."""
    domain = yaml.safe_load((DIALOGUE / "domain.yml").read_text(encoding="utf8"))
    return list(domain["intents"])


def intent_names(labels: Sequence[str]) -> dict[str, str]:
    """Label of the data to intent of Rasa, which gives ``/`` and blanks a meaning of their own."""
    names: dict[str, str] = {}
    for label in sorted(set(labels)):
        name = re.sub(r"\W+", "_", label).strip("_") or "intent"
        while name in names.values():
            name += "_"
        names[label] = name
    return names


def write(folder: Path, config: ChatbotConfig, state: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write a Rasa project into ``folder``: the shipped dialogue, one rule for each intent that it does not know, the rows as examples."""
    (folder / "domain").mkdir(parents=True)
    (folder / "data").mkdir()
    shutil.copy(DIALOGUE / "domain.yml", folder / "domain" / "shipped.yml")
    shutil.copy(DIALOGUE / "rules.yml", folder / "data" / "rules.yml")
    names: Mapping[str, str] = state["names"]
    # A letter or digit next to it would make it part of something longer; \\b sees no border between Chinese characters and digits.
    order_id = f"(?<![A-Za-z0-9])(?:{config.model.order_id_pattern})(?![A-Za-z0-9])"
    examples: dict[str, list[str]] = defaultdict(list)
    marked = 0
    for row in rows:
        # Rasa reads [text](name) as an entity, whoever wrote it.
        text, found = re.subn(order_id, r"[\g<0>](order_id)", re.sub(r"\](?=[({])", "] ", row["text"]))
        marked += found
        examples[names[row["intent"]]].append(text)
    if not marked:
        # Its regular expression is only used for an entity that some example has.
        examples["inform_order_id"].append("[A12345678](order_id)")
    nlu: list[dict[str, str]] = [{"intent": intent, "examples": _block(texts)} for intent, texts in examples.items()]
    nlu.append({"regex": "order_id", "examples": _block([order_id])})
    _yaml(folder / "data" / "nlu.yml", nlu=nlu)
    known = set(shipped_intents())
    own = {label: name for label, name in names.items() if name not in known}
    if own:
        replies = {name: state["replies"].get(label) for label, name in own.items()}
        responses = {f"utter_{name}": [{"text": text}] for name, text in replies.items() if text}
        rules = [
            {"rule": f"own {name}", "steps": [{"intent": name}, {"action": f"utter_{name}" if replies[name] else "utter_unanswered"}]} for name in own.values()
        ]
        _yaml(folder / "domain" / "own.yml", intents=list(own.values()), responses=responses)
        _yaml(folder / "data" / "own_rules.yml", rules=rules)
    _yaml(folder / "config.yml", recipe="default.v1", assistant_id="scenarium", language="zh", pipeline=pipeline(config), policies=policies())


def pipeline(config: ChatbotConfig) -> list[dict[str, Any]]:
    """The NLU components: Jieba words and character n-grams, which serve both languages, DIET (Bunk et al. 2020) over them, and a logistic regression.

    DIET without transformer layers and with more dropout than Rasa's default: on some hundred short utterances the layers cost most of the time and lose
    accuracy on phrasings that were held out. Alone it is about as good as the regression; the mean of both is better than either.
    """
    train = config.train
    return [
        {"name": "JiebaTokenizer"},
        {"name": "RegexFeaturizer", "use_word_boundaries": False},
        {"name": "RegexEntityExtractor", "use_word_boundaries": False, "use_regexes": True},
        {"name": "CountVectorsFeaturizer", "max_ngram": 2},
        {"name": "CountVectorsFeaturizer", "analyzer": "char_wb", "min_ngram": 1, "max_ngram": 4},
        {
            "name": "DIETClassifier",
            "epochs": train.epochs,
            "batch_size": train.batch_size,
            "learning_rate": train.lr,
            "random_seed": train.seed,
            "constrain_similarities": True,
            "entity_recognition": False,
            "number_of_transformer_layers": 0,
            "drop_rate": 0.5,
            "drop_rate_sparse": 0.5,
            "embedding_dimension": 64,
            "ranking_length": 0,
        },
        {"name": "rasa_components.AveragingLogisticRegression", "ranking_length": 0, "max_iter": 300},
        {"name": "FallbackClassifier", "threshold": config.model.fallback, "ambiguity_threshold": 0.05},
    ]


def policies() -> list[dict[str, Any]]:
    """Rules alone: TED learns next to nothing without a stock of real conversations, and doubles training and loading time."""
    return [{"name": "RulePolicy", "core_fallback_threshold": 0.3, "core_fallback_action_name": "action_default_fallback", "enable_fallback_prediction": True}]


def _block(texts: Sequence[str]) -> str:
    # A line break would begin another example.
    return "".join(f"- {' '.join(text.split())}\n" for text in texts)


def _yaml(path: Path, **tables: Any) -> None:
    """Top-level keys as plain YAML lines (Rasa tells the kinds of files apart by them), their values as JSON, which is YAML."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in {"version": "3.1", **tables}.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf8")


# ── the user's own project ────────────────────────────────────────────────────────────────────────────────────────────


def check_project(folder: Path) -> None:
    """Refuse a folder that is no Rasa project.

    Raises:
        ScenariumError: SCN-6027, naming what is missing.
    """
    for wanted in (("config.yml",), ("domain.yml", "domain.yaml", "domain"), ("data",)):
        if not any((folder / name).exists() for name in wanted):
            raise ScenariumError("SCN-6027", path=folder, reason=Words(f"{wanted[0]} is missing", f"缺少 {wanted[0]}"))


def project_rows(folder: Path) -> list[Row]:
    """The NLU examples of a project as rows, without the annotations of their entities.

    Raises:
        ScenariumError: SCN-6027 (no project, or a file is not YAML).
    """
    check_project(folder)
    rows: list[Row] = []
    for path, entries in _nlu_files(folder):
        for entry in entries:
            if "intent" in entry:
                for example in _examples(entry):
                    rows.append({"text": ANNOTATION.sub(r"\1", example), "intent": entry["intent"].partition("/")[0], "_file": str(path)})
    return rows


def copy_project(folder: Path, target: Path, rows: Sequence[Row]) -> None:
    """Copy a project, with ``rows`` as the only examples of its intents: what is held out must not be trained on."""
    check_project(folder)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("models", ".rasa", "*.tar.gz", ".git"))
    kept = {row["text"] for row in rows}
    for path, entries in _nlu_files(target):
        document = yaml.safe_load(path.read_text(encoding="utf8"))
        for entry in entries:
            if "intent" in entry:
                entry["examples"] = "".join(f"- {example}\n" for example in _examples(entry) if ANNOTATION.sub(r"\1", example) in kept)
        document["nlu"] = [entry for entry in entries if "intent" not in entry or entry["examples"]]
        _yaml(path, **{key: value for key, value in document.items() if key != "version"})


def _nlu_files(folder: Path) -> list[tuple[Path, list[dict[str, Any]]]]:
    found = []
    for path in sorted((folder / "data").rglob("*.y*ml")):
        try:
            document = yaml.safe_load(path.read_text(encoding="utf8"))
        except (yaml.YAMLError, UnicodeDecodeError) as fault:
            raise ScenariumError("SCN-6027", path=path, reason=str(fault)) from None
        if isinstance(document, dict) and document.get("nlu"):
            found.append((path, document["nlu"]))
    return found


def _examples(entry: Mapping[str, Any]) -> list[str]:
    listed = entry.get("examples") or ""
    if isinstance(listed, list):
        return [str(example["text"] if isinstance(example, dict) else example).strip() for example in listed]
    return [line.strip().removeprefix("-").strip() for line in str(listed).splitlines() if line.strip().startswith("-")]
