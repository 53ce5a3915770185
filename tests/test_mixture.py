"""The mixture: every record once per epoch, sources by weight, a function of the position alone; scenes as a source."""

import io
import json
import random
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from minigptv2.config import from_dict
from minigptv2.data import mixture as module
from minigptv2.data.dataset import ProblemCounter, open_dataset
from minigptv2.data.mixture import BLOCK, DataConfig, Mixture, SourceConfig, open_mixture, shuffled
from minigptv2.data.scenes.dataset import CACHE_SIZE, Scenes
from minigptv2.data.scenes.world import draw_scene
from minigptv2.errors import UserError
from minigptv2.images import open_image


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.binary(min_size=16, max_size=16))
def test_shuffle_is_a_permutation(size, key):
    assert sorted(shuffled(i, size, key) for i in range(size)) == list(range(size))


def test_large_shuffle_is_uniform_and_depends_on_its_key():
    size, keys = 20_000_000, (b"a" * 16, b"b" * 16)
    found = [[shuffled(i, size, key) for i in range(2000)] for key in keys]
    for indices in found:
        assert len(set(indices)) == 2000 and 0 <= min(indices) and max(indices) < size
        tenths = Counter(i * 10 // size for i in indices)
        assert all(140 < tenths[t] < 260 for t in range(10))  # 200 expected, standard deviation 13
        assert 0.4 < np.mean(np.diff(indices) > 0) < 0.6
    assert found[0] != found[1]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_small_shuffles_give_every_order(size):
    orders = {tuple(shuffled(i, size, bytes([n % 256, n // 256])) for i in range(size)) for n in range(2000)}
    assert len(orders) == {2: 2, 3: 6, 5: 120}[size]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 5)), min_size=1, max_size=4),
    st.integers(-(2**70), 2**70),
)
def test_each_source_gives_every_record_once_per_epoch(sources, seed):
    mixture = Mixture([range(size) for size, _ in sources], [weight for _, weight in sources], seed)
    drawn: dict[int, list[int]] = {}
    for position in range(600):
        source, index = mixture[position]
        drawn.setdefault(source, []).append(index)
    orders = set()
    for source, (size, _) in enumerate(sources):
        indices = drawn.get(source, [])
        epochs = [indices[i : i + size] for i in range(0, len(indices), size)]
        assert all(sorted(e) == list(range(size)) for e in epochs if len(e) == size)
        assert all(len(set(e)) == len(e) for e in epochs)
        if size > 12 and len(epochs) > 2:
            assert epochs[0] != epochs[1]
        orders.add(tuple(indices))
    assert len(mixture.counts(600)) == len(sources)
    assert mixture.counts(600).tolist() == [len(drawn.get(s, [])) for s in range(len(sources))]


def test_sources_are_drawn_by_weight():
    mixture = Mixture([range(9)] * 4, [3, 0, 1, 0], seed=1)
    counts = mixture.counts(4 * BLOCK + 17)
    assert counts.sum() == 4 * BLOCK + 17 and counts[1] == counts[3] == 0
    assert counts[0] / counts.sum() == pytest.approx(0.75, abs=0.005)


def test_random_access_equals_sequential_access(monkeypatch):
    """With blocks of 64: forwards, backwards and from a new mixture that starts at the position."""
    monkeypatch.setattr(module, "BLOCK", 64)
    made = [range(50), range(7), range(1000)], [1, 2, 3], 5, [(0, 700), (0, None), (300, None)]
    one = Mixture(*made)
    straight = [one[p] for p in range(1500)]
    assert [Mixture(*made)[p] for p in (1499, 700, 64, 63, 0)] == [straight[p] for p in (1499, 700, 64, 63, 0)]
    assert [one[p] for p in reversed(range(1500))] == straight[::-1]
    for position in (0, 1, 63, 64, 65, 699, 1500):
        counted = Counter(source for source, _ in straight[:position])
        assert Mixture(*made).counts(position).tolist() == [counted[s] for s in range(3)]
    assert [Mixture(*made[:2], 6, made[3])[p] for p in range(100)] != straight[:100]


def test_sources_are_drawn_within_their_spans():
    spans = [(0, 100), (100, BLOCK + 50), (BLOCK + 50, None), (0, None)]
    mixture = Mixture([range(20)] * 4, [1, 1, 1, 0.5], seed=2, spans=spans)
    for position in (*range(300), *range(BLOCK - 100, BLOCK + 200)):
        source, _ = mixture[position]
        first, to = spans[source]
        assert first <= position and (to is None or position < to)
    assert mixture.counts(100)[0] > 50 and mixture.counts(100)[1:3].tolist() == [0, 0]


class Records:
    """So many records; counts how often one is read."""

    def __init__(self, size: int):
        self.size, self.reads = size, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> None:
        self.reads += 1


def test_start_at_large_offset_is_fast(monkeypatch):
    """It reads no record, and computes the index of the one at this position alone."""
    computed = []
    monkeypatch.setattr(module, "shuffled", lambda *given: computed.append(given) or shuffled(*given))
    datasets = [Records(20_000_000), Records(300_000), Records(1000)]
    mixture = Mixture(datasets, [5, 3, 1], seed=3)
    source, index = mixture[8_000_000]
    assert 0 <= index < mixture.sizes[source]
    assert len(computed) == 1 and sum(d.reads for d in datasets) == 0


def test_replacement_comes_from_same_source():
    mixture = Mixture([range(1000), range(5)], [1, 1], seed=4)
    for position in range(20):
        source, _ = mixture[position]
        others = [mixture.replacement(position, attempt) for attempt in range(1, 6)]
        assert {s for s, _ in others} == {source} and others[0] == mixture.replacement(position, 1)
        assert all(0 <= i < mixture.sizes[source] for _, i in others)
        assert source == 1 or len({i for _, i in others}) > 1


@pytest.mark.parametrize(
    ("sizes", "weights", "spans", "words"),
    [
        ([5], [-1], None, "weight -1"),
        ([5], [float("nan")], None, "weight nan"),
        ([5], [0], None, "no source"),
        ([5, 0], [1, 1], None, "no records"),
        ([], [], None, "no source"),
        ([5], [1], [(10, None)], "sample 0"),
        ([5, 5], [1, 1], [(0, 10), (20, None)], "sample 10"),
    ],
)
def test_empty_sources_raise_user_error(sizes, weights, spans, words):
    with pytest.raises(UserError, match=words):
        Mixture([range(s) for s in sizes], weights, 1, spans)


def test_position_after_the_last_step_of_every_source_raises():
    mixture = Mixture([range(5)], [1], 1, [(0, 10)])
    assert len([mixture[p] for p in range(10)]) == 10
    with pytest.raises(UserError, match="sample 10"):
        mixture[10]


# ---- from a config ----


def test_steps_become_positions_and_equal_sources_share_a_dataset():
    options = {"count": 5, "tasks": {"refer": 1}}
    data = from_dict(
        DataConfig,
        {
            "sources": [
                {"name": "scenes", "options": options, "last_step": 1},
                {"name": "scenes", "options": options, "first_step": 2, "weight": "2e0"},
                {"name": "scenes", "options": {**options, "max_objects": 1}, "first_step": 2},
            ]
        },
    )
    datasets, mixture = open_mixture(data, seed=1, samples_per_step=6)
    assert datasets[0] is datasets[1] and datasets[1] is not datasets[2]
    assert {mixture[p][0] for p in range(12)} == {0}
    assert {mixture[p][0] for p in range(12, 60)} == {1, 2}


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        ([], "empty"),
        ([SourceConfig("scene")], "unknown"),
        ([SourceConfig("scenes", options={"cuont": 3})], "cuont"),
        ([SourceConfig("scenes", options={"count": 3}, first_step=5, last_step=4)], "first_step 5"),
        ([SourceConfig("scenes", options={"count": 3}, first_step=5)], "sample 0"),
        ([SourceConfig("scenes", options={"count": 0})], "count"),
    ],
)
def test_invalid_configs_raise_user_error(sources, words):
    with pytest.raises(UserError, match=words):
        open_mixture(DataConfig(sources), seed=1, samples_per_step=4)


