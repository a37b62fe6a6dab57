"""How likely a prompt is one to be refused, by a classification model of the operator's choice."""

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from ray import serve
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from deployments.errors import PermanentError
from deployments.logs.lines import begin_log
from deployments.messages import Verdict
from deployments.replica.host import replica_device, set_threads
from deployments.settings import LogSettings
from deployments.watchdog.heartbeat import watch_this_process

TEXT = LogSettings()
MAX_BATCH = 32
BATCH_WAIT_S = 0.005
MAX_WINDOW_TOKENS = 512
# RoBERTa and its kin keep two of their positions for themselves.
SPARE_POSITIONS = 2


class LabelScorer:
    """The model and its tokenizer. Not thread-safe.

    Args:
        source: hub id or folder of a transformers sequence classification model with a fast
            tokenizer.
        revision: of the hub.
        refuse: names of labels of the model.
        device: that it computes on.

    Raises:
        PermanentError: `classifier_not_found`, the model cannot be loaded; `classifier_labels`, it
            has no such label; `classifier_unsuited`, it is a regression or its tokenizer is a slow
            one.
    """

    def __init__(self, source: str, revision: str | None, refuse: tuple[str, ...], device: torch.device) -> None:
        self._tokenizer, self._model = _load(source, revision)
        self._model.to(device).eval()
        self._device = device
        config = self._model.config
        self._refused = _label_ids(config.id2label, refuse)
        self._labels: Mapping[int, str] = config.id2label
        if config.problem_type == "regression" or not self._tokenizer.is_fast:
            raise PermanentError(
                "classifier_unsuited",
                f"safety.classifier.source {source!r} must tell labels by probability and have a fast tokenizer",
            )
        self._exclusive = config.problem_type != "multi_label_classification" and config.num_labels > 1
        self._window = _window_tokens(self._tokenizer, config)

    def score(self, prompts: list[str]) -> list[Verdict]:
        """One verdict a prompt.

        The model reads a prompt that is too long for it in windows that overlap by a quarter; the
        worst one counts.

        Of labels that exclude each other the probability is the sum of the refused ones, else that
        of the likeliest.
        """
        tokens = self._tokenizer(
            prompts,
            truncation=True,
            max_length=self._window,
            stride=self._window // 4,
            return_overflowing_tokens=True,
            padding=True,
            return_tensors="pt",
        )
        owners: list[int] = tokens.pop("overflow_to_sample_mapping").tolist()
        verdicts: list[Verdict | None] = [None] * len(prompts)
        for owner, verdict in zip(owners, self._verdicts(tokens), strict=True):
            worst = verdicts[owner]
            verdicts[owner] = verdict if worst is None or verdict.probability > worst.probability else worst
        return [verdict for verdict in verdicts if verdict is not None]

    def _verdicts(self, tokens: Mapping[str, Tensor]) -> Iterator[Verdict]:
        rows = len(tokens["input_ids"])
        for start in range(0, rows, MAX_BATCH):
            refused = self._probabilities({name: t[start : start + MAX_BATCH] for name, t in tokens.items()})
            total = refused.sum(1).clamp(max=1) if self._exclusive else refused.amax(1)
            for likeliest, probability in zip(refused.argmax(1).tolist(), total.tolist(), strict=True):
                yield Verdict(self._labels[self._refused[likeliest]], probability)

    @torch.inference_mode()
    def _probabilities(self, tokens: Mapping[str, Tensor]) -> Tensor:
        """[rows, refused labels] on the CPU."""
        logits = self._model(**{name: t.to(self._device) for name, t in tokens.items()}).logits.float().cpu()
        probabilities: Tensor = logits.softmax(1) if self._exclusive else logits.sigmoid()
        return probabilities[:, self._refused]


def _load(source: str, revision: str | None) -> tuple[Any, Any]:
    # A folder is never looked up on the hub, not even for a file that it lacks.
    local = Path(source).expanduser()
    options: dict[str, Any] = {"local_files_only": True} if local.is_dir() else {"revision": revision}
    name = str(local) if local.is_dir() else source
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
        model, report = AutoModelForSequenceClassification.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise PermanentError(
            "classifier_not_found",
            f"safety.classifier.source {source!r} could not be loaded as a sequence classification model ({error}); "
            "name a folder that save_pretrained wrote, or a hub id, and check the network, HF_TOKEN and revision",
        ) from error
    # The library only warns of these, and fills them with noise.
    if absent := sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]])):
        raise PermanentError(
            "classifier_unsuited",
            f"safety.classifier.source {source!r} is no whole sequence classification model: its files lack "
            f"{absent[0]}" + (f" and {len(absent) - 1} other tensors" if len(absent) > 1 else ""),
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model


def _label_ids(labels: Mapping[int, str], refuse: tuple[str, ...]) -> list[int]:
    by_name = {name: i for i, name in labels.items()}
    unknown = [name for name in refuse if name not in by_name]
    if unknown:
        raise PermanentError(
            "classifier_labels",
            f"safety.classifier.refuse: the model has no label {', '.join(map(repr, unknown))}; "
            f"it has {', '.join(map(repr, by_name))}",
        )
    return [by_name[name] for name in dict.fromkeys(refuse)]


def _window_tokens(tokenizer: Any, config: Any) -> int:
    """How many tokens the model reads at once, special ones included."""
    positions = getattr(config, "max_position_embeddings", None) or MAX_WINDOW_TOKENS + SPARE_POSITIONS
    return int(min(tokenizer.model_max_length, positions - SPARE_POSITIONS, MAX_WINDOW_TOKENS))


@serve.deployment(max_ongoing_requests=4 * MAX_BATCH)
class PromptClassifier:
    """A replica of the classifier; arguments and errors are those of LabelScorer."""

    def __init__(self, source: str, revision: str | None, refuse: tuple[str, ...], logging: LogSettings = TEXT) -> None:
        self._watched = watch_this_process()
        begin_log(logging, "classifier")
        device = replica_device()
        set_threads(None)
        self._scorer = LabelScorer(source, revision, refuse, device)
        self._thread = ThreadPoolExecutor(1, "classifier")
        # A model that cannot compute must not start: it would refuse service to every prompt.
        self._scorer.score(["a red circle"])

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def classify(self, prompts: list[str]) -> list[Verdict]:
        """Called with one prompt, answers its verdict; calls that come together are computed together."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._scorer.score, prompts)
