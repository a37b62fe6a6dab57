"""A small real model, trained here in a second, loaded and asked as an operator's would be."""

import asyncio
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import serve
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from deployments.errors import PermanentError
from deployments.messages import Verdict
from deployments.prompts.prompt_classifier import LabelScorer, PromptClassifier
from serve_app.errors import ServiceUnavailableError
from serve_app.prompts.safety import classify_with

CPU = torch.device("cpu")
NEUTRAL = ["a", "red", "circle", "moving", "right"]
REFUSED = {"gun": 1, "blood": 1, "nude": 2}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *NEUTRAL, *REFUSED]
LABELS = {0: "safe", 1: "violence", 2: "nudity"}
PROMPTS = ["a red circle moving right", "a gun moving right", "blood", "circle", "red nude circle", "a red gun"]
WRONG = [False, True, True, False, True, True]


def sentences(count: int) -> Iterator[tuple[str, int]]:
    """Sentences of neutral words; two thirds of them also have one that is to be refused."""
    draw = random.Random(3)
    for i in range(count):
        words = draw.choices(NEUTRAL, k=draw.randint(1, 13)) if i % 2 else ["circle"] * draw.randint(1, 13)
        bad = draw.choice(list(REFUSED)) if i % 3 else None
        if bad is not None:
            words.insert(draw.randint(0, len(words)), bad)
        yield " ".join(words), REFUSED.get(bad or "", 0)


def tokenizer() -> Any:
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16, **special)


def make_model(folder: Path, problem_type: str) -> Path:
    torch.manual_seed(1)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=18,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        id2label=LABELS,
        label2id={name: i for i, name in LABELS.items()},
        initializer_range=0.1,
        problem_type=problem_type,
    )
    model, words = BertForSequenceClassification(config), tokenizer()
    train(model, words)
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def train(model: Any, words: Any) -> None:
    texts, labels = zip(*sentences(120), strict=True)
    tokens, wanted = words(list(texts), padding=True, return_tensors="pt"), torch.tensor(labels)
    if model.config.problem_type == "multi_label_classification":
        wanted = torch.nn.functional.one_hot(wanted, len(LABELS)).float()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    torch.set_num_threads(1)  # so small a model is only slower on more
    for _ in range(60):
        optimizer.zero_grad()
        model(**tokens, labels=wanted).loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("classifier"), "single_label_classification")


@pytest.fixture(scope="module")
def scorer(folder: Path) -> LabelScorer:
    return LabelScorer(str(folder), None, ("violence", "nudity"), CPU)


def test_each_prompt_has_its_verdict(scorer: LabelScorer) -> None:
    safe, gun, nude = scorer.score(["a red circle", "a red gun moving right", "nude"])
    assert safe.probability < 0.1
    assert (gun.label, nude.label) == ("violence", "nudity")
    assert min(gun.probability, nude.probability) > 0.9


def test_probabilities_are_the_models_own(folder: Path, scorer: LabelScorer) -> None:
    model = BertForSequenceClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        logits = model(**tokenizer()("a nude gun", return_tensors="pt")).logits
    wanted = float(logits.softmax(1)[0, 1:].sum())
    assert scorer.score(["a nude gun"])[0].probability == pytest.approx(wanted, abs=1e-6)


def test_a_batch_gives_what_each_alone_would(scorer: LabelScorer) -> None:
    prompts = PROMPTS * 10
    together = [verdict.probability for verdict in scorer.score(prompts)]
    alone = [scorer.score([prompt])[0].probability for prompt in prompts]
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("before", [0, 13, 40, 400])
def test_nothing_hides_behind_the_end_of_the_window(scorer: LabelScorer, before: int) -> None:
    prompt = "circle " * before + "gun " + "circle " * 20
    safe, hidden = scorer.score(["circle " * (before + 20), prompt])
    assert safe.probability < 0.5 < hidden.probability
    assert hidden.label == "violence"


def test_labels_that_do_not_exclude_each_other(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", "multi_label_classification")
    safe, gun = LabelScorer(str(folder), None, ("nudity", "violence"), CPU).score(["a circle", "blood"])
    assert safe.probability < 0.5 < gun.probability <= 1
    assert gun.label == "violence"


def test_an_unknown_label_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(PermanentError, match="no label 'gore'; it has 'safe', 'violence', 'nudity'") as caught:
        LabelScorer(str(folder), None, ("violence", "gore"), CPU)
    assert caught.value.code == "classifier_labels"


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match="safety.classifier.source") as caught:
        LabelScorer(str(tmp_path), None, ("violence",), CPU)
    assert caught.value.code == "classifier_not_found"


def test_a_regression_has_no_labels(tmp_path: Path, folder: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(folder)
    model.config.problem_type = "regression"
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PermanentError) as caught:
        LabelScorer(str(tmp_path), None, ("violence",), CPU)
    assert caught.value.code == "classifier_unsuited"


@pytest.fixture
def handle(serve_cluster: None, folder: Path) -> Any:
    deployment: Any = PromptClassifier
    bound = deployment.options(ray_actor_options={"num_cpus": 0}).bind(str(folder), None, ("violence", "nudity"))
    return serve.run(bound, name="classifier", route_prefix=None)


@pytest.mark.slow
async def test_a_replica_answers_many_at_once_and_none_when_it_is_gone(handle: Any) -> None:
    classify = classify_with(handle, timeout_s=300)
    verdicts: list[Verdict] = await asyncio.gather(*map(classify, PROMPTS * 5))
    assert [v.probability > 0.5 for v in verdicts] == WRONG * 5
    await asyncio.to_thread(serve.delete, "classifier")
    with pytest.raises(ServiceUnavailableError):
        await classify_with(handle, timeout_s=3)("a red circle")


def test_a_model_without_its_head_is_refused(folder: Path, tmp_path: Path) -> None:
    """Its verdicts would be noise."""
    shutil.copytree(folder, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    head = max(name for name in weights if name.startswith("classifier"))
    del weights[head]
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PermanentError, match=f"its files lack {head}") as caught:
        LabelScorer(str(tmp_path / "model"), None, ("violence",), CPU)
    assert caught.value.code == "classifier_unsuited"
