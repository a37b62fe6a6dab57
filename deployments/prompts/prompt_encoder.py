"""Stage 1: the prompt and the negative prompt to T5 embeddings."""

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ray import serve
from torch import Tensor

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.keys import prompt_embeds_key
from deployments.messages import Stage
from deployments.mochi.weights.loading import load_text_encoder
from deployments.prompts.kept_embeddings import KeptEmbeddings
from deployments.replica.connections import Connections
from deployments.replica.running_task import RunningTask, TaskStore, Timing, logger
from deployments.replica.stage_replica import StageReplica
from deployments.settings import WorkerSettings
from deployments.storage.models.store import zeroes_empty_prompt
from deployments.storage.work_files import CONTENT_TYPE, WorkLabel, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


KEPT_BYTES = 256 * 2**20
"""In the host's memory: 64 texts of Mochi 1 in fp32 (256 tokens of 4096 numbers are 4 MiB), 128 in bf16."""


class TextEncoder:
    """The tokenizer and T5, used as ``MochiPipeline.encode_prompt`` uses them. Thread-safe.

    Each text is encoded in a pass of its own, and its embeddings are kept: so they are the same bits whatever the other
    text is and whether they were kept. All that the model's revision says of embeddings (weights, dtype, `zero_empty`,
    max_tokens) is fixed for an encoder's life, so the text alone is the key, as prompt and as negative prompt.

    Args:
        zero_empty: `model.zero_empty_prompt`, for which see `zeroes_empty_prompt`.
        kept_bytes: of embeddings that are kept; 0 keeps none.
    """

    def __init__(
        self,
        folder: Path,
        dtype: DtypeName,
        device: torch.device,
        max_tokens: int,
        zero_empty: bool | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> None:
        self._tokenizer, self._encoder = load_text_encoder(folder, dtype, device)
        self._device = device
        self._max_tokens = max_tokens
        self._zero_empty = zeroes_empty_prompt(folder, zero_empty)
        self._lock = threading.Lock()
        self._kept = KeptEmbeddings(kept_bytes)

    def kept(self, prompt: str, negative_prompt: str) -> dict[str, Tensor] | None:
        """What `encode` would return, if all of it is kept: without the device, at once."""
        found = self._kept.get(prompt), self._kept.get(negative_prompt)
        return _named(found[0], found[1]) if found[0] and found[1] else None

    @torch.no_grad()
    def encode(self, prompt: str, negative_prompt: str) -> dict[str, Tensor]:
        """Encode both prompts; one that is kept has no pass.

        One that is no token at all has none either, but zeros and a mask that is false.

        Returns:
            On the CPU, with L = max_tokens: `prompt_embeds` and `negative_embeds` [L, D] in the
            model's dtype, `prompt_mask` and `negative_mask` [L] bool, true for the tokens of the
            text, which come first. They are kept: who changes them makes copies.

        Raises:
            PermanentError: `prompt_too_long`.
        """
        texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        found = {text: kept for text in texts.values() if (kept := self._kept.get(text)) is not None}
        new = {name: text for name, text in texts.items() if text not in found}
        for text, ids, mask in zip(new.values(), *self._tokenize(new), strict=True) if new else ():
            if text not in found:  # the prompt may be the negative prompt, too
                found[text] = self._embed(ids, mask), mask.clone()
                self._kept.put(text, *found[text])
        return _named(found[prompt], found[negative_prompt])

    @torch.no_grad()
    def warm_up(self) -> None:
        """Run T5 on a text."""
        self._embed(torch.zeros(self._max_tokens, dtype=torch.long), torch.ones(self._max_tokens).bool())

    def _embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[L, D] on the CPU, zero for a text without a token.

        T5 would attend to nothing in it. What it makes of it is never read: the transformer's attention has no key of
        it, and the pooler weighs it with zero, which makes zero only of finite numbers.
        """
        if not bool(mask.any()):
            return torch.zeros(len(ids), self._encoder.config.d_model, dtype=self._encoder.dtype)
        device = self._device
        embeds: Tensor = self._encoder(ids[None].to(device), attention_mask=mask[None].to(device))[0]
        return embeds[0].cpu()

    def _tokenize(self, texts: dict[str, str]) -> tuple[Tensor, Tensor]:
        """ids and bool mask, each [len(texts), max_tokens]."""
        with self._lock:  # a fast tokenizer keeps its padding as state and may not be shared by threads
            for name, text in texts.items():
                check_length(self._tokenizer, name, text, self._max_tokens)
            tokens = self._tokenizer(
                list(texts.values()),
                padding="max_length",
                max_length=self._max_tokens,
                truncation=True,
                add_special_tokens=True,
                return_tensors="pt",
            )
        ids, mask = tokens.input_ids, tokens.attention_mask.bool()
        if self._zero_empty:
            filled = torch.tensor([bool(text) for text in texts.values()])[:, None]
            ids, mask = ids * filled, mask & filled
        return ids, mask


def _named(prompt: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return {
        "prompt_embeds": prompt[0],
        "prompt_mask": prompt[1],
        "negative_embeds": negative[0],
        "negative_mask": negative[1],
    }


def check_length(tokenizer: "PreTrainedTokenizerBase", name: str, text: str, max_tokens: int) -> None:
    """Refuse a text that would be cut.

    Raises:
        PermanentError: `prompt_too_long`; it says how long the text is and may be.
    """
    count = len(tokenizer(text, padding=False, truncation=False, add_special_tokens=True).input_ids)
    if count > max_tokens:
        raise PermanentError(
            "prompt_too_long", f"{name} is {count} tokens; this model reads at most {max_tokens}; shorten it"
        )


@serve.deployment
class PromptEncoder(StageReplica):
    """A replica of the encoder. The root of its application: Serve deploys what is bound in `downstream`."""

    stage = Stage.ENCODING
    model_parts = ("tokenizer", "text_encoder")

    def __init__(
        self,
        settings: WorkerSettings,
        downstream: list[Any] | None = None,
        connections: Connections | None = None,
        timing: Timing = Timing(),
    ) -> None:
        del downstream
        super().__init__(settings, connections, timing)
        model = settings.model
        self._revision = self.work_revision(Stage.ENCODING)
        self._encoder = TextEncoder(
            self._folder, model.dtype, self._device, model.max_sequence_length, model.zero_empty_prompt
        )
        self.end_phase("weights")
        self.start_worker(settings.slots)
        self.worker.warm_up(self._encoder.warm_up)
        self.end_phase("warm_up")

    async def work(self, running: RunningTask) -> None:
        """Encode both prompts of the task and store the embeddings."""
        task = running.task
        texts = task.video.prompt, task.video.negative_prompt
        # No seconds of the device are counted for what is kept: they would teach what a pass takes.
        if (tensors := self._encoder.kept(*texts)) is not None:
            logger.info("%s: the embeddings of both texts were kept", self.stage)
        else:
            tensors = await running.in_thread(self._encoder.encode, *texts)
        running.clock.lap("encode")
        label = WorkLabel(prompt_embeds_key(task.job_id), self._revision, self._settings.model.dtype, task.video)
        await TaskStore(self._store, running).put_result(label.key, pack(label, tensors), CONTENT_TYPE)
        running.clock.lap("store")
