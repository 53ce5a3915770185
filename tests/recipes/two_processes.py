"""Run by torchrun or deepspeed in two processes: one run after the other, as the command line would do each.

two_processes.py RECIPE torchrun | deepspeed
"""

import os
import shutil
import signal
import sys
from pathlib import Path

import torch

from minigptv2.train.loop import TrainingLoop, run
from minigptv2.train.muon import Muon

CONFIGS = Path(__file__).parents[2] / "train_configs"


def torchrun(recipe: str, folder: Path) -> None:
    for name, micro in (("two", 0), ("two_in_parts", 2)):
        assert run(recipe, [f"output={folder / name}", f"optim.micro_batch_size={micro}"])
    taken = TrainingLoop._step

    def stopped(stage: TrainingLoop) -> bool:
        if stage.progress.step == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return taken(stage)

    TrainingLoop._step = stopped
    assert run(recipe, [f"output={folder / 'stopped'}", "checkpoint.save_every=100"]) is None
    TrainingLoop._step = taken
    shared_muon()
    assert (folder / "stopped/checkpoints/step-00000003/checksums.json").is_file()
    assert run(recipe, [f"output={folder / 'stopped'}", "checkpoint.save_every=100"])


def shared_muon() -> None:
    """Processes that share the work take the step that one alone takes."""
    torch.manual_seed(3)
    start = [torch.randn(shape) for shape in ((8, 12), (12, 8), (4, 2, 3, 3))]
    grads = [torch.randn_like(s) for s in start]
    after = []
    for shared in (True, False):
        weights = [torch.nn.Parameter(s.clone()) for s in start]
        for weight, grad in zip(weights, grads):
            weight.grad = grad.clone()
        alone = torch.distributed.is_initialized
        torch.distributed.is_initialized = alone if shared else lambda: False
        Muon(weights, 0.1, 0.05).step()
        torch.distributed.is_initialized = alone
        after.append(weights)
    assert all(a.equal(b) for a, b in zip(*after))


def deepspeed(recipe: str, folder: Path) -> None:
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first, for a minute; gloo serves too
    zero3 = f"deepspeed={CONFIGS / 'deepspeed/zero3.json'}"
    assert run(recipe, [f"output={folder / 'zero3'}", "optim.micro_batch_size=2", zero3])
    half = folder / "zero3_half/checkpoints"
    if os.environ["RANK"] == "0":
        shutil.copytree(folder / "zero3/checkpoints/step-00000002", half / "step-00000002")
    torch.distributed.barrier()
    assert run(recipe, [f"output={half.parent}", "optim.micro_batch_size=2", zero3])
    zero2 = f"deepspeed={CONFIGS / 'deepspeed/zero2.json'}"
    given = ["optim.name=adamw", "precision=float32", zero2]
    os.chdir(folder)
    for stage in (1, 2, 3):
        assert run(CONFIGS / f"tiny/stage{stage}.yaml", given, smoke=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    recipe, how = sys.argv[-2:]
    {"torchrun": torchrun, "deepspeed": deepspeed}[how](recipe, Path(recipe).parent)
    print("all done")
