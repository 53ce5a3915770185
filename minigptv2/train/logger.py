"""The log of a run: a progress bar, output/log.jsonl, and curves for TensorBoard or W&B. Only rank 0 writes."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from uuid import uuid4

import torch

from minigptv2.errors import UserError
from minigptv2.files import atomic_write
from minigptv2.train.distributed import World
from minigptv2.train.recipe import Recipe


class MetricLogger:
    """The log of a run that has done `step` steps. Rows after that step, which a killed run wrote, are dropped."""

    def __init__(self, recipe: Recipe, world: World, step: int):
        self.recipe, self.world, self.quiet = recipe, world, world.rank > 0
        self._since, self._waited, self._samples, self._tokens = time.perf_counter(), 0.0, 0, 0
        self._curves = self._wandb = None
        if self.quiet:
            return
        from tqdm import tqdm

        output = Path(recipe.output)
        file = output / "log.jsonl"
        _drop_rows_after(file, step)
        self._log = open(file, "a")
        self._bar = tqdm(total=recipe.max_steps, initial=step, desc=output.name, smoothing=0.05, dynamic_ncols=True)
        if recipe.log.tensorboard:
            self._curves = _tensorboard(output / "tensorboard", step)
            if self._curves is None:
                self.message(
                    "TensorBoard is not installed: log.jsonl alone holds the curves; "
                    "pip install tensorboard, or give log.tensorboard=false"
                )
        if recipe.log.wandb:
            self._wandb = _open_wandb(recipe)

    def __enter__(self) -> MetricLogger:
        return self

    def __exit__(self, *_) -> None:
        if not self.quiet:
            self._log.close()
            self._bar.close()
            if self._curves is not None:
                self._curves.close()
            if self._wandb is not None:
                self._wandb.finish()

    def message(self, line: str) -> None:
        """Write a line to standard error, above the bar."""
        if not self.quiet:
            self._bar.write(line, file=sys.stderr)

    def update(self, samples: float, tokens: float, waited: float) -> None:
        """Count one step: samples and tokens of all processes, and seconds that this process waited for data."""
        self._samples += int(samples)
        self._tokens += int(tokens)
        self._waited += waited
        if not self.quiet:
            self._bar.update()

    def log_step(
        self, step: int, metrics: dict[str, float], grad_norm: float, lr: float, failures: int, dropped_turns: int = 0
    ) -> None:
        """Write a row: the metrics of this step (`Engine.metrics`), and speeds since the row before.

        failures, dropped_turns: records that could not be used, and turns that did not fit the context, since the run
        began. In finetune, loss is the mean over answer tokens; attention_loss is, with supervised attention, the
        weighted mean of -log of the attention mass on the target.
        """
        loss = metrics["loss"]
        now = time.perf_counter()
        spent = now - self._since
        row = {
            "step": step,
            "loss": loss,
            "grad_norm": grad_norm,
            "lr": lr,
            "samples_per_s": self._samples / spent,
            "tokens_per_s": self._tokens / spent,
            "data_wait_fraction": self._waited / spent,
            "memory_gb": self._memory(),
            "failures": failures,
            "dropped_turns": dropped_turns,
            **{name: value for name, value in metrics.items() if name != "loss"},
        }
        self._since, self._waited, self._samples, self._tokens = now, 0.0, 0, 0
        if not self.quiet:
            self._write(row)
            self._bar.set_postfix(
                loss=f"{loss:.3f}",
                lr=f"{lr:.1e}",
                samples_s=f"{row['samples_per_s']:.1f}",
                tokens_s=f"{row['tokens_per_s']:.0f}",
                wait=f"{row['data_wait_fraction']:.0%}",
                gb=f"{row['memory_gb']:.1f}",
            )

    def log_validation(self, step: int, metrics: dict[str, float]) -> None:
        """Write a row with the accuracy of each task (`Validator.evaluate`)."""
        if not self.quiet:
            self._write({"step": step, **metrics})
        self.message(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in metrics.items()))

    def _memory(self) -> float:
        """Peak memory in 10**9 bytes: of the GPU, or of this process where there is none."""
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.world.device) / 1e9
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9

    def _write(self, row: dict) -> None:
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}
        try:
            self._log.write(json.dumps({**rounded, "time": round(time.time())}) + "\n")
            self._log.flush()
        except OSError as error:
            raise UserError(
                f"{self._log.name} cannot be written: {error}",
                "A run needs room on the disk.",
                "Make room and run the same command again: it resumes from its last checkpoint.",
            ) from error
        curves = {f"train/{k}": v for k, v in row.items() if k != "step"}
        if self._curves is not None:
            for name, value in curves.items():
                self._curves.add_scalar(name, value, row["step"])
        if self._wandb is not None:
            self._wandb.log(curves, step=row["step"])


def _drop_rows_after(file: Path, step: int) -> None:
    """Remove the rows after this step, and an incomplete last row."""
    if not file.exists():
        return
    kept = []
    for line in file.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    with atomic_write(file) as new:
        new.write_text("".join(kept))


def _tensorboard(folder: Path, step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # TensorBoard is an extra; log.jsonl holds the same numbers
        return None
    return SummaryWriter(str(folder), purge_step=step + 1)


def _open_wandb(recipe: Recipe):
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"log.wandb is {recipe.log.wandb!r}, but the package wandb is not installed.",
            "Curves go to TensorBoard and output/log.jsonl without it.",
            "Run pip install wandb, or omit log.wandb.",
        ) from None
    output = Path(recipe.output)
    kept = output / "wandb.id"  # a resumed run continues its own curves
    if not kept.is_file():
        kept.write_text(uuid4().hex)
    return wandb.init(project=recipe.log.wandb, name=output.name, dir=output, id=kept.read_text(), resume="allow")
