"""The loop through the real command line: resume after a kill, damaged checkpoints, several processes, small saves."""

import importlib.util
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_recipe import ROOT, environment, stop_after_two_steps, without_dropout, write_recipe

from minigptv2 import cli
from minigptv2.api import MiniGPTv2
from minigptv2.errors import UserError
from minigptv2.train.distributed import World
from minigptv2.train.init_model import load_initial_model, place_on_device, set_trainable
from minigptv2.train.recipe import read_recipe

HERE = Path(__file__).parent
# runs a recipe and kills itself after so many calls of a function, or before one: "rename 1"
KILLED = """
import os, pathlib, signal, sys
import safetensors.torch
from minigptv2 import cli
from minigptv2.train.engine import Engine

moment, calls = sys.argv[1].split()
home, name = {"save_file": (safetensors.torch, "save_file"), "rename": (pathlib.Path, "rename"),
              "step": (Engine, "step")}[moment]
plain, left = getattr(home, name), [int(calls)]

def killing(*given, **more):
    left[0] -= 1
    if not left[0] and moment == "step":
        os.kill(os.getpid(), signal.SIGKILL)
    result = plain(*given, **more)
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(home, name, killing)
cli.main(["train", *sys.argv[2:]])
"""


def train(recipe: Path, output: Path, *given: str) -> dict[str, torch.Tensor]:
    assert cli.main(["train", str(recipe), f"output={output}", *given]) == 0
    return last(output)


def last(output: Path) -> dict[str, torch.Tensor]:
    """All that the newest checkpoint holds."""
    folder = max((output / "checkpoints").iterdir())
    return {f"{n}/{k}": t for n in ("weights", "optimizer") for k, t in load_file(folder / f"{n}.safetensors").items()}


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)


def close(a: dict, b: dict) -> None:
    """Weights, and Adam's moments: unlike the weights, these show when gradients are scaled wrongly."""
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-3 * float(b[name].abs().max()) + 1e-12, rtol=1e-3)


def losses(output: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in open(output / "log.jsonl")]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [(row["loss"], row["grad_norm"]) for row in rows]


