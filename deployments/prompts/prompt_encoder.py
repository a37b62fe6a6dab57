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
from deployments.mochi.loading import load_text_encoder
from deployments.replica.connections import Connections
from deployments.replica.running_task import RunningTask, TaskStore, Timing
from deployments.replica.stage_replica import StageReplica
from deployments.settings import WorkerSettings
from deployments.storage.model_store import zeroes_empty_prompt
from deployments.storage.work_files import CONTENT_TYPE, WorkLabel, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """The tokenizer and T5, used as ``MochiPipeline.encode_prompt`` uses them. Thread-safe.

    Args:
        zero_empty: `model.zero_empty_prompt`, for which see `zeroes_empty_prompt`.
    """

    def __init__(
        self,
        folder: Path,
        dtype: DtypeName,
        device: torch.device,
        max_tokens: int,
        zero_empty: bool | None = None,
    ) -> None:
        self._tokenizer, self._encoder = load_text_encoder(folder, dtype, device)
        self._device = device
        self._max_tokens = max_tokens
        self._zero_empty = zeroes_empty_prompt(folder, zero_empty)
        self._lock = threading.Lock()

    @torch.no_grad()
    def encode(self, prompt: str, negative_prompt: str) -> dict[str, Tensor]:
        """Encode both prompts in one pass; one that is no token at all has no pass, zeros, and a mask that is false.

        Returns:
            On the CPU, with L = max_tokens: `prompt_embeds` and `negative_embeds` [L, D] in the
            model's dtype, `prompt_mask` and `negative_mask` [L] bool, true for the tokens of the
            text, which come first.

        Raises:
            PermanentError: `prompt_too_long`.
        """
        ids, mask = self._tokenize({"prompt": prompt, "negative_prompt": negative_prompt})
        embeds = self._embed(ids, mask)
        return {
            "prompt_embeds": embeds[0].contiguous(),
            "prompt_mask": mask[0].contiguous(),
            "negative_embeds": embeds[1].contiguous(),
            "negative_mask": mask[1].contiguous(),
        }

    @torch.no_grad()
    def warm_up(self) -> None:
        """Run T5 on as many rows as a request may have."""
        for rows in (1, 2):
            self._embed(
                torch.zeros(rows, self._max_tokens, dtype=torch.long), torch.ones(rows, self._max_tokens).bool()
            )

    def _embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[rows, L, D] on the CPU, zero in rows without a token.

        T5 would attend to nothing in such a row. What it makes of it is never read: the transformer's attention has no
        key of it, and the pooler weighs it with zero, which makes zero only of finite numbers.
        """
        filled = mask.any(dim=1)
        embeds = torch.zeros(*ids.shape, self._encoder.config.d_model, dtype=self._encoder.dtype)
        if bool(filled.any()):
            device = self._device
            embeds[filled] = self._encoder(ids[filled].to(device), attention_mask=mask[filled].to(device))[0].cpu()
        return embeds

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
        self.start_worker(settings.slots)
        self.worker.warm_up(self._encoder.warm_up)

    async def work(self, running: RunningTask) -> None:
        """Encode both prompts of the task and store the embeddings."""
        task = running.task
        tensors = await running.in_thread(self._encoder.encode, task.spec.prompt, task.spec.negative_prompt)
        running.clock.lap("encode")
        label = WorkLabel(prompt_embeds_key(task.job_id), self._revision, self._settings.model.dtype, task.spec)
        await TaskStore(self._store, running).put_result(label.key, pack(label, tensors), CONTENT_TYPE)
        running.clock.lap("store")
