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
from deployments.storage.model_store import read_index
from deployments.storage.work_files import CONTENT_TYPE, WorkLabel, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TextEncoder:
    """The tokenizer and T5, used as ``MochiPipeline.encode_prompt`` uses them. Thread-safe."""

    def __init__(self, folder: Path, dtype: DtypeName, device: torch.device, max_tokens: int) -> None:
        self._tokenizer, self._encoder = load_text_encoder(folder, dtype, device)
        self._device = device
        self._max_tokens = max_tokens
        self._zero_empty = bool(read_index(folder).get("force_zeros_for_empty_prompt", False))
        self._lock = threading.Lock()

    @torch.no_grad()
    def encode(self, prompt: str, negative_prompt: str) -> dict[str, Tensor]:
        """Encode both prompts in one pass.

        Returns:
            On the CPU, with L = max_tokens: `prompt_embeds` and `negative_embeds` [L, D] in the
            model's dtype, `prompt_mask` and `negative_mask` [L] bool, true for the tokens of the
            text, which come first.

        Raises:
            PermanentError: `prompt_too_long`.
        """
        ids, mask = self._tokenize({"prompt": prompt, "negative_prompt": negative_prompt})
        embeds = self._encoder(ids.to(self._device), attention_mask=mask.to(self._device))[0].cpu()
        return {
            "prompt_embeds": embeds[0].contiguous(),
            "prompt_mask": mask[0].contiguous(),
            "negative_embeds": embeds[1].contiguous(),
            "negative_mask": mask[1].contiguous(),
        }

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
        self._encoder = TextEncoder(self._folder, model.dtype, self._device, model.max_sequence_length)
        self.start_worker(settings.slots)
        self.worker.warm_up(lambda: self._encoder.encode("", ""))

    async def work(self, running: RunningTask) -> None:
        """Encode both prompts of the task and store the embeddings."""
        task = running.task
        tensors = await running.in_thread(self._encoder.encode, task.spec.prompt, task.spec.negative_prompt)
        running.clock.lap("encode")
        label = WorkLabel(prompt_embeds_key(task.job_id), self._revision, self._settings.model.dtype, task.spec)
        await TaskStore(self._store, running).put_result(label.key, pack(label, tensors), CONTENT_TYPE)
        running.clock.lap("store")