def losses_agree(output: Path, other: Path) -> bool:
    return all(a == pytest.approx(b, rel=1e-3) for a, b in zip(losses(output), losses(other), strict=True))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model of random weights that every run begins with."""
    folder = tmp_path_factory.mktemp("base")
    file = write_recipe(folder, "random")
    assert cli.main(["train", str(file), "max_steps=0"]) == 0
    return folder / "output/model"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, base):
    """The recipe with dropout, and what an unbroken run of it ends with."""
    folder = tmp_path_factory.mktemp("loop")
    file = write_recipe(folder, base)
    return file, train(file, folder / "unbroken")


@pytest.fixture(scope="module")
def plain(tmp_path_factory, base):
    """The recipe without dropout, and what one process ends with."""
    folder = tmp_path_factory.mktemp("plain")
    model = shutil.copytree(base, folder / "model")
    without_dropout(model)
    file = write_recipe(folder, model)
    return file, train(file, folder / "one")


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_as_an_unbroken_one(recipe, tmp_path):
    """While the first checkpoint is written, while the second is, amid a step, and when it has just got its name."""
    file, unbroken = recipe
    output = tmp_path / "killed"
    for moment, left in (
        ("save_file 1", ["step-00000002.new"]),
        ("save_file 4", ["step-00000002", "step-00000004.new"]),
        ("step 2", ["step-00000002", "step-00000004.new"]),
        ("rename 1", ["step-00000002", "step-00000004"]),
    ):
        command = [sys.executable, "-c", KILLED, moment, str(file), f"output={output}"]
        killed = subprocess.run(command, env=environment(), capture_output=True, timeout=300)
        assert killed.returncode == -9, killed.stderr[-2000:]
        assert [f.name for f in sorted((output / "checkpoints").iterdir())] == left
    assert same(train(file, output), unbroken)
    assert len(losses(output)) == 4


@pytest.mark.slow
def test_a_signal_to_every_process_of_a_job_stops_it_at_a_checkpoint(recipe, tmp_path):
    """As schedulers send it: its data workers get SIGTERM, too."""
    output = tmp_path / "stopped"
    arguments = [
        "train",
        str(recipe[0]),
        f"output={output}",
        "max_steps=100000",
        "checkpoint.save_every=100000",
        "data.num_workers=2",
    ]
    stop_after_two_steps(arguments, output)
    (kept,) = (output / "checkpoints").iterdir()
    assert int(kept.name.removeprefix("step-")) >= 2


def test_damaged_checkpoint_is_reported_and_previous_one_used(recipe, tmp_path, capsys):
    file, unbroken = recipe
    output = shutil.copytree(file.parent / "unbroken", tmp_path / "damaged")
    newest = output / "checkpoints/step-00000004/weights.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    assert same(train(file, output), unbroken)
    told = capsys.readouterr().err
    assert "step-00000004 is damaged" in told and "resumes after step 2" in told


def test_no_silent_restart_if_all_checkpoints_are_damaged(recipe, tmp_path, capsys):
    file, _ = recipe
    output = shutil.copytree(file.parent / "unbroken", tmp_path / "damaged")
    for checkpoint in (output / "checkpoints").iterdir():
        (checkpoint / "progress.json").write_text("{")
    assert cli.main(["train", str(file), f"output={output}"]) == 2
    assert "Every checkpoint" in capsys.readouterr().err


def test_only_newest_checkpoints_are_kept_and_progress_is_printed(recipe, tmp_path):
    file, _ = recipe
    train(file, tmp_path / "kept", "checkpoint.save_every=1", "checkpoint.keep_checkpoints=2")
    kept = sorted((tmp_path / "kept/checkpoints").iterdir())
    assert [f.name for f in kept] == ["step-00000003", "step-00000004"]
    progress = json.loads((kept[-1] / "progress.json").read_text())
    assert (progress["step"], progress["samples"], progress["batch"], progress["world"]) == (4, 32, 8, 1)
    assert progress["tokens"] > 32


def test_another_rank_of_lora_cannot_resume_the_checkpoint(recipe, tmp_path, capsys):
    file, _ = recipe
    output = shutil.copytree(file.parent / "unbroken", tmp_path / "other")
    assert cli.main(["train", str(file), f"output={output}", "trainable=[projector]"]) == 2
    assert "trainable was ['projector', 'lora'] and is ['projector']" in capsys.readouterr().err
    (output / "run.json").unlink()  # as it was before runs were known by their recipe
    assert cli.main(["train", str(file), f"output={output}", "trainable=[projector]"]) == 2
    assert "trains other weights" in capsys.readouterr().err


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != ".lock"}


def test_a_finished_run_changes_nothing_whatever_is_asked_for(recipe, base, tmp_path, capsys):
    file, _ = recipe
    output, other = tmp_path / "done", shutil.copytree(base, tmp_path / "other")
    shutil.copytree(file.parent / "unbroken", output)
    weights = load_file(other / "model.safetensors")
    save_file({k: t * 2 for k, t in weights.items()}, other / "model.safetensors", metadata={"format": "pt"})
    before = files_of(output)
    for given, code, told in (
        ((), 0, "is finished after step 4: nothing was changed"),
        (("max_steps=2", "data.num_workers=1"), 0, "is finished after step 4: nothing was changed"),
        ((f"init={other}", "optim.lr=5e-3"), 2, "lr was 0.003 and is 0.005"),
        ((f"init={other}",), 2, f"init was '{base}' and is '{other}'"),
        ((f"init={shutil.copytree(base, tmp_path / 'copy')}",), 0, "is finished"),
    ):
        assert cli.main(["train", str(file), f"output={output}", *given]) == code
        assert told in capsys.readouterr().err and files_of(output) == before
    (output / "run.json").unlink()  # as it was before runs were known by their recipe
    model = files_of(output / "model")
    assert cli.main(["train", str(file), f"output={output}", f"init={other}"]) == 0
    assert "could not be compared" in capsys.readouterr().err and files_of(output / "model") == model


def test_more_steps_go_on_and_their_model_replaces_the_one_before(recipe, tmp_path, capsys):
    file, _ = recipe
    output = shutil.copytree(file.parent / "unbroken", tmp_path / "more")
    model = files_of(output / "model")
    train(file, output, "max_steps=5")
    assert "max_steps was 4 and is 5" in capsys.readouterr().err
    assert files_of(output / "model") != model and json.loads((output / "run.json").read_text())["finished"] == 5


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_and_says_so(recipe, tmp_path):
    output = tmp_path / "stopped"
    arguments = [
        "train",
        str(recipe[0]),
        f"output={output}",
        "max_steps=100000",
        "checkpoint.save_every=100000",
        "data.num_workers=2",
    ]
    told = stop_after_two_steps(arguments, output, signal.SIGINT, 130)
    assert "Ctrl-C again stops at once" in told
    assert [f.name for f in (output / "checkpoints").iterdir()][0] != "step-00000000"


def test_a_full_disk_leaves_the_checkpoint_before(recipe, tmp_path, monkeypatch, capsys):
    import safetensors.torch
    from safetensors import SafetensorError

    file, unbroken = recipe
    output, plain, left = tmp_path / "full", safetensors.torch.save_file, [4]

    def full(*given, **more):
        left[0] -= 1
        if left[0] < 0:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        return plain(*given, **more)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    assert cli.main(["train", str(file), f"output={output}"]) == 2
    assert "step 4 cannot be written" in capsys.readouterr().err
    assert [f.name for f in (output / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.setattr(safetensors.torch, "save_file", plain)
    assert same(train(file, output), unbroken)


def test_missing_tensorboard_is_reported_and_the_run_continues(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(recipe[0], tmp_path / "run", "log.tensorboard=true", "max_steps=1")
    assert capsys.readouterr().err.count("TensorBoard is not installed") == 1


def test_dropped_records_are_reported_and_stored_with_the_run(recipe, tmp_path, capsys, monkeypatch):
    from minigptv2.train import dataloader as stream

    plain = stream.encode_sample

    def cut(*given):
        row = plain(*given)
        row.dropped_turns = 2
        return row

    monkeypatch.setattr(stream, "encode_sample", cut)
    talk = [{"conversation": [{"user": f"what is {i}?", "assistant": "a number."}]} for i in range(40)]
    lines = [*talk, {"caption": "of no image"}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = f"data.sources=[{{name: own, options: {{file: {tmp_path / 'own.jsonl'}}}}}]"
    train(recipe[0], tmp_path / "run", source, "max_steps=2")
    (row,) = json.loads((tmp_path / "run/problems.json").read_text())
    assert (row["source"], row["records"]) == ("own", 40) and list(row["problems"].values()) == [1]
    told = capsys.readouterr().err
    assert next(iter(row["problems"])) in told and told.count("log.jsonl counts them as dropped_turns") == 1
    rows = [json.loads(line) for line in open(tmp_path / "run/log.jsonl")]
    assert [r["dropped_turns"] for r in rows] == [16, 32]


@pytest.mark.slow
def test_own_data_needs_no_other_data(recipe, base, tmp_path, monkeypatch):
    """The recipe as README gives it, with data/own alone."""
    from PIL import Image

    images = tmp_path / "data/own/images"
    images.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (64, 48), "red").save(images / f"{number}.jpg")
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in range(4)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 30, 40]} for i in range(4)],
        "categories": [{"id": 1, "name": "ball"}],
    }
    (tmp_path / "data/own/train.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    given = [
        "max_steps=2",
        "optim.global_batch_size=8",
        "data.num_workers=0",
        "log.tensorboard=false",
        "device=cpu",
        "model.lora.r=2",
    ]
    assert cli.main(["train", str(ROOT / "train_configs/own_data.yaml"), f"init={base}", *given]) == 0


@pytest.mark.slow
def test_accumulation_and_checkpointing_change_neither_loss_nor_gradients(plain, tmp_path):
    file, one = plain
    close(
        train(file, tmp_path / "parts", "optim.micro_batch_size=2", "gradient_checkpointing=true", "data.pack=false"),
        one,
    )
    assert losses_agree(tmp_path / "parts", file.parent / "one")


@pytest.mark.slow
def test_attention_loss_is_logged_apart_from_the_answer_loss(plain, tmp_path):
    """Its loss depends neither on how a step is divided nor on layers that are computed twice; it is logged apart."""
    file, _ = plain
    given = ("optim.attention_loss_weight=1", "trainable=[projector, language]", "max_steps=12", "optim.lr=1e-2")
    one = train(file, tmp_path / "one", *given)
    parts = train(file, tmp_path / "parts", *given, "optim.micro_batch_size=2", "gradient_checkpointing=true")
    close(parts, one)
    assert losses_agree(tmp_path / "parts", tmp_path / "one")  # the losses of supervised attention, too
    rows = [json.loads(line) for line in open(tmp_path / "one/log.jsonl")]
    assert rows[-1]["attention_loss"] < 0.9 * rows[0]["attention_loss"]
    train(file, tmp_path / "without", "trainable=[projector, language]", "max_steps=1")
    (without,) = (json.loads(line) for line in open(tmp_path / "without/log.jsonl"))
    assert rows[0]["loss"] == pytest.approx(without["loss"], rel=1e-4) and "attention_loss" not in without


@pytest.mark.slow
def test_attention_is_guided_until_its_step(plain, tmp_path):
    """What is seen alone changes the loss; from `guided_steps` on, a run goes on as one that never was guided."""
    file, _ = plain
    given = ("optim.attention_loss_weight=1", "trainable=[projector, language]", "log.log_every=1")
    runs = {name: tmp_path / name for name in ("guided", "free", "longer")}
    train(file, runs["guided"], *given, "optim.attention_guidance_steps=2", "max_steps=2")
    (runs["guided"] / "run.json").unlink()  # else another guided_steps is refused
    for other in ("free", "longer"):
        shutil.copytree(runs["guided"], runs[other])
    steps = {"guided": 2, "free": 0, "longer": 8}
    after = {n: train(file, runs[n], *given, f"optim.attention_guidance_steps={steps[n]}", "max_steps=3") for n in runs}
    close(after["guided"], after["free"])
    losses = {n: json.loads((runs[n] / "log.jsonl").read_text().splitlines()[-1])["loss"] for n in runs}
    assert losses["guided"] == losses["free"] != pytest.approx(losses["longer"], rel=1e-6)


@pytest.mark.slow
def test_two_processes_learn_as_one_does_and_stop_together(plain, tmp_path, capsys):
    file, one = plain
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0", "--standalone"]
    command = [sys.executable, *launch, str(HERE / "two_processes.py"), str(file), "torchrun"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = file.parent
    close(last(folder / "two"), one)
    close(last(folder / "two_in_parts"), one)
    assert losses_agree(folder / "two", folder / "one")
    assert same(last(folder / "stopped"), last(folder / "two"))
    output = tmp_path / "alone"  # what two began, one ends
    shutil.copytree(folder / "two/checkpoints/step-00000002", output / "checkpoints/step-00000002")
    close(train(file, output), one)
    assert "written by 2 processes and resumes with 1" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("deepspeed"), reason="deepspeed is an extra")
def test_deepspeed_learns_the_same_and_runs_three_stages(plain):
    """Under ZeRO-3 with micro-batches of two, so that now and then one process has text alone."""
    file, one = plain
    launch = ["-m", "deepspeed.launcher.runner", "--num_accelerators", "2", "--master_port", "29731"]
    command = [sys.executable, *launch, str(HERE / "two_processes.py"), str(file), "deepspeed"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = file.parent
    close(last(folder / "zero3"), one)
    assert losses_agree(folder / "zero3", folder / "one")
    assert same(last(folder / "zero3_half"), last(folder / "zero3")), "a resumed run ends as an unbroken one"
    for stage in (1, 2, 3):
        output = folder / f"output/tiny/stage{stage}-smoke"
        assert (output / "model/config.json").is_file() and len(losses(output)) == 2


def test_trainable_weights_alone_are_saved_and_open_with_their_base(plain, tmp_path, image):
    file, _ = plain
    base = file.parent / "model"
    train(file, tmp_path / "small", "checkpoint.save=trainable")
    whole, small = file.parent / "one/model", tmp_path / "small/model"
    assert set(load_file(small / "model.safetensors")) == {"projector.weight", "projector.bias"}
    assert (small / "model.safetensors").stat().st_size < (base / "model.safetensors").stat().st_size / 4
    a, b = MiniGPTv2.from_pretrained(small, "cpu", base=base), MiniGPTv2.from_pretrained(whole, "cpu")
    wanted = b.network.state_dict()
    assert all(t.equal(wanted[n]) for n, t in a.network.state_dict().items())
    asked = "[refer] red balloon"
    assert a.chat(image, asked, 8).text == b.chat(image, asked, 8).text
    for given, problem in ((None, "its base"), (whole, "not those that"), (small, "holds only trained weights")):
        with pytest.raises(UserError, match=problem):
            MiniGPTv2.from_pretrained(small, "cpu", base=given)
    with pytest.raises(UserError, match="full model"):
        MiniGPTv2.from_pretrained(whole, "cpu", base=base)


def test_frozen_weights_on_their_way_to_a_gpu_stay_in_the_16_bits_of_their_folder(base, tmp_path):
    """No GPU is needed: only `place_on_device` would touch it."""
    read = read_recipe(write_recipe(tmp_path, base))
    model, _, _ = load_initial_model(read, World(0, 1, torch.device("cuda")))
    whole, _, _ = load_initial_model(read, World(0, 1, torch.device("cpu")))
    assert {p.dtype for n, p in model.named_parameters() if n.startswith("language.") and "lora_" not in n} == {
        torch.float16
    }
    set_trainable(model, read)
    set_trainable(whole, read)
    place_on_device(model, read, torch.device("cpu"), torch.float32, has_base=True)
    place_on_device(whole, read, torch.device("cpu"), torch.float32, has_base=True)
    for (name, a), (_, b) in zip(model.named_parameters(), whole.named_parameters()):
        assert a.dtype == torch.float32 and ("lora_" in name or torch.equal(a, b)), name


@pytest.mark.parametrize(
    "given",
    [
        "device=tpu0",
        "device=meta",
        "precision=float16",
        "trainable=[]",
        "quantize=4bit",
        "deepspeed=nowhere.json",
        "log.wandb=mine",
        "optim.global_batch_size=0",
        "checkpoint.keep_checkpoints=0",
        "init=",
        "data.sources=[]",
        f"log.eval_every=5 deepspeed={ROOT / 'train_configs/deepspeed/zero3.json'}",
    ],
)
def test_invalid_recipes_raise_user_error(recipe, tmp_path, capsys, monkeypatch, given):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
    assert cli.main(["train", str(recipe[0]), f"output={tmp_path / 'none'}", *given.split()]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-3:]) == 3
