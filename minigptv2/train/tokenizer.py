"""Trains the bundled model's SentencePiece tokenizer: byte fallback, single digits, box punctuation as pieces."""

import io
from collections.abc import Iterable

from minigptv2.boxes import BOX_TOKENS, DELIMITER, PHRASE_CLOSE, PHRASE_OPEN


def train_tokenizer(texts: Iterable[str], vocabulary: int = 1024) -> bytes:
    """The bytes of a `tokenizer.model`: BPE with at most `vocabulary` pieces, 256 of them bytes.

    texts: the training text. The braces of a box, the phrase tags and the delimiter are one piece each. Encoding text
    never gives a control token.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocabulary,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=1.0,
        user_defined_symbols=[*BOX_TOKENS, PHRASE_OPEN, PHRASE_CLOSE, DELIMITER],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    return model.getvalue()
