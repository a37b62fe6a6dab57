"""ESM2: sequences of different lengths in one pass, without padding.

The sequences of a call lie one after another in a row; each attends to itself alone and counts its positions from its
own beginning. So its answer does not depend on its neighbours, and is the one that transformers gives for it alone: on
a CPU in float32 to the last bit after `set_repeatable_products`; otherwise up to rounding, because kernels add up few
rows in another order than many (2e-6 of the largest value, measured with the shapes of 35 and 150 million weights as
they are initialised). In bfloat16 the same holds within that dtype's rounding. On a GPU it was not measured.

Where a sequence has masks and the model was trained with token dropout, transformers scales the embeddings by the
masks of the row. Here it is done by those of each sequence.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

from deployments.dtypes import DtypeName
from deployments.errors import PermanentError
from deployments.proteins.alphabet import MASK, VOCABULARY
from deployments.proteins.contacts import ContactMaps
from deployments.proteins.packed_attention import PACKED, PackedRow, register_packed_attention
from deployments.proteins.queries import Answer, Floats, Pooling, Query

CPU = torch.device("cpu")
MASKED_IN_TRAINING = 0.15 * 0.8
"""The share of tokens that were masked, as `EsmEmbeddings` has it."""


class Esm2:
    """An ESM2 model, loaded once for embeddings, logits and contacts. Not thread-safe.

    Args:
        folder: as `EsmForMaskedLM.save_pretrained` or `EsmModel.save_pretrained` writes it, with the tokenizer's
            vocab.txt.
        dtype: of the weights and the pass; contacts are computed in float32 from there on.

    Raises:
        PermanentError: `protein_model_unsuited`, the folder cannot be loaded, is no ESM2, or is not whole.
    """

    def __init__(self, folder: Path, dtype: DtypeName = "float32", device: torch.device = CPU) -> None:
        _check_vocabulary(folder)
        model, absent = _load(folder, getattr(torch, dtype))
        self._device = device
        self._esm: Any = model.esm.to(device)
        self._head: Any = None if "lm_head" in absent else model.lm_head.to(device)
        self.num_layers: int = model.config.num_hidden_layers
        self.hidden_size: int = model.config.hidden_size
        self.predicts_tokens = self._head is not None
        """Whether it has a head for logits."""
        self.predicts_contacts = "contact_head" not in absent
        regression = self._esm.contact_head.regression
        self._contact_weights = regression.weight.detach().float().view(self.num_layers, -1)
        self._contact_bias = regression.bias.detach().float()
        for index, layer in enumerate(self._esm.encoder.layer):
            layer.attention.self.layer_idx = index

    def check(self, query: Query) -> None:
        """Check that the model can answer a query.

        Raises:
            PermanentError: `layer_out_of_range`; `model_without_lm_head`, `model_without_contacts`: its files lack it.
        """
        for layer in query.layers:
            if not -self.num_layers - 1 <= layer <= self.num_layers:
                raise PermanentError(
                    "layer_out_of_range",
                    f"layer {layer}: the model has hidden states 0 (the embedding) to {self.num_layers}, or "
                    f"{-self.num_layers - 1} to -1 from the end",
                )
        if query.logits_at and not self.predicts_tokens:
            raise PermanentError(
                "model_without_lm_head",
                "this model was published without a language-model head, so it makes embeddings and no logits or "
                "scores; ask a model that has one",
            )
        if query.contacts and not self.predicts_contacts:
            raise PermanentError(
                "model_without_contacts", "this model was published without a contact head; ask a model that has one"
            )

    @torch.inference_mode()
    def run(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer all queries in one pass, in their order.

        Raises:
            PermanentError: see `check`.
        """
        if not queries:
            return []
        for query in queries:
            self.check(query)
        row = self._row(queries)
        layers = sorted({self._layer(layer) for query in queries for layer in query.layers})
        out = self._esm(
            inputs_embeds=self._embed(queries)[None],
            position_ids=self._positions(queries)[None],
            output_hidden_states=[layer for layer in layers if layer < self.num_layers],
            packed=row,
        )
        last: Tensor = out.last_hidden_state[0]
        states = {layer: out.hidden_states[layer][0] for layer in layers if layer < self.num_layers}
        states[self.num_layers] = last
        # All rows: products of few rows take another kernel, and answers would depend on how many were asked.
        logits: Any = self._head(last) if any(query.logits_at for query in queries) else None
        return [
            Answer(
                self._pool(query, {layer: state[start:stop] for layer, state in states.items()}),
                _on_host(row.contacts.probabilities(index)) if query.contacts else None,
                _on_host(logits[start + 1 : stop - 1][list(query.logits_at)]) if query.logits_at else None,
            )
            for index, (query, (start, stop)) in enumerate(zip(queries, pairwise(row.bounds), strict=True))
        ]

    def _row(self, queries: Sequence[Query]) -> PackedRow:
        bounds = tuple(accumulate((len(query.tokens) for query in queries), initial=0))
        wanted = (index for index, query in enumerate(queries) if query.contacts)
        return PackedRow(
            bounds,
            torch.tensor(bounds, dtype=torch.int32, device=self._device),
            ContactMaps(wanted, self._contact_weights, self._contact_bias),
        )

    def _embed(self, queries: Sequence[Query]) -> Tensor:
        """[T, hidden size]."""
        tokens = torch.tensor(list(b"".join(query.tokens for query in queries)), device=self._device)
        embeddings = self._esm.embeddings
        words: Tensor = embeddings.word_embeddings(tokens)
        if not embeddings.token_dropout:
            return words
        words = words.masked_fill((tokens == MASK)[:, None], 0.0)
        lengths = torch.tensor([len(query.tokens) for query in queries])
        masked = torch.tensor([query.tokens.count(MASK) for query in queries]).float() / lengths
        by_token = masked.repeat_interleave(lengths).to(self._device)
        return (words * (1 - MASKED_IN_TRAINING) / (1 - by_token)[:, None]).to(words.dtype)

    def _positions(self, queries: Sequence[Query]) -> Tensor:
        """[T], from 0 in each sequence."""
        return torch.cat([torch.arange(len(query.tokens)) for query in queries]).to(self._device)

    def _layer(self, layer: int) -> int:
        return layer % (self.num_layers + 1)

    def _pool(self, query: Query, states: Mapping[int, Tensor]) -> dict[tuple[int, Pooling], Floats]:
        """The embeddings that a query wants of its [tokens, hidden size] states."""
        kept = query.kept or range(len(query))
        return {
            (layer, pooling): _on_host(_pool(pooling, states[self._layer(layer)], kept))
            for layer in query.layers
            for pooling in query.poolings
        }


