"""Where a run computes: its device, and its place among the processes that torchrun or deepspeed started."""

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

_PATIENCE = datetime.timedelta(hours=2)  # that processes wait for each other: the slowest may be building a cache


@dataclass(frozen=True)
class World:
    """rank: of this process among `size`. One process alone is a world too, and needs no torch.distributed."""

    rank: int
    size: int
    device: torch.device

    def all_reduce_sum(self, numbers: Sequence[float]) -> list[float]:
        """Each number, summed over all processes."""
        if self.size == 1:
            return list(numbers)
        total = torch.tensor(list(numbers), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def broadcast(self, thing: Any) -> Any:
        """What the first process gave, in every process."""
        if self.size == 1:
            return thing
        box = [thing]
        torch.distributed.broadcast_object_list(box, 0, device=self.device)
        return box[0]

    def first(self, do: Callable[[], Any]) -> Any:
        """What `do` gave in the first process, in every process; its UserError is raised in all."""
        given = None
        if self.rank == 0:
            try:
                given = do()
            except UserError as error:
                given = error
        given = self.broadcast(given)
        if isinstance(given, UserError):
            raise given
        return given

    def all(self, thing: Any) -> list[Any]:
        """What every process gave, in the order of their ranks."""
        if self.size == 1:
            return [thing]
        things: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(things, thing)
        return things

    def barrier(self) -> None:
        """Until every process is here."""
        self.all_reduce_sum([0])


@contextmanager
def init_distributed(device: str = "", alone: bool = True) -> Iterator[World]:
    """This process's place in the world, by the variables that torchrun and deepspeed set; closed again at the end.

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
        torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
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


STOPPED = "stopped after step {}; the same command goes on from there"
STOPPING = "\nstopping: this step ends and a checkpoint is written; Ctrl-C again stops at once\n"


class StopSignal:
    """Whether SIGTERM or Ctrl-C came: a run then writes a checkpoint and ends, instead of dying on the spot. A second
    Ctrl-C ends it at once. interrupted: whether it was Ctrl-C."""

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
        """To be called when the run has stopped: Ctrl-C ends the program as ever."""
        if self.interrupted:
            raise KeyboardInterrupt


def ignore_sigterm_in_worker(_worker: int) -> None:
    """For a data worker: SIGTERM ends it where its parent sent it. One that goes to all processes of a job at once, or
    Ctrl-C, is the parent's to answer, who still needs the worker for the step that it ends with."""
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
