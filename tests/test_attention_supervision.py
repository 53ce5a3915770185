"""Supervised attention: the targets of each token, and the loss of the model."""

import random

import pytest
import torch

from minigptv2.boxes import Box
from minigptv2.data.scenes.dataset import Scenes
from minigptv2.encode import IMAGE_TOKEN_ID, PromptEncoder
from minigptv2.model import attention
from minigptv2.model.attention import MIN_MASS, supervised
from minigptv2.packing import REPEAT_WEIGHT, pack
from minigptv2.sample import ImagePiece, Phrase, QuestionAnswer, Sample, Turn
from minigptv2.tasks import render
from minigptv2.train.attention_supervision import Targets

BALL, CAT = Box(10, 10, 40, 20), Box(80, 60, 100, 100)  # on 100 x 100 pixels
NAMED = (Phrase("red ball", (BALL,)), Phrase("ball", (BALL,)), Phrase("cat", (CAT,)), Phrase("cats", (CAT,)))
# 4 x 4 patches, two neighbours are a token: the ball covers the centres of row 12.5 and columns 12.5, 37.5
BALL_TOKENS, CAT_TOKENS = (0,), (5, 7)


class PiecesOfWords:
    """One token for each word, digit or punctuation of a box."""

    def __init__(self):
        self.pieces = ["<s>", "</s>"]

    def encode(self, text: str) -> list[int]:
        import re

        found = re.findall(r" ?<p>|</p>|\{<|><|>\}|\d| ?[^\W\d]+| ?[^\w\s<>{}]|\s|[<>{}]", text)
        assert "".join(found) == text
        self.pieces += [p for p in dict.fromkeys(found) if p not in self.pieces]
        return [self.pieces.index(p) for p in found]

    def control_id(self, name: str) -> int:
        return {"bos": 0, "eos": 1}[name]

    def words(self, index: int) -> str:
        return self.pieces[index]


def marked_tokens(qa: QuestionAnswer) -> list[tuple[str, tuple[int, ...]]]:
    """The tokens with a target, and their target."""
    tokenizer = PiecesOfWords()
    row = PromptEncoder(tokenizer, "llama2", 8, 512).encode_independent_answers(render(Sample("x", (100, 100), (qa,))))
    Targets(tokenizer.words, 16, 2).mark(row, NAMED, (100, 100))
    return [(tokenizer.words(i).strip(), target) for i, target in zip(row.ids, row.target_tokens) if target]


def test_names_in_a_question_attend_to_their_objects():
    asked = QuestionAnswer("vqa", question="is the red ball left of the cat?", answer="yes")
    assert marked_tokens(asked) == [("ball", BALL_TOKENS), ("cat", CAT_TOKENS)]
    assert marked_tokens(QuestionAnswer("vqa", question="how many cats and balloons?", answer="one")) == [
        ("cats", CAT_TOKENS)
    ]


def test_box_tokens_attend_to_their_box():
    found = marked_tokens(QuestionAnswer("refer", (Phrase("cat", (CAT,)),)))
    assert found[0] == ("cat", CAT_TOKENS)
    assert [words for words, _ in found[1:]] == "{< 8 0 >< 6 0 >< 1 0 0 >< 1 0 0".split()
    assert all(target == CAT_TOKENS for _, target in found)
    assert marked_tokens(QuestionAnswer("refer", (Phrase("green moon"),))) == []


def test_phrase_tokens_attend_to_their_box():
    found = marked_tokens(
        QuestionAnswer("grounding", (Phrase("a red ball", (BALL,)), Phrase("a cat", (CAT,))), answer="{} and {}.")
    )
    assert [words for words, target in found if target == BALL_TOKENS][:3] == ["<p>", "a", "red"]
    assert [words for words, target in found if target == CAT_TOKENS][:2] == ["<p>", "a"]
    assert "</p>" not in [words for words, _ in found]


def test_each_box_of_a_phrase_has_its_own_target():
    found = marked_tokens(QuestionAnswer("detection", (Phrase("thing", (BALL, CAT)),)))
    assert [target for words, target in found if words == "{<"] == [BALL_TOKENS, CAT_TOKENS]
    assert [target for words, target in found if words == "<p>"] == [BALL_TOKENS]


