"""Batch norm folded into convolutions for inference, with the same outputs."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobilevit.models.layers import ConvNormAct

Network = TypeVar("Network", bound=nn.Module)


def fuse(model: Network) -> Network:
    """Copy a network for inference: evaluation mode, no gradients, no batch norm.

    The copy gives the outputs of `model.eval()` within float rounding, in less time; it cannot
    be trained further. The original does not change.

    >>> from mobilevit import create_model
    >>> fuse(create_model("mobilevit_xxs")).training
    False
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, ConvNormAct) and isinstance(module.norm, nn.BatchNorm2d):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm).requires_grad_(False)
            module.norm = nn.Identity().eval()
    return model.to(memory_format=torch.channels_last)
