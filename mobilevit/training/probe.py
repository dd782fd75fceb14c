"""Whether a network trains at every size of a schedule, found out before the first step."""

import copy
import itertools
from collections.abc import Collection
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from mobilevit.data.sampler import MultiScaleSchedule
from mobilevit.models.registry import Network
from mobilevit.training.errors import TrainingError

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
"""What torch's errors say, on a GPU and on a CPU."""


def check_batch_norms(
    network: Network, schedule: MultiScaleSchedule, *, epochs: int, freeze_backbone: bool
) -> None:
    """Raise TrainingError if a batch norm would see a single value per channel in some step.

    That takes a batch of one image, at a size for which a map has a single pixel.
    """
    steps = {step for epoch in range(epochs) for step in schedule.epoch(epoch)}
    sizes = sorted({step.height for step in steps if step.batch_size == 1})
    if not sizes:
        return
    network = copy.deepcopy(network).to("meta").train()  # shapes alone
    if freeze_backbone:
        network.backbone.eval()
    for size in sizes:
        if layer := _single_value_layer(network, size):
            raise TrainingError(
                f"a batch of one image of {size} px cannot train {network.name}: the batch norm "
                f"{layer} would have a single value per channel. {_more_images(schedule, sizes)}"
            )


def _single_value_layer(network: Network, size: int) -> str:
    """The batch norm that fails on one image of this size; empty if none does."""
    reached: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(lambda *_, name=name: reached.append(name))
    try:
        with torch.no_grad():
            network(torch.empty(1, 3, size, size, device="meta"))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        return reached[-1]
    return ""


def _more_images(schedule: MultiScaleSchedule, sizes: Collection[int]) -> str:
    if schedule.samples == 1:
        return "There is one training image in this process: add more"
    enough = next(
        batch
        for batch in itertools.count(schedule.base_batch + 1)
        if all(replace(schedule, base_batch=batch).batch_size(size) > 1 for size in sizes)
    )
    return f"Give a batch_size of at least {enough}, or a smaller sampler.max_size"


def check_memory(
    network: nn.Module, schedule: MultiScaleSchedule, context: AbstractContextManager[None]
) -> None:
    """Run the largest batches forward and backward; TrainingError if memory runs out.

    The network and the random numbers stay as they are. `context` is that of mixed precision.
    """
    area = max(schedule.sizes, key=lambda size: schedule.batch_size(size) * size**2)
    buffers = [buffer.clone() for buffer in network.buffers()]
    device = next(network.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), context:
        for size in sorted({max(schedule.sizes), area}, reverse=True):
            batch = schedule.batch_size(size)
            halves = [batch >> shift for shift in range(batch.bit_length())]
            fits = next((count for count in halves if _fits(network, count, size)), 0)
            if fits < batch:
                base = schedule.base_batch * fits // batch
                hint = f"batch_size {base} fits" if base else "not even one image fits"
                raise TrainingError(
                    f"{batch} images of {size} px, the largest batch of this run, need more memory "
                    f"than there is: {hint}; or give a smaller sampler.max_size"
                )
    for buffer, before in zip(network.buffers(), buffers, strict=True):
        buffer.copy_(before)


def _fits(network: nn.Module, count: int, size: int) -> bool:
    parameters = [one for one in network.parameters() if one.requires_grad]
    try:
        images = torch.rand(count, 3, size, size, device=parameters[0].device)
        outputs = [one.float().square().mean() for one in tree_leaves(network(images))]
        torch.autograd.grad(torch.stack(outputs).sum(), parameters, allow_unused=True)
    except RuntimeError as error:
        if not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        return False
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True