# ---- scenes ----


def test_scenes_depend_on_their_number_and_questions_on_the_rng(tmp_path):
    scenes = Scenes(3, seed=7, start=4, questions_per_scene=5, max_objects=4, image_size=112)
    assert len(scenes) == 3
    for index in range(3):
        drawn = draw_scene((7, 4 + index), 112, 4)
        sample, again = scenes[index], scenes.sample(index, random.Random(1))
        assert sample == scenes[index] and sample.image.key == again.image.key == scenes.image(index).key
        assert (
            sample.question_answers != again.question_answers
            and sample.side_by_side
            and len(sample.question_answers) <= 5
        )
        assert sample.size == (112, 112)
        assert open_image(sample.image).tobytes() == open_image(scenes.image(index)).tobytes() == drawn.image.tobytes()
    with pytest.raises(IndexError):
        scenes[3]


def test_scenes_with_repeats_have_other_keys(tmp_path):
    plain, again = (Scenes(2, seed=7, image_size=112, repeat_prob=r, cache_dir=str(tmp_path)) for r in (0, 0.5))
    assert plain.image(0).key != again.image(0).key and len(list(tmp_path.iterdir())) == 2
    assert again.split.draw(1).objects == draw_scene((7, 1), 112, repeat_prob=0.5).objects


