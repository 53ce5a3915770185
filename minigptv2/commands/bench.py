"""`minigptv2 bench`: throughput of this machine, against a plain baseline measured in the same run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

from minigptv2.commands.options import BASE_HELP, MODEL_HELP, accept_old_name, whole_number


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=tuple(BENCHES), help="; ".join(f"{k}: {v.help}" for k, v in BENCHES.items()))
    parser.add_argument("--model", metavar="FOLDER", help=MODEL_HELP)
    parser.add_argument("--base", metavar="FOLDER", help=BASE_HELP)
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument(
        "--dtype",
        help="float32 or bfloat16; for eval also float16 (default: for train the fastest of this device, for eval as "
        "minigptv2 chat)",
    )
    images = parser.add_argument(
        "--images",
        type=whole_number(1),
        metavar="N",
        help="number of images to measure with (default: 40 for eval, 24 for train)",
    )
    accept_old_name(parser, "--pictures", images)


def run(args: argparse.Namespace) -> None:
    BENCHES[args.what].run(args)


def _bench_eval(args: argparse.Namespace) -> None:
    from minigptv2.bench.eval import run

    run(args.model, args.device, args.dtype, args.images or 40, args.base)


def _bench_train(args: argparse.Namespace) -> None:
    from functools import partial

    from minigptv2.bench.train import bench_cache, bench_data, bench_loop, bench_packing, dtype_of
    from minigptv2.bundled import model_folder
    from minigptv2.train.distributed import training_device

    device, dtype = str(training_device(args.device or "")), dtype_of(args.dtype)
    model, count = model_folder(args.model or "bundled"), args.images or 24
    print("| ours against the baseline | samples/s | baseline | ratio |\n|---|---|---|---|")
    base = None if args.base is None else model_folder(args.base, "base")
    steps = (partial(bench, device=device, dtype=dtype) for bench in (bench_cache, bench_packing, bench_loop))
    for measure in (bench_data, *steps):
        found = measure(model, count, base=base)
        print(f"| {found.what} | {found.rate:.2f} | {found.plain:.2f} | {found.ratio:.3f} |", flush=True)


@dataclass(frozen=True)
class Bench:
    """help: what is measured. run: measures and prints."""

    help: str
    run: Callable[[argparse.Namespace], None]


BENCHES: dict[str, Bench] = {
    "train": Bench(
        "what packing, the feature cache, the data pipeline and the training loop gain or cost", _bench_train
    ),
    "eval": Bench("expressions per second, against one question at a time", _bench_eval),
}
