"""The design that ours is compared with: one replica has all devices, a thread for each, and pads what it is sent.

Sequence n of a request goes to device n modulo their number; a device computes its part at once, all rows as long as
the longest. The models are transformers' own `EsmModel`.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from ray import serve
from transformers import EsmModel
from transformers.utils import logging

from deployments.proteins.alphabet import VOCABULARY
from deployments.proteins.queries import Floats

PAD = VOCABULARY.index("<pad>")


class StockModel:
    """transformers' model, in float32 with torch's attention."""

    def __init__(self, folder: Path) -> None:
        logging.set_verbosity_error()  # it tells of the language-model head, which is not loaded
        logging.disable_progress_bar()
        self._model: Any = EsmModel.from_pretrained(
            folder, add_pooling_layer=False, attn_implementation="sdpa", dtype=torch.float32
        ).eval()

    @torch.inference_mode()
    def embed_padded(self, sequences: Sequence[bytes]) -> list[Floats]:
        """Mean embeddings [hidden size] of sequences in one pass. sequences: tokens, as `ProteinSequence` has them."""
        longest = max(map(len, sequences))
        tokens = torch.full((len(sequences), longest), PAD)
        attended = torch.zeros_like(tokens)
        for row, sequence in enumerate(sequences):
            tokens[row, : len(sequence)] = torch.tensor(list(sequence))
            attended[row, : len(sequence)] = 1
        states = self._model(input_ids=tokens, attention_mask=attended).last_hidden_state
        return [states[row, 1 : len(sequence) - 1].mean(0).numpy() for row, sequence in enumerate(sequences)]

    @torch.inference_mode()
    def embed_alone(self, sequence: bytes) -> Floats:
        """Of one sequence, without a mask."""
        states = self._model(input_ids=torch.tensor([list(sequence)])).last_hidden_state
        embedding: Floats = states[0, 1:-1].mean(0).numpy()
        return embedding


@serve.deployment
class SourceDesign:
    """The one replica.

    Args:
        folder: of the model.
        devices: of which each has a copy of it, and one thread of the CPU.
    """

    def __init__(self, folder: Path, devices: int) -> None:
        torch.set_num_threads(1)
        self._models = [StockModel(folder) for _ in range(devices)]
        self._threads = ThreadPoolExecutor(devices)

    async def embed(self, sequences: list[bytes]) -> list[Floats]:
        """Mean embeddings in the order of the sequences, which are tokens."""
        count = len(self._models)
        loop = asyncio.get_running_loop()
        parts = [sequences[device::count] for device in range(count)]
        embedded = await asyncio.gather(
            *(
                loop.run_in_executor(self._threads, model.embed_padded, part)
                for model, part in zip(self._models, parts, strict=True)
                if part
            )
        )
        by_index = {
            device + count * row: embedding
            for device, part in enumerate(embedded)
            for row, embedding in enumerate(part)
        }
        return [by_index[index] for index in range(len(sequences))]
