"""The backbone's pre-training takes the stages' loop: a run that was killed goes on as if nothing had happened."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from minigptv2 import cli

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parents[2] / "train_configs" / "tiny" / "pretrain_vision.yaml"
STEPS = 7
PHASES = (  # the table of positions grows in the third; scenes are seen again
    "phases=[{image_size: 112, frame: 224, steps: 2, batch: 3, views: 2, most: 3},"
    " {image_size: 112, steps: 3, batch: 2, views: 3, crowded: 0.5}, {image_size: 168, steps: 2, batch: 2}]"
)


def _recipe(output: Path, *more: str) -> list[str]:
    rest = [PHASES, "checkpoint.save_every=1", "checkpoint.keep_checkpoints=20", "log.tensorboard=false", "device=cpu"]
    return ["train", str(CONFIG), "--smoke", f"output={output}", *rest, *more]


def _checkpoint(output: Path, step: int = STEPS) -> Path:
    return output / "checkpoints" / f"step-{step:08}"


def _killed(straight: Path, output: Path, step: int) -> Path:
    """The folder as it was when the run had been killed after this step."""
    shutil.copytree(straight, output)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(_checkpoint(output, later))
    (output / "backbone.safetensors").unlink()
    run = json.loads((output / "run.json").read_text())
    (output / "run.json").write_text(json.dumps(run | {"finished": -1}))
    return output


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("backbone") / "straight"
    assert cli.main(_recipe(output)) == 0
    return output


@pytest.mark.slow
@pytest.mark.parametrize("step", range(1, STEPS))
def test_a_killed_run_ends_as_a_straight_one(straight, tmp_path, step):
    output = _killed(straight, tmp_path / "killed", step)
    assert cli.main(_recipe(output)) == 0
    for name in ("weights", "optimizer", "random"):
        ours, theirs = (load_file(_checkpoint(o) / f"{name}.safetensors") for o in (output, straight))
        assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours), name
    assert (_checkpoint(output) / "progress.json").read_text() == (_checkpoint(straight) / "progress.json").read_text()
    assert (output / "backbone.safetensors").read_bytes() == (straight / "backbone.safetensors").read_bytes()
    rows, wanted = ([json.loads(line) for line in open(o / "log.jsonl")] for o in (output, straight))
    keys = ("step", "loss", "grad_norm", "lr", "class_acc", "box_error")
    assert [[row[key] for key in keys] for row in rows] == [[row[key] for key in keys] for row in wanted]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_killed_run_resumes_with_the_same_scenes(straight, tmp_path, optimizer):
    workers = ("data.num_workers=2", f"optim.name={optimizer}")
    assert cli.main(_recipe(tmp_path / "straight", *workers)) == 0
    output = _killed(tmp_path / "straight", tmp_path / "killed", 3)  # the second worker's turn
    assert cli.main(_recipe(output, *workers)) == 0
    for name in ("weights.safetensors", "optimizer.safetensors", "progress.json"):
        assert (_checkpoint(output) / name).read_bytes() == (_checkpoint(tmp_path / "straight") / name).read_bytes()


def test_another_number_of_workers_is_reported(straight, tmp_path, capfd):
    output = _killed(straight, tmp_path / "killed", 3)
    assert cli.main(_recipe(output, "data.num_workers=2")) == 0
    assert "data.num_workers was 1 and is 2: the following scenes differ" in capfd.readouterr().err


def test_the_optimizer_and_the_batch_norms_go_on_over_phases(straight):
    states = load_file(_checkpoint(straight) / "optimizer.safetensors")
    taken = {key: int(value) for key, value in states.items() if key.startswith("step/")}
    assert taken.pop("step/tower.trunk.pos_embed") == 2  # its table is another one
    assert taken and set(taken.values()) == {STEPS}
    weights = load_file(_checkpoint(straight) / "weights.safetensors")
    counted = [int(value) for key, value in weights.items() if key.endswith("num_batches_tracked")]
    assert counted and set(counted) == {STEPS}
    made = load_file(straight / "backbone.safetensors")
    assert made.keys() == weights.keys() and all(made[key].equal(weights[key]) for key in made)


def test_a_finished_run_is_left_alone_and_its_lost_weights_are_written_again(straight, tmp_path, capfd):
    output = shutil.copytree(straight, tmp_path / "finished")
    assert cli.main(_recipe(output)) == 0
    assert f"is finished after step {STEPS}: nothing was changed" in capfd.readouterr().err
    (output / "backbone.safetensors").unlink()
    assert cli.main(_recipe(output)) == 0
    assert (output / "backbone.safetensors").read_bytes() == (straight / "backbone.safetensors").read_bytes()


def test_damaged_checkpoint_is_reported_and_previous_one_used(straight, tmp_path, capfd):
    output = _killed(straight, tmp_path / "killed", 4)
    weights = _checkpoint(output, 4) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\1\1")
    assert cli.main(_recipe(output)) == 0
    said = capfd.readouterr().err
    assert "is damaged (weights.safetensors does not have its checksum)" in said and "resumes after step 3" in said
    assert (output / "backbone.safetensors").read_bytes() == (straight / "backbone.safetensors").read_bytes()


def test_the_pickled_checkpoint_of_an_older_version_is_named(straight, tmp_path, capfd):
    old = tmp_path / "old"
    old.mkdir()
    (old / "checkpoint.pt").write_bytes(b"pickled")
    shutil.copy(straight / "backbone.safetensors", old)
    assert cli.main(_recipe(old)) == 2
    said = capfd.readouterr().err
    assert "checkpoint.pt is the checkpoint of an older version, which cannot be resumed" in said
    assert len(said.strip().splitlines()) == 3
    assert cli.main(_recipe(tmp_path / "new", f"init={old}")) == 0
