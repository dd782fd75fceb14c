"""Layer norms that need no mean, scale or shift of their own: other layers' weights hold them.

The mean of a token's values reaches nothing but norms, which take it off again; so it is taken off
the weights that make the values. What is left of a norm is a division by the root of a mean square.
"""

from __future__ import annotations

import torch
from torch import nn

# In float64: rounding adds up over the layers.


@torch.no_grad()
def centre(writing: nn.Linear) -> None:
    """Make the mean of a layer's outputs zero, as the norms that read them would."""
    weight = writing.weight.double()
    writing.weight.copy_(weight - weight.mean(dim=0))
    if writing.bias is not None:
        bias = writing.bias.double()
        writing.bias.copy_(bias - bias.mean())


@torch.no_grad()
def absorb(norm: nn.LayerNorm, following: nn.Linear) -> None:
    """Multiply a norm's scale and shift into the layer that follows, which gets a bias."""
    weight = following.weight.double()
    bias = weight @ norm.bias.double()
    if following.bias is not None:
        bias += following.bias
    following.weight.copy_(weight * norm.weight.double())
    following.bias = nn.Parameter(bias.to(following.weight.dtype), requires_grad=False)
