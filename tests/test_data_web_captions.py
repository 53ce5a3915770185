"""The reader of web captions on genuine captions of CC3M in a shard, and its filter."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from minigptv2.data.dataset import open_dataset
from minigptv2.data.readers.web_captions import WebCaptions
from minigptv2.errors import UserError
from minigptv2.images import open_image
from minigptv2.tasks import render

CC3M = Path(__file__).parent / "data" / "cc3m"


def _shard(folder: Path, *samples: dict[str, bytes | str]) -> str:
    """samples: contents by suffix; an image is added where there is none."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG")
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, data in ({"png": buffer.getvalue()} | sample).items():
                if data is not None:
                    data = data.encode() if isinstance(data, str) else data
                    info = tarfile.TarInfo(f"{number:05d}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return str(folder / "00000.tar")


def _captions(dataset) -> list[str]:
    return [dataset[i].question_answers[0].answer for i in range(len(dataset))]


@pytest.mark.parametrize("name", ["laion", "cc3m", "sbu"])
def test_genuine_samples(tmp_path, name):
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for file in sorted((CC3M / "val").iterdir()):
            tar.add(file, file.name)
    dataset = open_dataset(name, {"shards": str(tmp_path / "{00000..00000}.tar")})
    lines = (CC3M / "cc3m_val.tsv").read_text().splitlines()[1:]
    assert _captions(dataset) == [line.split("\t")[0] for line in lines] and not dataset.problems
    for index, line in enumerate(lines):
        sample = dataset[index]
        assert Path(line.split("\t")[1]).stem in sample.key
        assert open_image(sample.image).tobytes() == open_image(CC3M / line.split("\t")[1]).tobytes()
        question, answer = render(sample)
        assert question.pieces[-1].startswith("[caption]") and answer.pieces == (line.split("\t")[0],)


def test_source_of_the_caption(tmp_path):
    told = json.dumps({"caption": "of the json", "top_caption": "of  a\nmachine"})
    shard = _shard(tmp_path, {"txt": " of the text\n", "json": told}, {"json": told}, {"txt": " ", "json": told})
    assert _captions(WebCaptions(shard)) == ["of the text", "of the json", "of the json"]
    assert _captions(WebCaptions(shard, caption="top_caption")) == ["of a machine"] * 3
    with pytest.raises(UserError, match="3 x no 'other'"):
        WebCaptions(shard, caption="other")


def test_filter_counts_excluded_captions(tmp_path):
    captions = ["one", "two words", "three of them", "four of them here", "mail me at a@b.c"]
    samples = [{"txt": text, "json": json.dumps({"similarity": n / 10})} for n, text in enumerate(captions)]
    shard = _shard(tmp_path, *samples, {"txt": "no number here"}, {"txt": "no image", "png": None}, {"cls": "3"})
    dataset = WebCaptions(shard, words=[2, 4], exclude=r"\S@\S", min_values={"similarity": 0.15})
    assert _captions(dataset) == ["three of them", "four of them here"]
    assert dict(dataset.problems.counts) == {
        "a caption of fewer than 2 words": 1,
        "'similarity' under 0.15": 1,
        "a caption that `exclude` leaves out": 1,
        "no number 'similarity'": 1,
        "no image": 1,
        "no 'caption'": 1,
    }
    assert _captions(WebCaptions(shard, words=[1, 3]))[:3] == captions[:3]
    assert len(WebCaptions(shard, exclude="of|at")) == 3  # each filter has its own index


def test_brackets_in_a_caption_are_text(tmp_path):
    sample = WebCaptions(_shard(tmp_path, {"txt": "my {} of {<1>"}))[0]
    assert render(sample)[1].pieces == ("my {} of {<1>",)


@pytest.mark.parametrize("options", [{"words": 3}, {"words": [1, 2, 3]}, {"words": ["a", 3]}, {"exclude": "("}])
def test_invalid_filter_raises_user_error(tmp_path, options):
    with pytest.raises(UserError, match="filter of captions"):
        WebCaptions(_shard(tmp_path, {"txt": "a"}), **options)