def _pool(pooling: Pooling, state: Tensor, kept: range) -> Tensor:
    """Of one sequence: `state` [tokens, hidden size], with ``<cls>`` and ``<eos>``; `kept` counts from 0 without."""
    residues = state[1:-1][kept.start : kept.stop].float()
    match pooling:
        case "mean":
            return residues.mean(0)
        case "max":
            return residues.amax(0)
        case "bos":
            return state[0]
        case "per_residue":
            return residues


def _on_host(tensor: Tensor) -> Floats:
    # A copy: a view would keep the whole row's tensor in memory.
    array: Floats = tensor.to("cpu", torch.float32, copy=True).contiguous().numpy()
    return array


def _unsuited(folder: Path, problem: str) -> PermanentError:
    return PermanentError(
        "protein_model_unsuited",
        f"{folder.name}: {problem}; name a folder of an ESM2 model as save_pretrained writes it, with its vocab.txt",
    )


def _check_vocabulary(folder: Path) -> None:
    try:
        tokens = tuple((folder / "vocab.txt").read_text().split())
    except (OSError, UnicodeDecodeError) as error:
        raise _unsuited(folder, f"vocab.txt cannot be read ({error})") from error
    if tokens != VOCABULARY:
        raise _unsuited(folder, f"vocab.txt has other tokens than ESM2's {len(VOCABULARY)}, or in another order")


def _load(folder: Path, dtype: torch.dtype) -> tuple[Any, set[str]]:
    """The model, and which of `lm_head` and `contact_head` its files lack."""
    register_packed_attention()
    if not (folder / "config.json").is_file():
        raise _unsuited(folder, "it has no config.json")
    try:
        config = EsmConfig.from_pretrained(folder, local_files_only=True)
        _check_config(folder, config)
        model, report = EsmForMaskedLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            attn_implementation=PACKED,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they are named below
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unsuited(folder, f"it cannot be loaded ({error})") from error
    missing = {*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])}
    heads = {"lm_head": "lm_head.", "contact_head": "esm.contact_head."}
    absent = {head for head, prefix in heads.items() if missing >= {*_untied(model, prefix)}}
    # transformers only warns of these, and fills them with noise.
    if lost := sorted(name for name in missing if not any(name.startswith(heads[head]) for head in absent)):
        others = f"; so it is with {len(lost) - 1} other tensors" if lost[1:] else ""
        raise _unsuited(folder, f"its files lack {lost[0]}, or have another shape of it" + others)
    return model.eval(), absent


def _untied(model: Any, prefix: str) -> list[str]:
    return [name for name, _ in model.named_parameters() if name.startswith(prefix)]


def _check_config(folder: Path, config: Any) -> None:
    wanted = {
        "model_type": "esm",
        "position_embedding_type": "rotary",
        "emb_layer_norm_before": False,
        "is_folding_model": False,
        "is_decoder": False,
        "vocab_size": len(VOCABULARY),
        "mask_token_id": MASK,
    }
    for name, value in wanted.items():
        if (found := getattr(config, name, None)) != value:
            raise _unsuited(folder, f"config.json has {name} {found!r}, and ESM2 has {value!r}")
