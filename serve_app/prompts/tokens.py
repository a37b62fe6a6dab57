"""Counts a prompt's tokens in the ingress, so that one that is too long is refused before it becomes a job.

Uses the `tokenizers` package alone: the ingress holds no torch and no transformers.
"""

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from serve_app.errors import InvalidRequestError

CountTokens = Callable[[str], int]


def load_token_counter(source: str) -> CountTokens | None:
    """A function that counts as transformers does with `add_special_tokens`: the closing ``</s>`` included.

    Args:
        source: the model's folder. None is returned for anything else, and for a folder without
            ``tokenizer/tokenizer.json``: the encoder then checks the length itself and fails the job.
    """
    file = Path(source) / "tokenizer" / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return lambda text: len(tokenizer.encode(text, add_special_tokens=True).ids)


def check_tokens(param: str, text: str, count: CountTokens | None, maximum: int) -> None:
    """Raises InvalidRequestError on `param` if the text encoder would have to cut the text."""
    if count is None:
        return
    tokens = count(text)
    if tokens > maximum:
        raise InvalidRequestError(
            f"Invalid '{param}': it has {tokens} tokens with the closing one, the text encoder takes "
            f"{maximum}; shorten it.",
            param,
            "prompt_too_long",
        )