@pytest.mark.slow
def test_cached_objects_give_the_same_questions_without_drawing(tmp_path, monkeypatch):
    options = {"count": 70, "seed": 7, "start": 60, "image_size": 112}
    kept, plain = Scenes(**options, cache_dir=str(tmp_path)), Scenes(**options)
    expected = [plain.sample(i, random.Random(i)).question_answers for i in (0, 5, 69)]
    assert len(list(tmp_path.iterdir())) == 3  # scenes 60..129 lie in three files
    broken = sorted(tmp_path.iterdir())[1]
    broken.write_text(broken.read_text()[:-30])
    again = Scenes(**options, cache_dir=str(tmp_path))
    monkeypatch.setattr("minigptv2.data.scenes.dataset.draw_scene", None)
    for scenes in (kept, again):
        assert [scenes.sample(i, random.Random(i)).question_answers for i in (0, 5, 69)] == expected
        assert all(scenes[i].image.drawn is None for i in range(70))


def test_cached_objects_of_other_scenes_raise_user_error(tmp_path):
    Scenes(2, image_size=112, cache_dir=str(tmp_path))
    (file,) = tmp_path.iterdir()
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == CACHE_SIZE
    file.write_text("".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(UserError, match="drawn differently"):
        Scenes(2, image_size=112, cache_dir=str(tmp_path))


def test_dialogues_are_conversations():
    scenes = Scenes(12, dialogue_fraction=0.5, image_size=112)
    samples = [scenes[i] for i in range(12)]
    assert {s.side_by_side for s in samples} == {True, False}
    assert all(s.question_answers for s in samples)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tasks": {"reffer": 1}}, "task 'reffer' of scenes is unknown"),
        ({"tasks": {"refer": -1}}, "has weight -1"),
        ({"tasks": {"refer": 0}}, "No task of scenes has a weight"),
        ({"max_objects": 9}, "option max_objects of scenes is 9"),
        ({"dialogue_fraction": 2}, "option dialogue_fraction of scenes is 2"),
        ({"count": "3"}, "option count of 'scenes' is '3'"),
        ({"questions_per_scene": 0}, "option questions_per_scene of scenes is 0"),
        ({"image_size": 1.5}, "option image_size of 'scenes' is 1.5"),
    ],
)
def test_invalid_scene_options_raise_user_error(options, said):
    with pytest.raises(UserError, match=said):
        open_dataset("scenes", {"count": 3, **options})


