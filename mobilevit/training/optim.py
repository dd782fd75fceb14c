"""AdamW or SGD, with the paper's learning-rate curve."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW

from mobilevit.models.registry import Network
from mobilevit.training.options import OptimOptions

MAX_WARMUP_STEPS = 3000
"""Warm-up steps at most: the authors' number on ImageNet."""
WARMUP_START = 0.1
"""Where the warm-up starts, as a share of the peak rate (the authors: 0.0002 of 0.002)."""


def rate_factor(steps: int, options: OptimOptions) -> Callable[[int], float]:
    """The learning rate at each of `steps` optimizer steps, as a share of its peak.

    Linear from a tenth to one during warm-up, then a cosine down to `final_lr`.
    """
    warmup = min(round(options.warmup * steps), MAX_WARMUP_STEPS)

    def factor(step: int) -> float:
        if step < warmup:
            return WARMUP_START + (1 - WARMUP_START) * step / warmup
        done = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
        return options.final_lr + (1 - options.final_lr) * (1 + math.cos(math.pi * done)) / 2

    return factor


def parameter_groups(model: Network, options: OptimOptions) -> list[dict[str, Any]]:
    """Trainable parameters by learning rate and weight decay.

    The head, which may have its own learning rate, is `model.head_modules`: the last layer of a
    classifier, and all that follows the backbone in other tasks.
    """
    assert options.lr is not None
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decayed = options.decay_norms or parameter.ndim > 1
            in_head = name.partition(".")[0] in model.head_modules
            groups.setdefault((in_head, decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": options.lr * (options.head_lr or 1.0 if in_head else 1.0),
            "weight_decay": options.weight_decay if decayed else 0.0,
        }
        for (in_head, decayed), parameters in groups.items()
    ]


def optimizer_of(model: Network, options: OptimOptions, *, scaled: bool = False) -> AdamW | SGD:
    """The optimizer of the trainable parameters.

    It is fused, unless the loss is `scaled`, as in float16: a fused optimizer removes the scale
    within the step, too late to check the gradient.
    """
    groups = parameter_groups(model, options)
    if options.name == "sgd":
        return SGD(groups, momentum=options.momentum, fused=not scaled)
    return AdamW(groups, fused=not scaled)


def averaged(decay: float) -> Callable[[list[torch.Tensor], list[torch.Tensor], int], None]:
    """An exponential moving average for `torch.optim.swa_utils.AveragedModel`, buffers included.

    The decay grows from 2/11 as (1 + n) / (10 + n), so that the initial weights do not dominate a
    short run. Integer buffers are counters: they are copied.
    """

    @torch.no_grad()
    def update(averages: list[torch.Tensor], values: list[torch.Tensor], count: int) -> None:
        if not averages[0].is_floating_point():
            for average, value in zip(averages, values, strict=True):
                average.copy_(value)
            return
        n = int(count)
        torch._foreach_lerp_(averages, values, 1 - min(decay, (1 + n) / (10 + n)))

    return update
