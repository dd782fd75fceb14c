"""Fold batch norm into convolutions for inference."""

import copy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mobilevit.models.layers import ConvNormAct, FeedForward

Network = TypeVar("Network", bound=nn.Module)


def fuse(model: Network) -> Network:
    """Copy a network for inference, with batch norm folded into the convolutions.

    The copy is faster, in evaluation mode, and cannot be trained further. Its outputs are those of
    `model.eval()` within float rounding. Its activations work in place: what forward hooks see is
    overwritten later.

    >>> from mobilevit import create_model
    >>> fuse(create_model("mobilevit_xxs")).training
    False
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, ConvNormAct | FeedForward):
            module.inplace = True
        if isinstance(module, ConvNormAct) and isinstance(module.norm, _BatchNorm):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm).requires_grad_(False)
            module.norm = nn.Identity().eval()
    return model.to(memory_format=torch.channels_last)


def is_fused(model: nn.Module) -> bool:
    """Whether a network has no batch norm of any class, as after `fuse`."""
    return not any(isinstance(module, _BatchNorm) for module in model.modules())
