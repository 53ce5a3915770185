"""Text <-> token ids: a SentencePiece model, or a tokenizer of transformers. Both have the same methods.

No text becomes a control token; `control_id` alone gives the id of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minigptv2.errors import UserError


class Tokenizer:
    """A SentencePiece model.

    size: number of tokens. bos, eos: ids of the control tokens that begin and end a text.
    """

    def __init__(self, model: bytes):
        """model: the bytes of a `tokenizer.model`. Raises ValueError or RuntimeError for other bytes."""
        import sentencepiece

        if not model:  # sentencepiece would open it, and log an error at every call
            raise ValueError("it is empty")
        self.model = model
        self._pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.bos, self.eos = self._pieces.bos_id(), self._pieces.eos_id()
        self.size = self._pieces.get_piece_size()
        if min(self.bos, self.eos) < 0:  # -1 means that there is none; it is also IMAGE_TOKEN_ID
            raise ValueError("it has no token for the beginning or the end of a text")

    @classmethod
    def load(cls, file: Path) -> Tokenizer:
        """Read a SentencePiece file. Raises OSError if it cannot be read, ValueError if it is not a usable model."""
        return cls(file.read_bytes())

    def save(self, file: Path) -> None:
        """Write the SentencePiece file."""
        file.write_bytes(self.model)

    def encode(self, text: str) -> list[int]:
        """A control token's name in the text is encoded as these characters."""
        return self._pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens, without bos and eos."""
        return self._pieces.decode([i for i in ids if i not in (self.bos, self.eos)])

    def control_id(self, name: str) -> int:
        """The id of "bos", "eos" or a control token by its name. Raises UserError where the model has none."""
        if name in ("bos", "eos"):
            return getattr(self, name)
        index = self._pieces.piece_to_id(name)
        if not self._pieces.is_control(index):
            raise no_control_token(name)
        return index

    def piece(self, index: int) -> str:
        """The token of this id as the vocabulary spells it."""
        return self._pieces.id_to_piece(index)

    def words(self, index: int) -> str:
        """The text of one token, with a space where it begins a word; of a control token or a byte, its name."""
        return self.piece(index).replace("▁", " ")


class HFTokenizer:
    """A tokenizer of transformers, for language models without a SentencePiece file such as Qwen's.

    bos: where the family has none, its padding token, or else its eos.
    """

    def __init__(self, folder: str | Path):
        """folder: with the tokenizer's files, or a hub's name. Raises ValueError or OSError where there is none."""
        from transformers import AutoTokenizer

        self._own = AutoTokenizer.from_pretrained(folder)
        ids = self._own.bos_token_id, self._own.pad_token_id, self._own.eos_token_id
        if self._own.eos_token_id is None:
            raise ValueError("it has no token for the end of a text")
        self.bos = next(i for i in ids if i is not None)
        self.eos, self.size = self._own.eos_token_id, len(self._own)
        special = [i for i, token in self._own.added_tokens_decoder.items() if token.special]
        self._control_ids = {self.bos, self.eos, *special}

    def save(self, file: Path) -> None:
        """file: a folder; several files are written to it."""
        self._own.save_pretrained(file)

    def encode(self, text: str) -> list[int]:
        """A control token's name in the text is encoded as these characters."""
        return self._own.encode(text, add_special_tokens=False, split_special_tokens=True)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the tokens; control tokens have none."""
        text_ids = [i for i in ids if i not in self._control_ids]
        return self._own.decode(text_ids, clean_up_tokenization_spaces=False).strip(" ")

    def control_id(self, name: str) -> int:
        """The id of "bos", "eos" or a control token by its name. Raises UserError where the tokenizer has none."""
        if name in ("bos", "eos"):
            return getattr(self, name)
        index = self._own.convert_tokens_to_ids(name)
        if index not in self._control_ids or index in self.encode(name):  # a user's text could else become it
            raise no_control_token(name)
        return index

    def piece(self, index: int) -> str:
        """The token of this id as the vocabulary spells it; "" if the id has none."""
        return self._own.convert_ids_to_tokens(index) or ""

    def words(self, index: int) -> str:
        """The text of one token, with a space where it begins a word."""
        return self._own.convert_tokens_to_string([self.piece(index)])


def no_control_token(name: str) -> UserError:
    """The error of a prompt template that does not fit the tokenizer."""
    return UserError(
        f"The tokenizer has no control token {name}.",
        "The prompt template needs it; chatml is for models such as Qwen2 and SmolLM2.",
        "Set model.prompt to llama2, or take a language model whose tokenizer has the token.",
    )
