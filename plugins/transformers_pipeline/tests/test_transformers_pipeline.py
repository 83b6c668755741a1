"""Tiny models of random weights, made on disk here, imported, and held against transformers' own pipeline; one of them through a real gateway."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest

from scenarium.core import ScenariumError
from scenarium.core.importing import import_pipeline
from scenarium.core.registry import Registry
from scenarium.core.runtime import Runtime
from scenarium.core.settings import Settings
from scenarium.core.store import Store
from tests.gateway.conftest import Lab

pytestmark = pytest.mark.slow

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXT = "a b c what wonderful day the capital of france is . ada lovelace lived in london match ended this example sport politics"
WORDS = [*SPECIAL, *TEXT.split()]


def write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=32, **special).save_pretrained(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder a task."""
    import torch
    import transformers as t

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {"label2id": {"contradiction": 0, "entailment": 1}, "id2label": {0: "contradiction", 1: "entailment"}}
    bert = t.BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **small, **labels)
    made = {
        "text-classification": t.BertForSequenceClassification(bert),
        "token-classification": t.BertForTokenClassification(bert),
        "fill-mask": t.BertForMaskedLM(bert),
        "zero-shot-classification": t.BertForSequenceClassification(bert),
        "feature-extraction": t.BertModel(bert),
        "image-classification": t.ViTForImageClassification(t.ViTConfig(image_size=32, patch_size=16, **small)),
        "audio-classification": t.Wav2Vec2ForSequenceClassification(
            t.Wav2Vec2Config(
                vocab_size=8,
                conv_dim=(8, 8),
                conv_stride=(10, 8),
                conv_kernel=(10, 8),
                num_feat_extract_layers=2,
                num_conv_pos_embeddings=4,
                num_conv_pos_embedding_groups=2,
                classifier_proj_size=8,
                **small,
            )
        ),
    }
    for task, model in made.items():
        model.save_pretrained(folder / task)
        write_tokenizer(folder / task)
    t.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "image-classification")
    t.Wav2Vec2FeatureExtractor().save_pretrained(folder / "audio-classification")
    return {task: folder / task for task in made}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory):
    url = str(tmp_path_factory.mktemp("lab") / "store")
    return Registry(Settings.read(environ={"SCENARIUM_STORE": url})), Store(url)


def own(task: str, folder: Path, asked):
    """What transformers itself answers."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.pipeline(task, model=str(folder), device="cpu")(asked)


TASKS = (
    "text-classification",
    "token-classification",
    "fill-mask",
    "zero-shot-classification",
    "feature-extraction",
    "image-classification",
    "audio-classification",
)


@pytest.mark.parametrize("task", TASKS)
def test_each_task_answers_as_transformers_does(models, lab, task: str) -> None:
    registry, store = lab
    name = f"my_{task.replace('-', '_')}"
    found = import_pipeline(str(models[task]), task, name, registry, store)
    assert found.production
    version = store.open(name)
    assert all(file.endswith((".safetensors", ".json", ".txt", ".jinja")) for file in version.manifest.files), sorted(version.manifest.files)
    runtime = Runtime.open(Registry(registry.settings).scenario(name), version.folder, version.manifest)
    (answer,) = runtime.predict([runtime.decode(json.dumps(version.manifest.sample).encode())])
    assert answer.model_dump() == version.manifest.answer
    sample, answer = version.manifest.sample, version.manifest.answer
    if task == "text-classification":
        best = own(task, models[task], sample["text"])[0]
        assert answer["labels"][0] == {"label": best["label"], "score": pytest.approx(best["score"], abs=1e-5)}
        pair = runtime.predict([runtime.decode(b'{"text": "a b", "text_pair": "c"}'), runtime.decode(b'{"text": "a"}')])
        theirs = own(task, models[task], {"text": "a b", "text_pair": "c"})
        assert pair[0].labels[0].score == pytest.approx((theirs[0] if isinstance(theirs, list) else theirs)["score"], abs=1e-5)
    elif task == "feature-extraction":
        theirs = own(task, models[task], sample["text"])[0]
        assert len(answer["vectors"]) == len(theirs) == 6
        assert answer["vectors"][0] == pytest.approx(theirs[0], abs=1e-5)
    elif task == "fill-mask":
        assert answer["labels"][0]["label"] == own(task, models[task], sample["text"])[0]["token_str"]
        with pytest.raises(ScenariumError) as refused:
            raise runtime.predict([runtime.decode(b'{"text": "no gap"}')])[0]
        assert refused.value.field == "text"
        assert len(runtime.predict([runtime.decode(json.dumps({"text": text}).encode()) for text in ("a [MASK]", "[MASK] of b")])[1].labels) == 5
    elif task == "zero-shot-classification":
        assert {each["label"] for each in answer["labels"]} == {"sport", "politics"}
        assert sum(each["score"] for each in answer["labels"]) == pytest.approx(1)
    elif task == "token-classification":
        assert all(sample["text"][each["start"] : each["end"]] == each["text"] for each in answer["entities"])
    else:
        assert len(answer["labels"]) == 2
        field = next(iter(version.manifest.sample))
        with pytest.raises(ScenariumError) as refused:
            raise runtime.predict([runtime.decode(b"neither", "application/octet-stream")])[0]
        assert refused.value.field == field


def test_what_cannot_be_imported_is_named_and_leaves_nothing(models, lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, store = lab
    before = store.scenarios()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "pytorch_model.bin").write_bytes(b"")
    for source, task, code in (
        (str(pickled), "fill-mask", "SCN-5119"),
        (str(models["fill-mask"]), "image-classification", "SCN-5120"),
        (str(models["feature-extraction"]), "text-classification", "SCN-5120"),
        ("nobody/nothing-of-this-name", "fill-mask", "SCN-0002"),
        (str(models["fill-mask"]), "poetry", "SCN-1004"),
    ):
        with pytest.raises(ScenariumError) as refused:
            import_pipeline(source, task, "bad", registry, store)
        assert refused.value.code == code, str(refused.value)
    assert store.scenarios() == before


def test_it_is_served(models, tmp_path: Path) -> None:
    served = Lab(tmp_path)
    registry = Registry(Settings.read(environ={"SCENARIUM_STORE": served.store.root}))
    import_pipeline(str(models["text-classification"]), "text-classification", "sentiment", registry, served.store)
    answer = served.store.manifest("sentiment", 1).answer
    try:
        gateway = served.start(None)
        gateway.ready("sentiment", timeout=180)
        found = gateway.client.post("/scenarios/sentiment/predict", json={"text": "What a wonderful day"})
        assert found.json()["labels"][0] == {"label": answer["labels"][0]["label"], "score": pytest.approx(answer["labels"][0]["score"], abs=1e-5)}
        refused = gateway.client.post("/scenarios/sentiment/predict", json={"text": ""})
        assert (refused.status_code, refused.json()["field"]) == (422, "text")
    finally:
        served.close()