def test_answer_tokens_attend_to_box_in_question():
    found = marked_tokens(QuestionAnswer("identify", (Phrase("black cat", (CAT,)),)))
    assert [words for words, _ in found] == [">}", "]", "black", "cat"]  # `]` ends [/INST]; cat leads to the end
    assert all(target == CAT_TOKENS for _, target in found)


def test_box_smaller_than_a_patch_has_a_visual_token():
    assert Targets(str, 16, 2).visual_tokens(Box(0.99, 0.99, 1, 1)) == {7}
    assert Targets(str, 16, 2).visual_tokens(Box(0, 0, 1, 1)) == set(range(8))


@pytest.mark.parametrize("images", [0, 2])
def test_rows_without_exactly_one_image_stay_unmarked(images):
    tokenizer = PiecesOfWords()
    turns = [Turn("user", (*[ImagePiece("x")] * images, "is there a cat?")), Turn("assistant", ("yes",))]
    row = PromptEncoder(tokenizer, "llama2", 8, 512).encode(turns)
    Targets(tokenizer.words, 16, 2).mark(row, NAMED, (100, 100))
    assert not any(row.target_tokens)


@pytest.fixture
def marked(tiny_model):
    """Rows of generated scenes, independent questions and conversations, and random features of their images."""
    network = tiny_model.network
    encoder = PromptEncoder(tiny_model.tokenizer, "llama2", network.image_tokens, 1024)
    targets = Targets(tiny_model.tokenizer.words, network.vision.patches, network.config.patches_per_token)
    scenes, rows, rng = Scenes(count=4, dialogue_fraction=0.5), [], random.Random(3)
    for index in range(4):
        sample = scenes.sample(index, rng)
        turns = render(sample, rng=rng)
        rows.append(encoder.encode_independent_answers(turns) if sample.side_by_side else encoder.encode(turns))
        targets.mark(rows[-1], sample.entities, sample.size)
    torch.manual_seed(0)
    return network, rows, torch.randn(4, network.vision.patches, network.vision.width)


def _supervised(network, rows, features, guidance=0.0) -> attention.Supervision:
    supervision = attention.Supervision(guidance)
    network.token_losses(pack(rows), network.encode_images(None, features), supervision)
    return supervision


def _attention_losses(network, rows, features) -> torch.Tensor:
    return torch.cat([m.flatten() for m, _ in _supervised(network, rows, features).losses])


@pytest.mark.slow
def test_loss_is_minus_log_mass_on_target(marked):
    """The attention mass on a token's target and that on all other visual tokens add up to the mass on the image."""
    network, rows, features = marked
    everything = set(range(network.image_tokens))
    assert {i for row in rows for target in row.target_tokens for i in target} <= everything
    kept = [list(row.target_tokens) for row in rows]
    found = [_attention_losses(network, rows, features)]
    for change in (lambda target: tuple(everything - set(target)), lambda target: tuple(everything)):
        for row, target in zip(rows, kept):
            row.target_tokens = [change(one) if one else () for one in target]
        found.append(_attention_losses(network, rows, features))
    on_target, elsewhere, on_image = ((-m).exp() - MIN_MASS for m in found)
    layers = len(network.decoder.model.layers)
    assert len(on_target) == sum(bool(one) for target in kept for one in target) * sum(
        network.config.language.num_attention_heads * supervised(i, layers) for i in range(layers)
    )
    torch.testing.assert_close(on_target + elsewhere, on_image, atol=1e-5, rtol=1e-4)
    assert on_image.min() < 0.5 < on_image.max(), "otherwise the test distinguishes nothing"


def test_packed_attention_works_under_autocast(marked):
    """The mask must have the dtype of the scores: 16 bits there, also where queries have 32."""
    network, rows, features = marked
    plain = (-_attention_losses(network, rows, features)).exp()  # weights
    with torch.autocast("cpu", torch.bfloat16):
        assert ((-_attention_losses(network, rows, features)).exp() - plain).abs().mean() < 0.01


