"""Time MobileViT against timm's and transformers' networks of the same weights.

    python benchmarks/speed.py [--what inference|training] [--rounds N]
                               [--setting VARIANT SIZE BATCH] [--optimize] [--json FILE]
    python benchmarks/speed.py --device cuda [--precision bf16] [--compile] [--cuda_graphs]

All networks run in one process, on one thread; each round runs each of them once, in a new order,
so that a change in the machine's speed affects all of them. The table has the median time, and how
many times as long as ours the others took: median and quartiles of the rounds' ratios. Times are of
the processor, the system's work for the process included; on a GPU, its own clock's. There the
table also has the peak memory of a step beyond what is held between steps.

`--optimize` adds ours in the fastest of the runtimes that `mobilevit.optimize` tries.

On a CPU each network runs in two processes, in turns. One returns freed memory to the system, as
PyTorch comes; the other keeps it for the next tensors, as `mobilevit train` and `predict` do.
"auto" is `--precision auto`. On a GPU, float32 is multiplied in TensorFloat-32 and cuDNN searches
for its fastest algorithms, as `train` has it, for all networks. `--precision bf16` trains by
autocast and runs inference on weights in bf16. `--compile` and `--cuda_graphs` add the networks
compiled by torch, and inference (of both) captured as CUDA graphs, whose memory is not counted.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import peers
import torch
from harness import Ratio, Step, gpu_seconds, measure
from torch import nn
from torch.nn import functional as F

from mobilevit.checkpoints.timm import V1, V2
from mobilevit.exports.optimize import optimize
from mobilevit.models.fuse import fuse
from mobilevit.models.registry import build
from mobilevit.training.precision import FastKernels, choose_precision
from mobilevit.utils.devices import compute_device, training_precision, use_threads
from mobilevit.utils.memory import keep_freed_memory

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Setting(NamedTuple):
    """A variant on a batch of square images."""

    variant: str
    size: int
    batch: int

    @property
    def is_v2(self) -> bool:
        return self.variant.startswith("mobilevitv2")


INFERENCE = [
    Setting(variant, 256, batch)
    for variant in ("mobilevit_xxs", "mobilevit_s")
    for batch in (1, 16)
]
TRAINING = [Setting("mobilevit_xxs", 192, 32), Setting("mobilevit_s", 256, 8)]
INFERENCE_ON_GPU = [
    Setting(variant, 256, batch)
    for variant in ("mobilevit_xxs", "mobilevit_s", "mobilevitv2_100")
    for batch in (1, 128)
]
TRAINING_ON_GPU = [
    Setting("mobilevit_xxs", 192, 256),
    Setting("mobilevit_s", 256, 128),
    Setting("mobilevitv2_100", 256, 128),
]


def inference(setting: Setting, options: argparse.Namespace) -> dict[str, Step]:
    """What each network does in one round, by its name."""
    weights = build(setting.variant).state_dict()
    ours = build(setting.variant).eval()
    ours.load_state_dict(weights)
    timm = timm_network(setting, weights).eval()
    networks: dict[str, nn.Module] = {
        "ours, fused": fuse(ours),
        "ours": ours,
        "timm": timm,
        "timm, channels-last": copy.deepcopy(timm).to(memory_format=torch.channels_last),
    }
    if not setting.is_v2:
        networks["transformers"] = peers.transformers(setting.variant, weights).eval()
    images = torch.rand(setting.batch, 3, setting.size, setting.size)
    check_equal(networks, images)
    place = {"device": options.device, "dtype": DTYPES[options.precision]}
    images = images.to(**place)

    def step(network: Callable[[torch.Tensor], object]) -> Step:
        def run() -> None:
            with torch.inference_mode():
                network(images)

        return run

    steps = {name: step(network.to(**place)) for name, network in networks.items()}
    if options.optimize:
        optimized = optimize(
            ours, sizes=[setting.size], batch_size=setting.batch, formats=("onnx", "openvino")
        )
        print(optimized)
        steps["ours, optimized"] = step(optimized)
    if options.compile:
        compiled = {name: torch.compile(network) for name, network in networks.items()}
        steps |= {f"{name}, compiled": step(network) for name, network in compiled.items()}
    if options.cuda_graphs:
        steps |= {f"{name}, graph": captured(step) for name, step in steps.items()}
    return steps


def training(setting: Setting, options: argparse.Namespace) -> dict[str, Step]:
    """As `inference`: a step is forward, cross-entropy, backward and AdamW's update."""
    weights = build(setting.variant).state_dict()
    ours = build(setting.variant)
    ours.load_state_dict(weights)
    timm = timm_network(setting, weights)  # it has no dropout
    channels_last = copy.deepcopy(timm).to(memory_format=torch.channels_last)
    networks: dict[str, nn.Module] = {
        "ours": ours.eval(),
        "timm": timm.eval(),
        "timm, channels-last": channels_last.eval(),
    }
    images = torch.rand(setting.batch, 3, setting.size, setting.size)
    labels = torch.randint(1000, (setting.batch,))
    check_equal(networks, images)
    if options.compile:
        for name, network in list(networks.items()):
            networks[f"{name}, compiled"] = copy.deepcopy(network)
            networks[f"{name}, compiled"].compile()
    images, labels = images.to(options.device), labels.to(options.device)
    if (precision := choose_precision(options.device)[0]) != options.precision:
        networks[f"ours, auto ({precision})"] = copy.deepcopy(ours)

    def step(name: str, network: nn.Module) -> Step:
        bf16 = (precision if "auto" in name else options.precision) == "bf16"
        mixed = torch.autocast(options.device.type, torch.bfloat16, bf16)
        # As `mobilevit train` has it.
        ours = options.device.type == "cpu" and "ours" in name and "compiled" not in name
        kernels = FastKernels() if bf16 and ours else nullcontext()
        network.to(options.device).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.01, fused=True)

        def run() -> None:
            optimizer.zero_grad()
            with mixed, kernels:
                loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()

        return run

    steps = {name: step(name, network) for name, network in networks.items()}
    return steps


