"""Many sequences in one pass answer as transformers does for each alone."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.errors import PermanentError
from deployments.proteins.alphabet import MASKED, ProteinSequence
from deployments.proteins.esm2 import Esm2
from deployments.proteins.queries import POOLINGS, Answer, Floats, Query
from tests.support.examples import examples
from tests.support.proteins.models import load_transformers, make_esm
from tests.support.proteins.sequences import alone, contacts_alone, drawn_sequence, sequences
from tests.support.proteins.to_the_last_bit import LENGTHS

LAYERS = (0, 1, 2, -1)
TINY = 1e-30
CLOSE = 3e-5
"""Relative to the largest value: what sums in another order make of float32."""


def everything(sequence: ProteinSequence, layers: Sequence[int] = LAYERS) -> Query:
    return Query(sequence.tokens, tuple(layers), POOLINGS, logits_at=range(len(sequence)))


def expected(model: Any, sequence: ProteinSequence, layers: Sequence[int] = LAYERS) -> Answer:
    """The answer to `everything` by transformers."""
    states, logits = alone(model, sequence)
    embeddings: dict[Any, Floats] = {}
    for layer in layers:
        residues = states[layer][1:-1].float()
        made = {"mean": residues.mean(0), "max": residues.amax(0), "bos": states[layer][0], "per_residue": residues}
        embeddings |= {(layer, pooling): value.float().numpy() for pooling, value in made.items()}
    return Answer(embeddings, logits=logits.float().numpy())


def distance(found: Answer, wanted: Answer) -> float:
    """The largest difference, relative to the largest value of the same kind."""
    assert found.embeddings.keys() == wanted.embeddings.keys()
    assert found.logits is not None and wanted.logits is not None
    pairs = [(found.logits, wanted.logits)]
    pairs += [(found.embeddings[key], wanted.embeddings[key]) for key in wanted.embeddings]
    assert all(one.shape == other.shape and one.dtype == np.float32 for one, other in pairs)
    return max(float(np.abs(one - other).max() / max(np.abs(other).max(), TINY)) for one, other in pairs)


@settings(max_examples=examples(0.7))
@given(st.lists(sequences(), min_size=1, max_size=6))
def test_a_pass_answers_as_transformers_does_one_by_one(esm: Esm2, stock: Any, mix: list[ProteinSequence]) -> None:
    for sequence, answer in zip(mix, esm.run([everything(one) for one in mix]), strict=True):
        assert distance(answer, expected(stock, sequence)) < CLOSE


@pytest.mark.parametrize("token_dropout", [True, False])
def test_masks_count_for_their_own_sequence(tmp_path: Path, token_dropout: bool) -> None:
    folder = make_esm(tmp_path, token_dropout=token_dropout, hidden=40, layers=2)
    mix = [ProteinSequence("MKT" + MASKED * n + "LVA" * (1 + n)) for n in (0, 1, 12, 3)] + [ProteinSequence(MASKED)]
    stock = load_transformers(folder)
    for sequence, answer in zip(mix, Esm2(folder).run([everything(one) for one in mix]), strict=True):
        assert distance(answer, expected(stock, sequence)) < CLOSE


def test_lengths_from_one_to_the_longest(esm: Esm2, stock: Any) -> None:
    mix = [drawn_sequence(length, seed=length, masks=True) for length in (1022, 1, 300, 2, 1021, 77)]
    for sequence, answer in zip(mix, esm.run([everything(one) for one in mix]), strict=True):
        assert distance(answer, expected(stock, sequence)) < CLOSE


def test_an_answer_is_that_of_transformers_to_the_last_bit(esm_folder: Path) -> None:
    command = [sys.executable, "-m", "tests.support.proteins.to_the_last_bit", str(esm_folder)]
    environ = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    said = json.loads(subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout)
    if not said["products_agree"]:
        pytest.skip("this machine's library has no mode in which products of few rows are those of many")
    assert said["differences"] == [0.0] * len(LENGTHS)


@settings(max_examples=examples(0.4))
@given(st.lists(sequences(30), min_size=1, max_size=4))
def test_contacts_are_those_of_transformers(esm: Esm2, eager: Any, mix: list[ProteinSequence]) -> None:
    queries = [Query(one.tokens, contacts=index != 1) for index, one in enumerate(mix)]
    for index, (sequence, answer) in enumerate(zip(mix, esm.run(queries), strict=True)):
        if index == 1:
            assert answer.contacts is None
            continue
        assert answer.contacts is not None and answer.contacts.dtype == np.float32
        np.testing.assert_allclose(answer.contacts, contacts_alone(eager, sequence), atol=CLOSE)


@pytest.fixture(scope="module")
def eager(esm_folder: Path) -> Any:
    return load_transformers(esm_folder, "eager")


def test_contacts_of_long_sequences_beside_others(esm: Esm2, eager: Any) -> None:
    mix = [drawn_sequence(length, seed=length) for length in (120, 400)]
    for sequence, answer in zip(mix, esm.run([Query(one.tokens, contacts=True) for one in mix]), strict=True):
        assert answer.contacts is not None
        contacts = contacts_alone(eager, sequence)
        assert float(contacts.std()) > 0.005
        np.testing.assert_allclose(answer.contacts, contacts, atol=CLOSE)


def test_only_what_is_asked_is_answered(esm: Esm2, stock: Any) -> None:
    sequence = drawn_sequence(20)
    queries = [
        Query(sequence.tokens),
        Query(sequence.tokens, (1, -3), ("mean", "max"), kept=range(4, 9)),
        Query(sequence.tokens, logits_at=(7, 2)),
    ]
    nothing, some, two = esm.run(queries)
    assert nothing == Answer()
    states, logits = alone(stock, sequence)
    assert set(some.embeddings) == {(1, "mean"), (1, "max"), (-3, "mean"), (-3, "max")}
    np.testing.assert_array_equal(some.embeddings[1, "mean"], some.embeddings[-3, "mean"])
    np.testing.assert_allclose(some.embeddings[1, "mean"], states[1][5:10].mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(some.embeddings[1, "max"], states[1][5:10].amax(0), rtol=1e-4, atol=1e-4)
    assert two.logits is not None and not two.embeddings
    np.testing.assert_allclose(two.logits, logits[[7, 2]], rtol=1e-4, atol=1e-4)
    assert esm.run([]) == []


def test_bfloat16_answers_within_its_rounding(esm_folder: Path) -> None:
    half, stock = Esm2(esm_folder, "bfloat16"), load_transformers(esm_folder, dtype=torch.bfloat16)
    mix = [drawn_sequence(length, seed=length, masks=True) for length in (40, 7, 90)]
    queries = [replace(everything(one), contacts=True) for one in mix]
    for sequence, answer in zip(mix, half.run(queries), strict=True):
        assert answer.contacts is not None and np.isfinite(answer.contacts).all()
        assert distance(answer, expected(stock, sequence)) < 0.05
        # Not of float32: these numbers have 8 bits.
        assert np.array_equal(answer.embeddings[-1, "bos"].view(np.uint32) & 0xFFFF, np.zeros(32))


def test_queries_and_answers_cross_processes(esm: Esm2) -> None:
    query = replace(everything(drawn_sequence(9)), contacts=True)
    assert pickle.loads(pickle.dumps(query)) == query and hash(query)
    (answer,) = esm.run([query])
    copy: Answer = pickle.loads(pickle.dumps(answer))
    assert distance(copy, answer) == 0
    assert len(pickle.dumps(answer)) < 4 * (4 * (9 + 3) * 32 + 9 * 9 + 9 * 33) + 3000


@pytest.mark.parametrize("layer", [4, -5])
def test_a_layer_that_the_model_has_not(esm: Esm2, layer: int) -> None:
    with pytest.raises(PermanentError, match="states 0 .* to 3, or -4 to -1") as caught:
        esm.run([Query(drawn_sequence(3).tokens, (layer,), ("mean",))])
    assert caught.value.code == "layer_out_of_range"


@pytest.mark.parametrize(
    "asked", [{"tokens": b"\0\2"}, {"kept": range(0)}, {"kept": range(1, 4)}, {"logits_at": (3,)}, {"logits_at": (-1,)}]
)
def test_a_query_outside_of_its_residues(asked: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="residue"):
        Query(**{"tokens": ProteinSequence("MKT").tokens, **asked})
