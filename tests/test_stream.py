"""The data loader: the same samples for any number of ranks and workers; unusable records are replaced and counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minigptv2.config import CLIP_MEAN, CLIP_STD, VisionConfig
from minigptv2.data.dataset import ProblemCounter
from minigptv2.data.mixture import DataConfig, Mixture, SourceConfig
from minigptv2.encode import PromptEncoder
from minigptv2.errors import UserError
from minigptv2.images import load_square, normalize, open_image, resize_square
from minigptv2.sample import QuestionAnswer, Sample
from minigptv2.train.dataloader import ATTEMPTS, Failures, MicroBatch, open_dataloader

SIDE = 64  # of the images of these tests; 4 visual tokens stand for one
VISION = VisionConfig(image_size=SIDE, image_mean=CLIP_MEAN, image_std=CLIP_STD)


class Made:
    """Record i: "which number?", "number i", about an image with red = i; every tenth is unusable, as `bad` says."""

    def __init__(self, count: int, folder="", bad: str = "", name: str = "number", text: bool = False):
        self.count, self.folder, self.bad, self.name, self.text = count, folder, bad, name, text
        self.problems = ProblemCounter()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        talk = [QuestionAnswer("vqa", question="which number?", answer=f"{self.name} {index}")]
        image = None if self.text else Image.new("RGB", (9, 9), (index, 0, 0))
        if self.bad and index % 10 == 3:
            if self.bad == "missing":
                image = f"{self.folder}/nothing.jpg"
            elif self.bad == "long":
                talk = [replace(talk[0], question="which number? " * 200)]
            elif self.bad == "unanswered":
                talk = [replace(talk[0], answer="")]
            elif self.bad == "empty":
                talk = []
            elif self.bad == "row":
                raise UserError("the row is torn.", "", "")
        return Sample(image, (9, 9), tuple(talk), f"{self.name}-{index}")


@pytest.fixture(scope="module")
def encoder(tiny_model) -> PromptEncoder:
    return PromptEncoder(tiny_model.tokenizer, "llama2", 4, 256)


def opened(datasets, weights=None, seed=1, **data):
    weights = weights or [1] * len(datasets)
    config = DataConfig([SourceConfig(f"source{i}", w) for i, w in enumerate(weights)], **data)
    return config, (datasets, Mixture(datasets, weights, seed))


def stream(encoder, datasets, weights=None, batch=2, seed=1, data=None, **options):
    config, sources = opened(datasets, weights, seed, **(data or {}))
    return open_dataloader(
        config, encoder, "round", VISION, seed=seed, batch=batch, samples_per_step=batch, opened=sources, **options
    )


def answers_of(micro: MicroBatch, encoder: PromptEncoder) -> list[str]:
    """The answers of a padded micro-batch, row by row."""
    return [encoder.tokenizer.decode([t for t in row if t >= 0]).strip() for row in micro.batch.labels.tolist()]


def same(one: MicroBatch, other: MicroBatch) -> bool:
    if (one.samples, one.supervised, one.failures) != (other.samples, other.supervised, other.failures):
        return False
    pairs = [(a, b) for a, b in zip(list(vars(one.batch).values())[:6], list(vars(other.batch).values())[:6])]
    return all((a is None and b is None) or torch.equal(a, b) for a, b in pairs)


def take(micros, count: int) -> list[MicroBatch]:
    return [next(micros) for _ in range(count)]


# ---- ranks, workers and positions ----


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 40), st.integers(0, 5))
def test_samples_do_not_depend_on_the_number_of_ranks(encoder, world, batch, start, seed):
    datasets = [Made(13, text=True), Made(5, text=True, name="other")]
    micros = 2
    straight = [
        text
        for micro in take(
            stream(encoder, datasets, batch=1, seed=seed, start=start, pack=False), world * batch * micros
        )
        for text in answers_of(micro, encoder)
    ]
    ranks = [
        stream(encoder, datasets, batch=batch, seed=seed, start=start, rank=r, world=world, pack=False)
        for r in range(world)
    ]
    for number in range(micros):
        for rank, micro in enumerate(next(r) for r in ranks):
            first = number * batch * world + rank
            assert answers_of(micro, encoder) == straight[first : first + batch * world : world]
            assert micro.samples == batch


def test_samples_do_not_depend_on_the_number_of_workers(encoder, tmp_path):
    datasets = [Made(20, tmp_path, "missing"), Made(9, text=True, name="text")]
    global_state = torch.get_rng_state()
    found = [
        take(stream(encoder, datasets, workers=workers, batch=3, data={"max_failure_rate": 1.0}), 7)
        for workers in (0, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), global_state), "dropout must not depend on the workers"
    assert any(m.failures for m in found[0])
    for micros in found[1:]:
        assert all(same(a, b) for a, b in zip(found[0], micros, strict=True))


def test_start_resumes_an_uninterrupted_run(encoder):
    scenes = [_scenes()]
    straight = take(stream(encoder, scenes), 5)
    later = take(stream(encoder, scenes, start=6), 2)
    assert all(same(a, b) for a, b in zip(straight[3:], later, strict=True))
    assert not same(straight[0], straight[1])


def _scenes():
    from minigptv2.data.scenes.dataset import Scenes

    return Scenes(2, image_size=112, questions_per_scene=3, tasks={"vqa": 1, "refer": 1, "chat": 1})


def test_questions_about_a_scene_differ_between_epochs(encoder):
    asked = [answers_of(micro, encoder)[0] for micro in take(stream(encoder, [_scenes()], batch=1, pack=False), 8)]
    assert len(set(asked)) > 4


# ---- contents of a micro-batch ----


def test_batches_mix_images_and_text_and_images_match_their_rows(encoder):
    datasets, pixels, text = [Made(200), Made(50, text=True)], 0, 0
    for micro in take(stream(encoder, datasets, batch=4, pack=False), 8):
        numbers = [t for t, row in zip(answers_of(micro, encoder), micro.batch.ids.tolist()) if -1 in row]
        pixels, text = pixels + len(numbers), text + 4 - len(numbers)
        assert micro.batch.pixels.dtype == torch.uint8 and micro.batch.pixels.shape == (len(numbers), SIDE, SIDE, 3)
        assert [f"number {int(p[0, 0, 0])}" for p in micro.batch.pixels] == numbers
        on = micro.on("cpu")
        assert torch.equal(on.pixels, normalize(micro.batch.pixels, CLIP_MEAN, CLIP_STD)) and on.pixels.shape[1] == 3
    assert pixels > 5 and text > 5
    (micro,) = take(stream(encoder, [Made(5, text=True)]), 1)
    assert micro.batch.pixels is None and micro.on("cpu").pixels is None


@pytest.mark.parametrize("packed", [True, False])
def test_micro_batch_holds_all_tokens_packed_or_padded(encoder, packed):
    (micro,) = take(stream(encoder, [Made(50)], batch=3, pack=packed), 1)
    rows = [next(stream(encoder, [Made(50)], batch=1, start=p, pack=False)).batch for p in range(3)]
    assert (micro.batch.layout is not None) == packed and micro.batch.ids.shape[0] == (1 if packed else 3)
    kept = micro.batch.ids[micro.batch.blocks >= 0]
    assert sorted(kept.tolist()) == sorted(t for row in rows for t in row.ids[0].tolist())
    assert micro.supervised == sum(int((row.labels >= 0).sum()) for row in rows)


def test_packed_and_padded_losses_are_equal(tiny_model):
    """Of generated scenes and text, with the vision tower."""
    network = tiny_model.network
    encoder = PromptEncoder(tiny_model.tokenizer, "llama2", network.image_tokens, 512)
    losses = []
    for packed in (True, False):
        config, sources = opened([_scenes(), Made(4, text=True)])
        micro = next(
            open_dataloader(
                config,
                encoder,
                "round",
                network.config.vision,
                seed=1,
                batch=4,
                samples_per_step=4,
                pack=packed,
                opened=sources,
            )
        )
        losses.append(network(micro.on("cpu")).answer)
    assert micro.batch.pixels is not None
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)


# ---- records that cannot be used ----


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("missing", "does not exist"),
        ("long", "too long"),
        ("unanswered", "no answer"),
        ("empty", "no answer"),
        ("row", "torn"),
    ],
)
def test_unusable_records_are_replaced_and_reported(encoder, tmp_path, bad, reason):
    made = Made(20, tmp_path, bad)
    micros = take(stream(encoder, [made], batch=4, pack=False, data={"max_failure_rate": 1.0}), 10)
    failures = [f for m in micros for f in m.failures]
    assert 2 <= len(failures) <= 16 and all(reason in f and f.startswith("source0 ") for f in failures)
    assert {f.split(":")[0] for f in failures} <= {f"source0 {'' if bad == 'row' else 'number-'}{i}" for i in (3, 13)}
    answers = [t for m in micros for t in answers_of(m, encoder)]
    assert len(answers) == 40 and not {"number 3", "number 13"} & set(answers)
    clean = [t for m in take(stream(encoder, [Made(20)], batch=4, pack=False), 10) for t in answers_of(m, encoder)]
    changed = [(a, b) for a, b in zip(answers, clean) if a != b]
    assert {b for _, b in changed} == {"number 3", "number 13"}, "only the bad ones are replaced"


def test_too_many_failures_stop_the_run_with_examples(encoder, tmp_path):
    data = {"max_failure_rate": 0.05, "min_samples_before_check": 30}
    for workers in (0, 2):
        micros = stream(encoder, [Made(20, tmp_path, "missing")], data=data, workers=workers)
        with pytest.raises(UserError, match=r"nothing\.jpg does not exist") as caught:
            take(micros, 400)
        assert "5.0%" in caught.value.allowed
    take(stream(encoder, [Made(20)], data=data), 40)


def test_failure_rate_is_checked_after_enough_samples():
    failures = Failures(0.25, 10)
    failures.add(9, ["a", "b", "c", "d"])
    with pytest.raises(UserError, match="4 of 14 records could not be used: a; b; c; ..."):
        failures.add(1, [])
    Failures(0.25, 10).add(30, ["a"] * 10)  # exactly the limit


def test_source_without_a_usable_record_raises_from_workers(encoder, tmp_path):
    class Torn(Made):
        def __getitem__(self, index: int):
            raise UserError(f"row {index} is torn.", "", "")

    for workers in (0, 1):
        with pytest.raises(UserError, match=f"{ATTEMPTS} records in a row") as caught:
            next(stream(encoder, [Torn(4)], workers=workers))
        assert "torn" in caught.value.given
        assert "source0" in caught.value.allowed


# ---- fast decoding ----


def _jpeg(file, width, height, **more):
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [127 + 90 * np.sin(x / a + y / b) for a, b in ((90, 50), (40, -70), (150, 33))]
    Image.fromarray(np.stack(waves, -1).astype(np.uint8)).save(file, "JPEG", quality=90, **more)
    return file


@pytest.mark.parametrize(("width", "height", "opened_at"), [(1600, 900, (800, 450)), (2000, 4000, (500, 1000))])
def test_fast_decode_of_a_large_jpeg_is_close_to_exact(tmp_path, width, height, opened_at):
    file = _jpeg(tmp_path / "a.jpg", width, height)
    assert open_image(file, 448).size == opened_at and open_image(file).size == (width, height)
    exact, fast = load_square(file, 448).astype(int), load_square(file, 448, fast=True).astype(int)
    assert exact.shape == (448, 448, 3) and 0 < np.abs(exact - fast).mean() < 1
    assert np.array_equal(exact, np.asarray(resize_square(open_image(file), 448)))


@pytest.mark.slow
def test_fast_decode_of_small_turned_and_other_files(tmp_path):
    small, png = _jpeg(tmp_path / "a.jpg", 800, 1200), tmp_path / "a.png"
    Image.open(small).resize((1800, 1800)).save(png)
    for file in (small, png):
        assert open_image(file, 448).tobytes() == open_image(file).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = _jpeg(tmp_path / "t.jpg", 1800, 1000, exif=exif)
    assert open_image(turned).size == (1000, 1800) and open_image(turned, 448).size == (500, 900)


def test_fast_decode_of_a_damaged_jpeg_raises_user_error(tmp_path):
    file = _jpeg(tmp_path / "a.jpg", 1600, 1200)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match="cut short"):
        open_image(file, 448)


def test_lazy_image_is_opened():
    class Lazy:
        key = "lazy"

        def open(self):
            return np.full((3, 5, 3), 7, np.uint8)

    assert open_image(Lazy()).size == (5, 3)
    with pytest.raises(UserError, match="builtins.type"):
        open_image(Lazy)


def test_packing_keeps_the_order_of_the_images(encoder):
    packed, padded = (next(stream(encoder, [Made(200)], batch=5, pack=pack)) for pack in (True, False))
    assert torch.equal(packed.batch.pixels, padded.batch.pixels)
