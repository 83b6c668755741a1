"""Tiny models of random weights, made on disk here, imported, and held against transformers' own pipeline; one of them through a real gateway."""

from __future__ import annotations

import base64
import json
import logging
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openai
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


@pytest.fixture(scope="module")
def gateway(models, tmp_path_factory: pytest.TempPathFactory):
    """A gateway with two of the models."""
    served = Lab(tmp_path_factory.mktemp("served"))
    registry = Registry(Settings.read(environ={"SCENARIUM_STORE": served.store.root}))
    for task, name in (("text-classification", "sentiment"), ("feature-extraction", "vectors")):
        import_pipeline(str(models[task]), task, name, registry, served.store)
    try:
        found = served.start(None)
        found.store = served.store
        found.ready("sentiment", "vectors", timeout=180)
        yield found
    finally:
        served.close()


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
        texts = (sample["input"], "a", "ada lovelace lived in london")
        told = runtime.predict([runtime.decode(json.dumps({"input": text, "vectors": text != "a"}).encode()) for text in texts])
        for text, each in zip(texts, told, strict=True):
            theirs = np.array(own(task, models[task], text)[0])
            assert each.usage.prompt_tokens == len(theirs)
            np.testing.assert_allclose(each.embedding, theirs.mean(0) / np.linalg.norm(theirs.mean(0)), atol=1e-5)
            assert each.vectors is None if text == "a" else np.allclose(each.vectors, theirs, atol=1e-5)
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


@pytest.fixture(scope="module")
def sentences(models, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The model as sentence-transformers lays one out, with this pooling and these steps."""

    def made(pooling: dict[str, bool], *steps: str) -> Path:
        folder = tmp_path_factory.mktemp("sentences") / "model"
        shutil.copytree(models["feature-extraction"], folder)
        kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), *((step, f"{place}_{step}") for place, step in enumerate(steps, 2))]
        modules = [{"idx": place, "path": path, "type": f"sentence_transformers.models.{kind}"} for place, (kind, path) in enumerate(kinds)]
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
        return folder

    return made


def test_embeddings_are_pooled_as_the_model_declares(sentences, lab) -> None:
    registry, store = lab
    for name, at, steps in (("cls_token", 0, ["Normalize"]), ("lasttoken", -1, [])):
        folder = sentences({f"pooling_mode_{name}": True, "pooling_mode_mean_tokens": False}, *steps)
        import_pipeline(str(folder), "feature-extraction", f"by_{name}", registry, store)
        theirs = np.array(own("feature-extraction", folder, "What a wonderful day")[0])[at]
        answer = store.manifest(f"by_{name}", 1).answer
        np.testing.assert_allclose(answer["embedding"], theirs / np.linalg.norm(theirs) if steps else theirs, atol=1e-5)
    for folder, told in (
        (sentences({"pooling_mode_max_tokens": True}), "max_tokens"),
        (sentences({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}), "first, mean"),
        (sentences({"pooling_mode_mean_tokens": True}, "Dense"), "Dense"),
    ):
        with pytest.raises(ScenariumError, match=told) as refused:
            import_pipeline(str(folder), "feature-extraction", "bad", registry, store)
        assert refused.value.code == "SCN-5120"


def test_the_openai_client_gets_embeddings(models, gateway) -> None:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        assert {model.id for model in client.models.list()} == {"vectors"}
        texts = ["What a wonderful day", "a b c"]
        plain = client.embeddings.create(model="vectors", input=texts, encoding_format="float")
        coded = client.embeddings.create(model="vectors", input=texts, encoding_format="base64")
        default = client.embeddings.create(model="vectors", input=texts)  # base64 on the wire, decoded by the client
        for place, text in enumerate(texts):
            theirs = np.array(own("feature-extraction", models["feature-extraction"], text)[0]).mean(0)
            wanted = theirs / np.linalg.norm(theirs)
            np.testing.assert_allclose(plain.data[place].embedding, wanted, atol=1e-5)
            np.testing.assert_allclose(np.frombuffer(base64.b64decode(coded.data[place].embedding), "<f4"), wanted, atol=1e-5)
            np.testing.assert_allclose(default.data[place].embedding, wanted, atol=1e-5)
        assert plain.usage.prompt_tokens == plain.usage.total_tokens == 6 + 5
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model="vectors", input="")
        assert caught.value.param == "input"


def test_it_is_served(gateway) -> None:
    answer = gateway.store.manifest("sentiment", 1).answer
    found = gateway.client.post("/scenarios/sentiment/predict", json={"text": "What a wonderful day"})
    assert found.json()["labels"][0] == {"label": answer["labels"][0]["label"], "score": pytest.approx(answer["labels"][0]["score"], abs=1e-5)}
    refused = gateway.client.post("/scenarios/sentiment/predict", json={"text": ""})
    assert (refused.status_code, refused.json()["field"]) == (422, "text")
