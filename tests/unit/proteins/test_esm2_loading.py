"""Which folders are models, what they can do, and what loading leaves as it was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from deployments.errors import PermanentError
from deployments.proteins.alphabet import ProteinSequence
from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import Query
from tests.support.proteins.models import load_transformers, make_esm

SEQUENCE = ProteinSequence("MKTAYIAKQR")


def test_a_model_without_a_head_makes_embeddings_alone(tmp_path: Path) -> None:
    with_head = Esm2(make_esm(tmp_path / "with", layers=2))
    without = Esm2(make_esm(tmp_path / "without", layers=2, lm_head=False))
    assert (with_head.predicts_tokens, without.predicts_tokens) == (True, False)
    assert without.predicts_contacts and (without.num_layers, without.hidden_size) == (2, 32)
    query = Query(SEQUENCE.tokens, (-1,), ("mean",), contacts=True)
    (answer,) = without.run([query])
    assert answer.embeddings[-1, "mean"].shape == (32,) and answer.contacts is not None
    with pytest.raises(PermanentError, match="makes embeddings and no logits") as caught:
        without.run([Query(SEQUENCE.tokens, logits_at=(0,))])
    assert caught.value.code == "model_without_lm_head"


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_a_model_without_a_contact_head(tmp_path: Path) -> None:
    make_esm(tmp_path, layers=2)
    change_tensors(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if "contact_head" not in k})
    esm = Esm2(tmp_path)
    assert not esm.predicts_contacts and esm.predicts_tokens
    with pytest.raises(PermanentError, match="without a contact head"):
        esm.run([Query(SEQUENCE.tokens, contacts=True)])


def as_published(tensors: dict[str, Any]) -> dict[str, Any]:
    """With the frequencies of positions at every layer and in half precision, as Meta's checkpoints have them."""
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001]).half()
    old = {
        k.replace(".gamma", ".weight").replace(".beta", ".bias"): v for k, v in tensors.items() if "inv_freq" not in k
    }
    for layer in range(2):
        old[f"esm.encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq"] = frequencies.clone()
    old["esm.embeddings.position_embeddings.weight"] = torch.zeros(1026, 32)
    return old


def test_a_checkpoint_as_it_was_published_keeps_its_positions(tmp_path: Path) -> None:
    """bfloat16 of the weights must not round the frequencies: at position 1,000 that would be whole turns."""
    make_esm(tmp_path, layers=2)
    change_tensors(tmp_path, as_published)
    query = Query(ProteinSequence("MKTAYIAKQR" * 40).tokens, (-1,), ("mean",))
    (full,), (half,) = Esm2(tmp_path).run([query]), Esm2(tmp_path, "bfloat16").run([query])
    stock = load_transformers(tmp_path)
    assert stock.esm.rotary_embeddings.inv_freq[1] == torch.tensor(0.1).half()
    with torch.inference_mode():
        states = stock.esm(torch.tensor([list(query.tokens)])).last_hidden_state[0, 1:-1]
    np.testing.assert_allclose(full.embeddings[-1, "mean"], states.mean(0), atol=1e-4)
    np.testing.assert_allclose(half.embeddings[-1, "mean"], states.mean(0), atol=0.05)


def test_loading_changes_no_other_model(tmp_path: Path) -> None:
    make_esm(tmp_path, layers=2)
    before = AutoConfig.from_pretrained(tmp_path)
    stock = load_transformers(tmp_path)
    Esm2(tmp_path)
    assert stock.config._attn_implementation == "sdpa"
    assert before._attn_implementation != "mochi_serve_packed"
    stock(torch.tensor([list(SEQUENCE.tokens)]))


def edit_config(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: (folder / "vocab.txt").unlink(), "vocab.txt cannot be read"),
        (lambda folder: (folder / "vocab.txt").write_text("<cls> A C"), "other tokens than ESM2's 33"),
        (lambda folder: (folder / "config.json").unlink(), "it has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "config.json has"),
        (lambda folder: edit_config(folder, position_embedding_type="absolute"), "ESM2 has 'rotary'"),
        (lambda folder: edit_config(folder, emb_layer_norm_before=True), "ESM2 has False"),
        (
            lambda folder: edit_config(folder, num_hidden_layers=3),
            "its files lack esm.contact_head.regression.weight, or",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 20), "cannot be loaded"),
    ],
)
def test_a_folder_that_is_no_whole_esm2(tmp_path: Path, spoil: Callable[[Path], object], says: str) -> None:
    folder = make_esm(tmp_path / "model", layers=2)
    spoil(folder)
    with pytest.raises(PermanentError, match="name a folder of an ESM2 model") as caught:
        Esm2(folder)
    assert caught.value.code == "protein_model_unsuited"
    assert says in str(caught.value)


def test_half_a_head_is_no_head(tmp_path: Path) -> None:
    make_esm(tmp_path, layers=2)
    change_tensors(tmp_path, lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.dense.weight"})
    with pytest.raises(PermanentError, match="its files lack lm_head.dense.weight"):
        Esm2(tmp_path)
