"""Ranks and devices of a run, under torchrun, deepspeed or alone; and the signals that stop it."""

from __future__ import annotations

import datetime
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from minigptv2.devices import choose_device
from minigptv2.errors import UserError

_TIMEOUT = datetime.timedelta(hours=2)  # of a collective call: rank 0 may be building a feature cache


@dataclass(frozen=True)
class World:
    """The rank of this process, the number of processes, and its device. One process needs no torch.distributed."""

    rank: int
    size: int
    device: torch.device

    def all_reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over all processes."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def broadcast(self, value: Any) -> Any:
        """The value of rank 0, in every process."""
        if self.size == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def first(self, do: Callable[[], Any]) -> Any:
        """Call `do` in rank 0 and return its result in every process. Its UserError is raised in all."""
        result = None
        if self.rank == 0:
            try:
                result = do()
            except UserError as error:
                result = error
        result = self.broadcast(result)
        if isinstance(result, UserError):
            raise result
        return result

    def all_gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until every process has called this."""
        self.all_reduce_sum([0])


@contextmanager
def init_distributed(device: str = "", alone: bool = True) -> Iterator[World]:
    """Join the processes that torchrun or deepspeed started, by the environment variables that they set.

    device: "cpu", "cuda", ...; empty: the GPU where there is one. With several processes "cuda" is each one's own GPU.
    alone: a process without others needs no torch.distributed.
    """
    place = {name: _number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    rank, size, local = place["RANK"] or 0, place["WORLD_SIZE"] or 1, place["LOCAL_RANK"] or 0
    chosen = training_device(device, local if size > 1 else None)
    if size == 1 and alone:
        yield World(0, 1, chosen)
        return
    if size == 1:
        free = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in free.items() | {("MASTER_PORT", str(_free_port()))}:
            os.environ.setdefault(name, value)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    begun = not torch.distributed.is_initialized()
    if begun:
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield World(rank, size, chosen)
    finally:
        if begun and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def training_device(name: str, local_rank: int | None = None) -> torch.device:
    """As `devices.choose_device`; training is written for the CPU and CUDA alone. Raises UserError."""
    device = choose_device(name, local_rank)
    if device.type not in ("cpu", "cuda"):
        raise UserError(
            f"The device is {name!r}.", "Training is written for cpu and cuda.", "Try device=cpu, or a CUDA GPU."
        )
    return device


def _number(name: str) -> int | None:
    given = os.environ.get(name)
    if given is None:
        return None
    if not given.isdecimal():
        raise UserError(
            f"The environment says {name}={given}.", "torchrun and deepspeed set a whole number.", f"unset {name}"
        )
    return int(given)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


STOPPED = "stopped after step {}; run the same command to resume"
STOPPING = "\nstopping: this step ends and a checkpoint is written; Ctrl-C again stops at once\n"


class StopSignal:
    """Records SIGTERM and Ctrl-C, so that the run can write a checkpoint before it ends. A second Ctrl-C ends it at
    once. received: whether one came. interrupted: whether it was Ctrl-C."""

    def __init__(self):
        self.received = self.interrupted = False

    def __enter__(self) -> StopSignal:
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if number == signal.SIGINT:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            os.write(2, STOPPING.encode())  # not print, which may be what the signal has interrupted
        self.received = True

    def end(self) -> None:
        """Call it when the run has stopped: after Ctrl-C it raises KeyboardInterrupt."""
        if self.interrupted:
            raise KeyboardInterrupt


def ignore_sigterm_in_worker(_worker: int) -> None:
    """Let a data worker end by its parent's SIGTERM alone. A signal that a scheduler sends to all processes of a job,
    and Ctrl-C, are left to the parent, which still needs the worker for its last step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    parent = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)  # from a thread nothing else ends the process; a worker has nothing to write

    threading.Thread(target=wait, daemon=True).start()
