"""Token ids against the published system's: its strings, tokenized as its tokenizer did.

That one (LLaMA's, "legacy") makes `<s>` and `</s>` control tokens and tokenizes what lies between by itself, and every
such part begins with SentencePiece's space. So does every part around an image, which was tokenized apart.
"""

import io
import re
from itertools import groupby
from pathlib import Path

import pytest
import sentencepiece

from minigptv2.encode import IGNORE_INDEX, IMAGE_TOKEN_ID, EncodedRow, PromptEncoder
from minigptv2.sample import QuestionAnswer, Sample
from minigptv2.tasks import render
from minigptv2.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[1] / "golden/prompt_ids.txt"  # UPDATE: python -m tests.parity.test_prompt_ids
PROMPTS = ("llama2", "minigptv2-train", "minigptv2-eval")
PLACES, IMAGE, CONTROL = 3, "<image>", {"<s>": 1, "</s>": 2}
TALKS: dict[str, tuple[bool, list[tuple[str, str]]]] = {  # with an image or not; questions and answers, "": none yet
    "a question": (True, [("[refer] give me the location of the red balloon", "")]),
    "an answer": (True, [("[vqa] how many cats are there?", "two")]),
    "a second question": (True, [("what is this?", "A red balloon."), ("[refer] the balloon", "")]),
    "three answers": (True, [("what is this?", "A red balloon."), ("[refer] it", "{<1><2><45><100>}"), ("é\n猫", "?")]),
    "no image": (False, [("hello", "")]),
    "no image, three questions": (False, [("hello", "Hello!"), ("who are you?", "A model."), ("why?", "")]),
}


def published_strings(prompt: str, imaged: bool, talk: list[tuple[str, str]]) -> list[str]:
    """What the published code gave to its tokenizer, string by string; the first gets a BOS before it."""
    head = f"<Img>{IMAGE}</Img> " if imaged else ""
    talk = [(head * (not number) + question, answer) for number, (question, answer) in enumerate(talk)]
    *history, (question, answer) = talk
    last = [f"{answer}</s>"] if answer else []
    if prompt == "minigptv2-eval":  # its chat: one string, in which an answer is followed by the next question's <s>
        told = "".join(f"<s>[INST] {q} [/INST]{a}" for q, a in history)
        return [f"{told}<s>[INST] {question} [/INST]", *last]
    space = "  " if prompt == "minigptv2-train" else " "
    strings = []
    for number, (q, _) in enumerate(talk):
        strings.append("<s>" * (number > 0) + f"[INST] {q}{space}[/INST]")
        strings += [f"{a}</s>" for _, a in history[number : number + 1]]
    return [*strings, *last]


def published_ids(strings: list[str], pieces: sentencepiece.SentencePieceProcessor) -> list[int]:
    ids = [CONTROL["<s>"]]
    for part in (part for text in strings for part in re.split(rf"(</?s>|{IMAGE})", text) if part):
        ids += (
            [IMAGE_TOKEN_ID] * PLACES if part == IMAGE else [CONTROL[part]] if part in CONTROL else pieces.encode(part)
        )
    return ids


def llama_like() -> bytes:
    """A SentencePiece model with the settings of LLaMA's, learned from these talks."""
    text = [words for _, talk in TALKS.values() for exchange in talk for words in exchange if words.isascii()] * 3
    text += ["[INST] <Img> </Img>  [/INST] [vqa] [refer] {<10><20><30><40>}  the  a  red blue cat balloon is it?"] * 5
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_writer=made,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        normalization_rule_name="identity",
        character_coverage=0.98,
        num_threads=1,
        minloglevel=2,
    )
    return made.getvalue()


MODEL = llama_like()


def _row(prompt: str, name: str) -> EncodedRow:
    imaged, talk = TALKS[name]
    exchanges = tuple(QuestionAnswer("chat", question=q, answer=a, verbatim=True) for q, a in talk)
    turns = render(Sample("x.png" if imaged else None, (100, 100), exchanges))
    return PromptEncoder(Tokenizer(MODEL), prompt, PLACES, 512).encode(turns)


def _shown(row: EncodedRow) -> str:
    """Every token as id:piece, the image's as one; what the loss is taken over stands between guillemets."""
    pieces, out = Tokenizer(MODEL), []
    for supervised, run in groupby(zip(row.ids, row.labels), key=lambda token: token[1] != IGNORE_INDEX):
        ids = [i for i, _ in run]
        words = [f"{i}:{pieces.piece(i)}" for i in ids if i != IMAGE_TOKEN_ID]
        if IMAGE_TOKEN_ID in ids:
            words.insert(ids.index(IMAGE_TOKEN_ID), f"(image x {ids.count(IMAGE_TOKEN_ID)})")
        out.append(f"«{' '.join(words)}»" if supervised else " ".join(words))
    return " ".join(out)


def _snapshot() -> str:
    return "".join(f"{prompt}: {name}\n  {_shown(_row(prompt, name))}\n" for name in TALKS for prompt in PROMPTS)


def test_ids_are_those_of_the_snapshot():
    assert _snapshot() == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_ids_are_the_published_ones(prompt, name):
    pieces = sentencepiece.SentencePieceProcessor(model_proto=MODEL)
    expected = published_ids(published_strings(prompt, *TALKS[name]), pieces)
    assert _row(prompt, name).ids == expected


@pytest.mark.parametrize("name", TALKS)
def test_the_loss_is_taken_over_answers_and_their_ends(name):
    answers = [answer for _, answer in TALKS[name][1] if answer]
    for prompt in PROMPTS:
        labels = [label for label in _row(prompt, name).labels if label != IGNORE_INDEX]
        learned = answers if prompt != "minigptv2-eval" else [TALKS[name][1][-1][1]] * bool(TALKS[name][1][-1][1])
        ends = [i for i, label in enumerate(labels) if label == CONTROL["</s>"]]
        assert len(ends) == len(learned)
        parts = [labels[a:b] for a, b in zip([0, *(e + 1 for e in ends)], ends)]
        assert [Tokenizer(MODEL).decode(part) for part in parts] == learned


def test_the_three_prompts_differ():
    for name in TALKS:
        assert len({tuple(_row(prompt, name).ids) for prompt in PROMPTS}) == 3
    assert _row("minigptv2-eval", "a question").ids[:3] != _row("minigptv2-train", "a question").ids[:3]


def test_llama_of_transformers_gives_the_same_ids(tmp_path):
    """On every string of every talk, whole: splitting at control tokens, spaces and bytes are its own."""
    pytest.importorskip("google.protobuf")  # which transformers reads a SentencePiece model with
    from transformers import LlamaTokenizer

    (tmp_path / "tokenizer.model").write_bytes(MODEL)
    theirs = LlamaTokenizer.from_pretrained(tmp_path, legacy=True)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=MODEL)
    for prompt in PROMPTS:
        for talk in TALKS.values():
            for part in (part for text in published_strings(prompt, *talk) for part in text.split(IMAGE)):
                assert theirs(part, add_special_tokens=False).input_ids == published_ids([part], pieces)[1:]


if __name__ == "__main__":
    GOLDEN.write_text(_snapshot(), encoding="utf-8")
