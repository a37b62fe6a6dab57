"""What a sequence may be: each line of the written rule, and ESM2's own tokenizer as the judge of tokens."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import EsmTokenizer

from deployments.errors import PermanentError
from deployments.proteins.alphabet import (
    AMINO_ACID_TOKENS,
    AMINO_ACIDS,
    CLS,
    EOS,
    LETTERS,
    MASK,
    MAX_RESIDUES,
    VOCABULARY,
    ProteinSequence,
    SequenceError,
    read_sequence,
)
from tests.support.proteins.sequences import sequences


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("MKTAYIAK", "MKTAYIAK"),
        ("mktayiak", "MKTAYIAK"),
        (" MKT\r\nAYI\tAK\n", "MKTAYIAK"),
        ("MKT*", "MKT"),
        ("MKT*\n", "MKT"),
        ("XBZUO", "XBZUO"),
        ("MK<mask>T", "MK#T"),
        ("<MASK><mask>", "##"),
    ],
)
def test_what_is_read(text: str, read: str) -> None:
    assert read_sequence(text) == ProteinSequence(read)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("", "sequence_empty", "no residues"),
        (" \n", "sequence_empty", "no residues"),
        ("*", "sequence_empty", "no residues"),
        ("MK1", "sequence_invalid", "position 3 is '1'"),
        ("MK T#", "sequence_invalid", "position 4 is '#'"),
        ("M<mask>ß", "sequence_invalid", "position 3 is 'ß'"),
        ("M<ma\u017fk>", "sequence_invalid", "position 2 is '<'"),
        ("M?K", "sequence_invalid", "position 2 is '?'"),
        (">sp|P1\nMKT", "sequence_invalid", "without its FASTA header"),
        ("MK-T", "sequence_invalid", "position 3 is '-', a gap"),
        ("MK.T-", "sequence_invalid", "position 3 is '.', a gap"),
        ("MK*T", "sequence_invalid", "position 3 is *, a stop"),
        ("MKT**", "sequence_invalid", "position 4 is *, a stop"),
        ("A" * (MAX_RESIDUES + 1), "sequence_too_long", "1023 residues and the model reads 1022"),
    ],
)
def test_what_is_refused(text: str, code: str, says: str) -> None:
    with pytest.raises(SequenceError) as caught:
        read_sequence(text)
    assert caught.value.code == code
    assert says in str(caught.value)


def test_gaps_are_removed_where_it_is_asked_and_told() -> None:
    read = read_sequence("M-K..T*-", remove_gaps=True)
    assert read.residues == "MKT"
    assert read.notes == ("4 gaps were removed: positions are counted without them",)
    with pytest.raises(SequenceError, match="no residues"):
        read_sequence("-.-", remove_gaps=True)


def test_j_is_read_as_x_and_told() -> None:
    assert read_sequence("AJ") == ProteinSequence(
        "AX", ("J (I or L) is no token of the model and was read as X at position 2",)
    )
    (note,) = read_sequence("j" * 12).notes
    assert note.endswith("at positions 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 others")


def test_the_longest_and_longer_where_windows_are_cut() -> None:
    assert len(read_sequence("A" * MAX_RESIDUES + "*")) == MAX_RESIDUES
    assert len(read_sequence("A" * 5000, max_residues=None)) == 5000


def test_an_error_is_a_value_error_that_crosses_processes() -> None:
    error = pickle.loads(pickle.dumps(SequenceError("sequence_empty", "no residues")))
    assert isinstance(error, ValueError) and isinstance(error, PermanentError)
    assert (error.code, error.message) == ("sequence_empty", "no residues")


def test_tokens_are_those_of_transformers_tokenizer(esm_folder: Path) -> None:
    tokenizer = EsmTokenizer.from_pretrained(esm_folder)
    text = LETTERS + "<mask>" + AMINO_ACIDS
    assert list(read_sequence(text).tokens) == tokenizer(text)["input_ids"]
    assert [tokenizer.convert_ids_to_tokens(i) for i in range(33)] == list(VOCABULARY)
    assert (tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.mask_token_id) == (CLS, EOS, MASK)
    assert tokenizer.convert_ids_to_tokens(list(AMINO_ACID_TOKENS)) == list(AMINO_ACIDS)


@given(sequences())
def test_a_sequence_is_read_as_it_is_written(sequence: ProteinSequence) -> None:
    assert read_sequence(sequence.text) == sequence
    assert read_sequence(sequence.text.lower() + "*") == sequence
    assert len(sequence.tokens) == len(sequence) + 2
    assert [sequence.tokens[i + 1] for i in sequence.masked] == [MASK] * sequence.text.count("<mask>")


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read = read_sequence(text, remove_gaps=True)
    except SequenceError:
        return
    assert max(read.tokens) <= MASK and len(read.tokens) == len(read) + 2 > 2