STEPS = {"inference": inference, "training": training}
BASELINES = ("ours, fused, memory kept", "ours, memory kept", "ours, fused", "ours")
"""The first of these that was run."""


def timm_network(setting: Setting, weights: dict[str, torch.Tensor]) -> nn.Module:
    """timm's network with weights in our layout."""
    return peers.timm(setting.variant, (V2 if setting.is_v2 else V1).from_ours(weights))


def check_equal(networks: dict[str, nn.Module], images: torch.Tensor) -> None:
    """Raise `AssertionError` unless all networks give the same logits in float32."""
    with torch.inference_mode():
        logits = {name: network(images[:8]) for name, network in networks.items()}
    expected = logits["timm"]
    for name, found in logits.items():
        error = ((found - expected).abs().max() / expected.std()).item()
        assert error < 1e-4, f"{name} differs from timm by {error:.1e} of the logits' deviation"


def captured(step: Step) -> Step:
    """A CUDA graph of a step; `step` has to live as long, since its tensors are in the graph."""
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):  # what happens only in first runs is not captured
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def peak_memory(step: Step) -> int:
    """Bytes of GPU memory that a step takes at most, beyond those that are held before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@contextmanager
def worker(keep: bool, *job: Any) -> Iterator[dict[str, Step]]:
    """Steps that run in a process of their own, and return their seconds of processor time."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, keep, *job), daemon=True)
    process.start()
    theirs.close()

    def ask(name: str | None) -> Any:
        ours.send(name)
        return ours.recv()

    yield {name: partial(ask, name) for name in ours.recv()}
    ours.send(None)
    process.join()


def serve(connection: Connection, keep: bool, what: str, *job: Any) -> None:
    """Send the names of the steps, then their seconds, by name."""
    torch.manual_seed(0)
    with use_threads(1), keep_freed_memory(keep):
        steps = STEPS[what](*job)
        connection.send(list(steps))
        for name in iter(connection.recv, None):
            start = time.process_time()
            steps[name]()
            connection.send(time.process_time() - start)