def write_coco(folder: Path, images: int, on_disk: int, text_boxes: int = 0) -> dict:
    """Options of a COCO file of so many images with a box each: so many are there, so many boxes are no numbers."""
    folder.mkdir()
    for number in range(on_disk):
        Image.new("RGB", (64, 48)).save(folder / f"{number}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(images)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": list("1234") if i < text_boxes else [1, 2, 30, 40]}
            for i in range(images)
        ],
        "categories": [{"id": 1, "name": "ball"}, {"id": 2, "name": "cat"}],
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return {"file": str(folder / "boxes.json")}


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"images": 20, "on_disk": 5}, "15 of 20 records of the source 'coco_detection' cannot be used"),
        ({"images": 20, "on_disk": 20, "text_boxes": 19}, "19 of 20 annotations of the source 'coco_detection' cannot"),
    ],
)
def test_records_dropped_by_a_reader_count_towards_the_limit(tmp_path, options, problem):
    source = SourceConfig("coco_detection", 1.0, write_coco(tmp_path / "data", **options))
    with pytest.raises(UserError, match=problem) as caught:
        open_mixture(DataConfig([source]), 1, 1)
    assert "max_failure_rate" in caught.value.allowed
    assert open_mixture(DataConfig([source], max_failure_rate=1.0), 1, 1)


def test_few_dropped_records_are_within_the_limit(tmp_path):
    datasets, _ = open_mixture(
        DataConfig([SourceConfig("coco_detection", 1.0, write_coco(tmp_path / "data", 40, 39))]), 1, 1
    )
    assert list(datasets[0].problems.dropped_of_seen(len(datasets[0]))) == [("records", 1, 40)]


def test_notes_do_not_count_as_dropped():
    problems = ProblemCounter()
    problems.add("a box over the edge", "row 1", dropped=False)
    assert list(problems.dropped_of_seen(3)) == [] and problems.counts == {"a box over the edge": 1}
    problems.add("no image", "row 2")
    problems.add("no box", "row 3 box 1", unit="boxes")
    assert list(problems.dropped_of_seen(3)) == [("records", 1, 4)]
    problems.saw(10, "boxes")
    assert list(problems.dropped_of_seen(3)) == [("records", 1, 4), ("boxes", 1, 10)]


def test_missing_parts_of_shards_count_and_filtered_records_do_not(tmp_path):
    def write(name: str, captions: int) -> str:
        with tarfile.open(tmp_path / name, "w") as tar:
            for i in range(20):
                parts = {"jpg": b"x"} | ({"txt": b"a red ball"} if i < captions else {})
                for suffix, data in parts.items():
                    member = tarfile.TarInfo(f"{i:03}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        return str(tmp_path / name)

    lacking = SourceConfig("laion", 1.0, {"shards": write("a.tar", 5)})
    with pytest.raises(UserError, match="15 of 20 records of the source 'laion' cannot be used"):
        open_mixture(DataConfig([lacking]), 1, 1)
    (again,) = open_mixture(DataConfig([lacking], max_failure_rate=1.0), 1, 1)[0]  # from the index
    assert again.problems.dropped["records"] == 15
    short = SourceConfig("laion", 1.0, {"shards": write("b.tar", 20), "exclude": "blue|green"})
    assert len(open_mixture(DataConfig([short]), 1, 1)[0][0]) == 20
    filtered = {"shards": write("c.tar", 20), "least": {"similarity": 0.3}}
    with pytest.raises(UserError, match="no number 'similarity'"):
        open_mixture(DataConfig([SourceConfig("laion", 1.0, filtered)]), 1, 1)
