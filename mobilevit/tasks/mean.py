"""`Mean`: a figure of training, averaged over an epoch."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """A mean over the images of batches of any length; NaN without any.

    Torchmetrics' own either waits for the GPU at each step, to look for NaN, or ignores weights.
    """

    def __init__(self, *, persistent: bool = False) -> None:
        """`persistent`: in checkpoints, so that a resumed epoch counts in full."""
        super().__init__()
        self.total: Tensor
        self.images: Tensor
        self.add_state("total", torch.tensor(0.0), "sum", persistent)
        self.add_state("images", torch.tensor(0.0), "sum", persistent)

    def update(self, value: Tensor, images: Tensor | int) -> None:
        self.total += value * images
        self.images += images

    def compute(self) -> Tensor:
        return self.total / self.images
