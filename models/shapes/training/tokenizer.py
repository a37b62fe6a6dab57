"""The tokenizer: the words of the grammar, and letters for all others."""

import string

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from models.shapes.scenes.prompt import words

MAX_TOKENS = 64
_SPACE = "\u2581"
_SPECIAL = ("<pad>", "</s>", "<unk>")
# Log probabilities: a word as a whole is always likelier than its letters.
_WORD = -2.0
_LETTER = -8.0
_GAP = -5.0


def new_tokenizer() -> PreTrainedTokenizerFast:
    """T5's kind, a unigram model that ends each prompt with </s>, but capitals and punctuation mean nothing to it.

    Transformers' `T5Tokenizer` would drop that normalisation when it is loaded, so it is the general class.
    """
    letters = [(letter, _LETTER) for letter in string.ascii_lowercase + string.digits]
    vocabulary = [*((token, 0.0) for token in _SPECIAL), (_SPACE, _GAP)]
    vocabulary += [(_SPACE + word, _WORD) for word in words()] + letters
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=_SPECIAL.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex("[^a-z0-9]+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )
