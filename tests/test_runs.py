"""What a run is known by, and who may write it."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minigptv2.data.mixture import DataConfig, SourceConfig
from minigptv2.errors import UserError
from minigptv2.files import LOCK, file_lock
from minigptv2.train import identity as module
from minigptv2.train.distributed import StopSignal
from minigptv2.train.identity import compare_with_output, content_hash, identity_of
from minigptv2.train.recipe import CheckpointConfig, LogConfig, OptimConfig, Recipe

HOLDS = """
import sys, time
from pathlib import Path
from minigptv2.files import file_lock
with file_lock(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    time.sleep(600)
"""


def began(output: Path, **changes) -> None:
    identity_of(Recipe(str(output), **changes)).save(output)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"optim": OptimConfig(lr=0.5)}, "optim.lr was 0.001 and is 0.5"),
        ({"optim": OptimConfig(global_batch_size=2)}, "optim.global_batch_size was 16 and is 2"),
        ({"seed": 3}, "seed was 1 and is"),
        ({"trainable": ["lora"]}, "trainable was .* and is .'lora'."),
        ({"data": DataConfig([SourceConfig("arithmetic")])}, "data.sources.0.name was None and is 'arithmetic'"),
    ],
)
def test_another_recipe_is_refused_by_its_keys(tmp_path, changes, told):
    began(tmp_path)
    with pytest.raises(UserError, match=told):
        compare_with_output(tmp_path, identity_of(Recipe(str(tmp_path), **changes)), begun=True)


def test_resumable_keys_may_change_and_more_steps_are_reported(tmp_path):
    began(tmp_path)
    other = Recipe(
        "elsewhere",
        data=DataConfig(num_workers=7),
        log=LogConfig(log_every=1),
        optim=OptimConfig(micro_batch_size=3),
        checkpoint=CheckpointConfig(keep_checkpoints=5),
        device="cpu",
        precision="float32",
    )
    other.cache.dir = "features"
    assert compare_with_output(tmp_path, identity_of(other), begun=True) == []
    (told,) = compare_with_output(tmp_path, identity_of(Recipe("elsewhere", max_steps=2000)), begun=True)
    assert "max_steps was 1000 and is 2000" in told


def test_the_keys_that_may_change_are_documented():
    text = (Path(__file__).parents[1] / "docs/finetune.md").read_text(encoding="utf-8")
    assert all(f"`{key}`" in text for key in module.RESUMABLE_KEYS)


def test_a_run_of_before_is_taken_up_with_a_line_and_one_that_wrote_nothing_without(tmp_path):
    (told,) = compare_with_output(tmp_path, identity_of(Recipe("x")), begun=True)
    assert "could not be compared" in told
    began(tmp_path)
    assert compare_with_output(tmp_path, identity_of(Recipe("x", optim=OptimConfig(lr=0.5))), begun=False) == []


def test_weights_and_data_are_identified_by_content_not_path(tmp_path):
    for name, value in (("a", 0.0), ("same", 0.0), ("other", 1.0)):
        (tmp_path / name).mkdir()
        save_file({"w": torch.full((4,), value)}, tmp_path / name / "model.safetensors")
        (tmp_path / f"{name}.json").write_text(str(value))

    def recipe(name: str) -> Recipe:
        source = SourceConfig("coco_detection", options={"file": str(tmp_path / f"{name}.json")})
        return Recipe(str(tmp_path), init=str(tmp_path / name), data=DataConfig([source]))

    identity_of(recipe("a")).save(tmp_path)
    assert compare_with_output(tmp_path, identity_of(recipe("same")), begun=True) == []
    with pytest.raises(UserError, match=r"init was .*a' and is .*other'; data.sources.0.options.annotations was"):
        compare_with_output(tmp_path, identity_of(recipe("other")), begun=True)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(UserError, match="options.annotations .*a.json' has other content"):
        compare_with_output(tmp_path, identity_of(recipe("a")), begun=True)


def test_a_small_tensor_of_a_large_file_changes_its_mark(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LARGE", 0)
    monkeypatch.setattr(module, "_PIECE", 16)
    tensors = {"large": torch.zeros(1 << 16), "small": torch.zeros(3)}
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(tensors | {"small": torch.tensor([0.0, 1, 0])}, tmp_path / "b.safetensors")
    marks = [content_hash(tmp_path / f"{name}.safetensors") for name in ("a", "a", "b")]
    assert marks[0] == marks[1] != marks[2] and content_hash(tmp_path / "none") == ""


def test_two_processes_exclude_each_other_until_one_is_killed(tmp_path):
    output = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, str(output)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"in use by process {holder.pid} on "):
        with file_lock(output, "run"):
            pass
    holder.kill()
    holder.wait()
    with file_lock(output, "run"):
        assert (output / LOCK).is_file()


def test_folder_that_cannot_be_created_raises_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/below", Path("/proc/none/x")):
        with pytest.raises(UserError, match="cannot be written"):
            with file_lock(place, "run"):
                pass


def test_ctrl_c_asks_for_a_stop_once_and_stops_at_once_the_second_time(capfd):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received and stop.interrupted
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.end()
    assert "checkpoint is written" in capfd.readouterr().err
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler
