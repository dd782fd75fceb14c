"""Where the time of a network goes, beside what this processor could do at best.

    python benchmarks/roofline.py [--what training|inference] [--variant NAME] [--size N]
                                  [--batch N] [--precision fp32|bf16] [--rounds N]

Each operation that PyTorch runs is timed on one thread, with its arithmetic (two operations for a
multiply-add) and the bytes of the tensors that it reads and writes. Its floor is the longer of the
two times that these would take at the rates measured first: a large matrix product's, and a large
copy's. One table is by kind of operation, one by stage of the network. Operations that only
describe memory anew, such as `view`, are left out.

A processor keeps small tensors in its caches, so a floor by bytes may be beaten.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from mobilevit.models.fuse import fuse
from mobilevit.models.registry import build
from mobilevit.training.precision import FastKernels
from mobilevit.utils.memory import keep_freed_memory


class Cost(NamedTuple):
    """Seconds, arithmetic operations and bytes of one call or of many."""

    seconds: float
    operations: float
    bytes: float


class Rates(NamedTuple):
    """What the processor does at best, measured."""

    operations: float
    """Per second, in float32."""
    bytes: float
    """Per second, read and written."""

    def floor(self, cost: Cost) -> float:
        """The least seconds of a call."""
        return max(cost.operations / self.operations, cost.bytes / self.bytes)


def measure_rates() -> Rates:
    """The rates of a product of 1024 x 1024 matrices and of a copy of 128 MB."""
    a, b = torch.rand(2, 1024, 1024)
    source = torch.rand(1 << 25)
    target = torch.empty_like(source)
    return Rates(
        operations=2 * 1024**3 / best_time(lambda: a @ b),
        bytes=2 * source.nbytes / best_time(lambda: target.copy_(source)),
    )


def best_time(function: Callable[[], object], repeats: int = 10) -> float:
    """Seconds of the fastest of `repeats` calls."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        function()
        times.append(time.thread_time() - start)
    return min(times)