def test_attention_loss_is_weighted_mean_over_tokens(marked):
    network, rows, features = marked
    batch = pack(rows)
    batch.features = features
    missed = _supervised(network, rows, features).losses
    total, weight = sum((m.mean(1) * w).sum().item() for m, w in missed), sum(w.sum().item() for _, w in missed)
    mean, parts = network(batch), network(batch, tokens=100.0)
    answers = int((batch.labels[:, 1:] != -100).sum())
    assert mean.answer.item() * answers == pytest.approx(parts.answer.item() * 100, rel=1e-4)
    assert parts.attention.item() == pytest.approx(total / 100, rel=1e-4)
    assert parts.query_weight.item() == pytest.approx(weight / 100, rel=1e-4)


def test_gradient_checkpointing_gives_the_same_losses_and_gradients(marked):
    """Gradient checkpointing runs the supervised layers again in the backward pass; the batch stays as it was."""
    network, rows, features = marked
    found = []
    for checkpointing in (False, True):
        network.train()
        if checkpointing:
            network.decoder.gradient_checkpointing_enable({"use_reentrant": False})
        batch = pack(rows)
        batch.features = features
        before = {name: value for name, value in vars(batch.layout).items()}
        torch.manual_seed(0)  # of the adapter's dropout
        losses = network(batch)
        network.zero_grad()
        (losses.answer + losses.attention).backward()
        assert vars(batch.layout) == before
        found.append((*losses, *(p.grad.clone() for p in network.parameters() if p.grad is not None)))
        network.decoder.gradient_checkpointing_disable()
        network.eval()
        network.zero_grad(set_to_none=True)
    assert found[0][1] > 0 and len(found[0]) > 10
    for once, again in zip(*found, strict=True):
        torch.testing.assert_close(again, once, atol=1e-5, rtol=1e-4)


def test_repeated_target_has_lower_weight(marked):
    _, rows, _ = marked
    seen = set()
    for group in pack(rows).layout.groups:
        targets = dict(zip(group.query_index.tolist(), group.target_mask.tolist()))
        for i, count in zip(group.query_index.tolist(), group.query_weight.tolist()):
            assert count == (REPEAT_WEIGHT if targets.get(i - 1) == targets[i] else 1)
            seen.add(count)
    assert seen == {1, REPEAT_WEIGHT}


def test_packed_targets_are_image_tokens(marked):
    """The targets of a packed query are image tokens, whatever precedes the image."""
    _, rows, _ = marked
    batch = pack(rows)
    shared = batch.ids[0, : batch.layout.rows * batch.layout.shared].view(batch.layout.rows, -1)
    for group in batch.layout.groups:
        owners = group.owners[group.query_index // group.mask.shape[2]]
        assert (shared[owners][group.target_mask] == IMAGE_TOKEN_ID).all()


@pytest.mark.slow
def test_guidance_interpolates_attention_to_the_target(marked, monkeypatch):
    """The attention weights of each query in a supervised layer; the loss is that of the unguided weights."""
    network, rows, features = marked
    kept = {}

    def product(guided: float) -> torch.Tensor:
        monkeypatch.setattr(
            attention,
            "_supervise",
            lambda *given: kept.setdefault(guided, []).append((given[2], guide(*given))) or kept[guided][-1][1],
        )
        return torch.cat([m.flatten() for m, _ in _supervised(network, rows, features, guided).losses])

    guide = attention._supervise
    missed = [product(guided) for guided in (0.0, 0.5, 1.0)]
    first = len(kept[0.0]) // 2  # groups: the second supervised layer sees what the first has changed
    torch.testing.assert_close(*(m[: len(m) // 2] for m in (missed[0], missed[2])))
    for (group, free), (_, half), (_, full) in zip(*(kept[g][:first] for g in (0.0, 0.5, 1.0))):
        free, half, full = (w.transpose(1, 2).flatten(0, 1) for w in (free, half, full))
        torch.testing.assert_close(half, (free + full) / 2)
        for w in (free, half, full):
            torch.testing.assert_close(w.sum(-1), torch.ones(w.shape[:2]))
        places = torch.nn.functional.pad(group.target_mask, (0, full.shape[-1] - group.target_mask.shape[1]))
        assert not full[group.query_index].masked_select(~places[:, None]).any()
        others = torch.ones(len(free), dtype=torch.bool).index_fill(0, group.query_index, False)
        assert torch.equal(full[others], free[others])
