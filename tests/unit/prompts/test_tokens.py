import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serve_app.errors import InvalidRequestError
from serve_app.prompts.tokens import check_tokens, load_token_counter
from tests.support.examples import examples

SHAPES = "models/shapes"
WORDS = ["a", "blue", "circle", "moving", "triangle", "</s>", "<pad>", "<unk>", "zzz", "É", "円", "😀", "\n", "\t"]

count = load_token_counter(SHAPES)


@pytest.fixture(scope="module")
def transformers_tokenizer() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(f"{SHAPES}/tokenizer")


@settings(max_examples=examples(5))
@given(text=st.one_of(st.text(max_size=80), st.lists(st.sampled_from(WORDS), max_size=40).map(" ".join)))
def test_counts_as_transformers_does(transformers_tokenizer: Any, text: str) -> None:
    assert count is not None
    assert count(text) == len(transformers_tokenizer(text, add_special_tokens=True).input_ids)


def test_counts_past_the_length_the_tokenizer_pads_and_cuts_to() -> None:
    assert count is not None
    assert [count(""), count("red"), count("red " * 100)] == [1, 2, 101]


def test_a_tokenizer_that_cuts_counts_the_whole_text(tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    tokenizer = Tokenizer.from_file(f"{SHAPES}/tokenizer/tokenizer.json")
    tokenizer.enable_truncation(16)
    tokenizer.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    count_whole = load_token_counter(str(tmp_path))
    assert count_whole is not None
    assert count_whole("red " * 100) == 101


def test_a_source_without_a_tokenizer_file_has_no_counter(tmp_path: Path) -> None:
    assert load_token_counter(str(tmp_path)) is None
    assert load_token_counter("genmo/mochi-1-preview") is None


def test_the_longest_prompt_is_taken_and_one_token_more_is_not() -> None:
    check_tokens("prompt", "red " * 15, count, 16)
    with pytest.raises(InvalidRequestError, match="'prompt': it has 17 tokens .* takes 16") as caught:
        check_tokens("prompt", "red " * 16, count, 16)
    assert (caught.value.param, caught.value.code) == ("prompt", "prompt_too_long")


def test_without_a_counter_the_encoder_decides() -> None:
    check_tokens("prompt", "red " * 1000, None, 16)
