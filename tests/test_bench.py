"""The benches of the data side run, and compare two ways that do the same work."""

import pytest
import torch

from minigptv2 import cli
from minigptv2.bench import train as bench
from minigptv2.data.scenes import dataset as scene_dataset
from minigptv2.train.precision import call_in_dtype


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bench_data", "bench_cache", "bench_packing", "bench_loop"])
def test_a_bench_measures_both_ways(tiny_folder, name, monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 2)
    monkeypatch.setattr(bench, "SIZES", ((1280, 960),))
    monkeypatch.setattr(scene_dataset, "CACHE_SIZE", 2)
    threads = torch.get_num_threads()
    found = getattr(bench, name)(tiny_folder, 2, rounds=1)
    assert found.rate > 0 and found.plain > 0 and found.ratio == found.rate / found.plain and found.what
    assert torch.get_num_threads() == threads


def test_the_turns_are_taken_alternately_and_the_median_counts(monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 10)
    now, calls = [0.0], []

    def way(name: str, costs: list[float]):
        def call():
            calls.append(name)
            now[0] += costs.pop(0)

        return call

    monkeypatch.setattr(bench.time, "process_time", lambda: now[0])
    ours, plain = bench._turns(way("a", [9, 1, 2, 100]), way("b", [9, 5, 5, 5]), 3)
    assert calls == ["a", "b"] * 4 and (ours, plain) == (5.0, 2.0)


@pytest.mark.slow
def test_the_plain_loader_sees_the_same_images_in_the_same_order(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 3)
    monkeypatch.setattr(bench, "SIZES", ((1000, 904),))
    network, encoder, coding = bench._open(tiny_folder)
    photos = bench._Photos(tmp_path, 5)
    micro = next(bench._stream([photos], encoder, coding, network.config.vision, fast_decode=True))
    rows, pixels = next(bench._plain_loader(photos, encoder, coding, network.config.vision))
    assert pixels.shape == micro.on("cpu").pixels.shape
    assert (pixels - micro.on("cpu").pixels).abs().mean() < 0.02 < (pixels - pixels.flip(0)).abs().mean()
    assert len(rows) == micro.samples == 3  # worded at random, so of other lengths


def test_the_command_gives_its_options_to_every_bench(tiny_folder, monkeypatch, capsys):
    seen = []

    def measure(name):
        def bench_it(model, count, **options):
            seen.append((name, str(model), count, options))
            return bench.Compared(name, 2.0, 1.0)

        return bench_it

    for name in ("bench_data", "bench_cache", "bench_packing", "bench_loop"):
        monkeypatch.setattr(bench, name, measure(name))
    given = ["--model", str(tiny_folder), "--device", "cpu", "--dtype", "bfloat16", "--images", "3"]
    assert cli.main(["bench", "train", *given]) == 0
    steps = {"device": "cpu", "dtype": torch.bfloat16, "base": None}
    assert [(n, c, o) for n, _, c, o in seen] == [
        ("bench_data", 3, {"base": None}),
        ("bench_cache", 3, steps),
        ("bench_packing", 3, steps),
        ("bench_loop", 3, steps),
    ]
    assert capsys.readouterr().out.count("2.000") == 4
    assert cli.main(["bench", "train", "--dtype", "float16"]) == 2
    assert "float32 or bfloat16" in capsys.readouterr().err


@pytest.mark.slow
def test_steps_are_multiplied_in_the_dtype_that_was_given(tiny_folder, monkeypatch):
    monkeypatch.setattr(bench, "BATCH", 2)
    used = []
    monkeypatch.setattr(
        bench, "call_in_dtype", lambda network, dtype, batch: used.append(dtype) or call_in_dtype(network, dtype, batch)
    )
    bench.bench_packing(tiny_folder, 2, rounds=1, dtype=torch.bfloat16)
    assert set(used) == {torch.bfloat16}