class Profiler(TorchDispatchMode):
    """Times every operation inside its `with` block, by kind and stage."""

    def __init__(self, stages: dict[str, nn.Module]) -> None:
        """`stages`: modules by the names of their rows; all else is `rest`."""
        super().__init__()
        self.stage = "rest"
        self.calls: list[tuple[str, str, Cost]] = []
        """Kind, stage and cost of each call."""
        for name, module in stages.items():
            module.register_forward_pre_hook(partial(self._enter, name))
            module.register_forward_hook(partial(self._leave, name))

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self.stage = name

    def _leave(self, name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        self.stage = "rest"
        if output.requires_grad:  # the backward pass of a stage begins with its output's gradient
            output.register_hook(lambda gradient: setattr(self, "stage", name))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and note its cost."""
        start = time.thread_time()
        result = func(*args, **(kwargs or {}))
        seconds = time.thread_time() - start
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        if func.is_view or func.overloadpacket.__name__ in IGNORED or not tensors:
            return result
        operations = count_operations(func, args, kwargs, result)
        cost = Cost(seconds, operations, sum(x.nbytes for x in tensors))
        kind = kind_of(func, args)
        self.calls.append((kind, "rest" if kind == "optimizer" else self.stage, cost))
        return result


def kind_of(func: Any, args: Any) -> str:
    """The row of the table that an operation belongs to."""
    name = func.overloadpacket.__name__
    backward = " backward" if "backward" in name else ""
    if "convolution" in name:
        weight = args[2] if backward else args[1]
        if weight.shape[-1] == 1:
            return "1x1 convolution" + backward
        return ("depthwise" if weight.shape[1] == 1 else "3x3") + " convolution" + backward
    if name == "ge":  # of random bits and a probability
        return "dropout"
    for part, kind in KINDS.items():
        if part in name:
            return kind + backward
    return name


IGNORED = ("detach", "empty", "empty_like", "new_empty", "_unsafe_view")
"""Operations that neither read nor write what is in a tensor."""
KINDS = {
    "batch_norm": "batch norm",
    "layer_norm": "layer norm",
    "group_norm": "group norm",
    "silu": "SiLU",
    "scaled_dot_product": "attention",
    "mm": "product",
    "bernoulli": "dropout",
    "random": "dropout",
    "dropout": "dropout",
    "adam": "optimizer",
    "add": "add, multiply",
    "mul": "add, multiply",
    "div": "add, multiply",
    "cat": "copy",
    "copy": "copy",
    "clone": "copy",
}
"""Part of an operation's name -> kind."""


def count_operations(func: Any, args: Any, kwargs: Any, result: Any) -> float:
    """Arithmetic operations of a call: of products exactly, of others one for each element."""
    name = func.overloadpacket.__name__
    if "convolution" in name:
        backward = "backward" in name
        out, weight = (args[0], args[2]) if backward else (result, args[1])
        directions = sum(args[-1][:2]) if backward else 1
        return 2.0 * directions * out.numel() * weight[0].numel()
    if "scaled_dot_product" in name:
        query, key = args[1:3] if "backward" in name else args[:2]
        products = 5 if "backward" in name else 2  # backward computes the scores again
        return 2.0 * products * query.numel() * key.shape[-2]
    if count := flop_registry.get(func.overloadpacket):
        return float(count(*args, **(kwargs or {}), out_val=result))
    return float(
        max((x.numel() for x in tree_leaves((args, result)) if isinstance(x, Tensor)), default=0)
    )


def make_step(options: argparse.Namespace) -> tuple[Any, Callable[[], None]]:
    """The network, and what is profiled: inference when fused, or a training step."""
    images = torch.rand(options.batch, 3, options.size, options.size)
    network: Any = build(options.variant)

    @contextmanager
    def autocast() -> Iterator[None]:
        """What `mobilevit train --precision bf16` computes in."""
        bf16 = options.precision == "bf16"
        with (
            torch.autocast("cpu", torch.bfloat16, bf16),
            FastKernels() if bf16 else nullcontext(),
        ):
            yield

    if options.what == "inference":
        network = fuse(network)

        def infer() -> None:
            with torch.inference_mode(), autocast():
                network(images)

        return network, infer
    labels = torch.randint(1000, (options.batch,))
    optimizer = torch.optim.AdamW(network.train().parameters(), lr=1e-4, fused=True)

    def train() -> None:
        optimizer.zero_grad()
        with autocast():
            loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()

    return network, train


def profile(network: Any, step: Callable[[], None], rounds: int) -> list[tuple[str, str, Cost]]:
    """Kind, stage and cost of each call of a step; seconds are medians over rounds."""
    names = ("stem", "stage1", "stage2", "stage3", "stage4", "stage5")
    profiler = Profiler({name: network.backbone.get_submodule(name) for name in names})
    runs = []
    for index in range(rounds + 2):  # the first two warm up
        profiler.calls = []
        with profiler:
            step()
        if index >= 2:
            runs.append(profiler.calls)
    return [
        (kind, stage, cost._replace(seconds=statistics.median(run[i][2].seconds for run in runs)))
        for i, (kind, stage, cost) in enumerate(runs[0])
    ]


def with_others(rows: dict[str, list[Cost]], share: float = 0.005) -> dict[str, list[Cost]]:
    """The same with all rows of less than a share of the time in one, `others`."""
    times = {name: sum(cost.seconds for cost in costs) for name, costs in rows.items()}
    found: dict[str, list[Cost]] = defaultdict(list)
    for name, costs in rows.items():
        found[name if times[name] > share * sum(times.values()) else "others"] += costs
    return found


def print_table(title: str, rows: dict[str, list[Cost]], rates: Rates) -> None:
    """One row a key, the longest first, then their sum."""
    every = [cost for row in rows.values() for cost in row]
    total = sum(cost.seconds for cost in every)
    print(f"\n{title:<32}{'ms':>9}{'share':>8}{'GFLOP':>9}{'GB':>8}{'floor ms':>10}{'ratio':>7}")
    ordered = sorted(rows.items(), key=lambda row: -sum(cost.seconds for cost in row[1]))
    for name, costs in [*ordered, ("all", every)]:
        seconds = sum(cost.seconds for cost in costs)
        floor = sum(map(rates.floor, costs))
        print(
            f"{name:<32}{1e3 * seconds:9.1f}{seconds / total:8.1%}"
            f"{sum(cost.operations for cost in costs) / 1e9:9.2f}"
            f"{sum(cost.bytes for cost in costs) / 1e9:8.2f}"
            f"{1e3 * floor:10.1f}{seconds / floor if floor else 0:7.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Where the time of a network goes.")
    parser.add_argument("--what", choices=["training", "inference"], default="training")
    parser.add_argument("--variant", default="mobilevit_xxs")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rates = measure_rates()
    with keep_freed_memory():  # as `mobilevit train` and `predict` do
        calls = profile(*make_step(options), options.rounds)
    print(
        f"{options.what}, {options.variant}, {options.size} px, batch {options.batch}, "
        f"{options.precision}; one thread at {rates.operations / 1e9:.0f} GFLOP/s and "
        f"{rates.bytes / 1e9:.1f} GB/s"
    )
    for title, column in (("operation", 0), ("stage", 1)):
        rows = defaultdict(list)
        for call in calls:
            rows[call[column]].append(call[2])
        print_table(title, with_others(rows), rates)


if __name__ == "__main__":
    main()