def time_steps(
    what: str, setting: Setting, options: argparse.Namespace
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each step in each round, and on a GPU the bytes that it takes."""
    if options.device.type == "cuda":
        steps = STEPS[what](setting, options)
        seconds = measure(steps, options.rounds, timer=gpu_seconds)
        return seconds, {name: peak_memory(step) for name, step in steps.items()}
    job = what, setting, options
    with worker(False, *job) as usual, worker(True, *job) as kept:
        steps = usual | {f"{name}, memory kept": step for name, step in kept.items()}
        return measure(steps, options.rounds, timer=lambda step: step()), {}


def compare(setting: Setting, seconds: dict[str, list[float]]) -> list[dict]:
    """One row a contestant: its median time, and the ratio to ours with its quartiles."""
    baseline = next(name for name in BASELINES if name in seconds)
    rows = []
    for name, times in seconds.items():
        low, middle, high = Ratio.of(times, seconds[baseline])
        rows.append(
            {
                **setting._asdict(),
                "network": name,
                "milliseconds": 1e3 * statistics.median(times),
                "ratio": middle,
                "ratio_quartiles": [low, high],
            }
        )
    return rows


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time MobileViT against timm and transformers.")
    parser.add_argument("--what", choices=["inference", "training"], help="default: both")
    parser.add_argument("--rounds", type=int, default=30, help="how often each network runs")
    parser.add_argument("--json", type=Path, help="also write the table's numbers to this file")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--optimize", action="store_true", help="also by mobilevit.optimize")
    parser.add_argument("--compile", action="store_true", help="also compiled networks")
    parser.add_argument("--cuda_graphs", action="store_true", help="also inference as CUDA graphs")
    parser.add_argument(
        "--setting",
        nargs=3,
        action="append",
        metavar=("VARIANT", "SIZE", "BATCH"),
        help="in place of the usual ones, such as mobilevit_s 256 1; can be repeated",
    )
    options = parser.parse_args(arguments)
    if options.rounds < 2:
        parser.error("--rounds must be at least 2, for quartiles")
    try:
        options.device = compute_device(options.device)
        settings = options.setting or []
        options.setting = [Setting(name, int(size), int(batch)) for name, size, batch in settings]
    except ValueError as error:
        parser.error(str(error))
    if options.cuda_graphs and options.device.type != "cuda":
        parser.error("--cuda_graphs needs --device cuda")
    if options.optimize and (options.device.type, options.precision) != ("cpu", "fp32"):
        parser.error("--optimize is for float32 on the CPU")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.manual_seed(0)
    with use_threads(1), training_precision(options.device):
        torch.backends.cudnn.benchmark = True
        run(options)


def run(options: argparse.Namespace) -> None:
    """Measure, and print a table for each setting."""
    on_gpu = options.device.type == "cuda"
    plan = {
        "inference": INFERENCE_ON_GPU if on_gpu else INFERENCE,
        "training": TRAINING_ON_GPU if on_gpu else TRAINING,
    }
    rows = []
    if on_gpu:
        print(torch.cuda.get_device_name(options.device))
    for what, settings in plan.items():
        if options.what not in (None, what):
            continue
        for setting in options.setting or settings:
            if options.compile:
                torch.compiler.reset()  # torch compiles a function a limited number of times
            seconds, peaks = time_steps(what, setting, options)
            print(
                f"\n{what}: {setting.variant}, {setting.size} px, batch {setting.batch}, "
                f"{options.precision}"
            )
            print(f"{'':36}{'median':>12}{'ratio':>8}  quartiles")
            for row in compare(setting, seconds):
                low, high = row["ratio_quartiles"]
                peak = peaks.get(row["network"])
                print(
                    f"{row['network']:36}{row['milliseconds']:9.2f} ms{row['ratio']:8.2f}"
                    f"  {low:.2f} to {high:.2f}{f'{peak / 1e6:10.1f} MB' if peak else ''}",
                    flush=True,
                )
                rows.append({"what": what, "precision": options.precision, **row, "peak": peak})
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
