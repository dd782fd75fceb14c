"""From an upright RGB image to the tensor that given weights expect."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

LONGEST = 16
"""No image becomes longer than so many times its short side: a strip would take gigabytes.

Where a square is cut out of it, it loses its ends before it is resized, which would be cut off
anyway; where it is kept whole, it is squashed.
"""
MULTIPLE = 32
"""What `short` rounds sides down to: the coarsest stride of the networks."""

ChannelOrder = Literal["rgb", "bgr"]
Fit = Literal["crop", "squash", "short"]
Interpolation = Literal["bilinear", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """What happens to an image before the network sees it; it belongs to the weights.

    How it gets its size is called `fit`:

    * `crop`: the image is resized until its short side is `resize`, the long side rounded down;
      then a square of `crop` pixels is cut from its centre (offsets at half a pixel round to even,
      as torchvision's do: 288x289 gives rows 16 to 271 and columns 16 to 271);
    * `squash`: the whole image becomes a square of `crop` pixels, whatever its shape;
    * `short`: the whole image keeps its shape; its short side becomes `resize`, and both sides
      are rounded down to a multiple of 32 (400x300 at 512 gives 672x512). `crop` is as `resize`.

    Values become `(v / 255 - mean) / std`, v in 0..255; the authors use neither mean nor std.
    """

    channel_order: ChannelOrder = "rgb"
    fit: Fit = "crop"
    resize: int = 288
    crop: int = 256
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    assumed: tuple[str, ...] = ()
    """Fields that the weights' file did not state, filled by their layout's documented custom."""

    def __post_init__(self) -> None:
        """Refuse what cannot be done.

        Raises:
            ValueError: a crop larger than the resized image, or a value of no meaning.
        """
        if self.fit not in ("crop", "squash", "short"):
            raise ValueError(f"fit must be crop, squash or short, not {self.fit!r}")
        if not 0 < self.crop <= self.resize:
            raise ValueError(f"crop must lie in 1..resize ({self.resize}), not {self.crop}")
        if self.fit == "short" and not MULTIPLE <= self.crop == self.resize:
            raise ValueError(
                f"with fit short, resize and crop must be one number of at least {MULTIPLE}, not "
                f"{self.resize} and {self.crop}"
            )
        if self.channel_order not in ("rgb", "bgr"):
            raise ValueError(f"channel_order must be rgb or bgr, not {self.channel_order!r}")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ValueError(
                f"interpolation must be bilinear or bicubic, not {self.interpolation!r}"
            )

    def at(self, size: int) -> Preprocessing:
        """The same rule for another input size: the margin around the crop keeps its share."""
        return replace(self, crop=size, resize=max(size, round(size * self.resize / self.crop)))

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of this size is framed to."""
        if self.fit != "short":
            return self.crop, self.crop
        short = min(height, width)
        longest = LONGEST * self.resize
        tall, wide = (min(side * self.resize // short, longest) for side in (height, width))
        return tall // MULTIPLE * MULTIPLE, wide // MULTIPLE * MULTIPLE

    def frame(self, image: Image.Image) -> Image.Image:
        """Resize and crop any RGB image, to the pixels that `size` says."""
        mode = v2.InterpolationMode(self.interpolation)
        if self.fit != "crop":
            return TF.resize(image, list(self.size(image.height, image.width)), mode)
        longest = LONGEST * min(image.size)
        if max(image.size) > longest:
            sides = [min(side, longest) for side in (image.height, image.width)]
            image = TF.center_crop(image, sides)
        return TF.center_crop(TF.resize(image, [self.resize], mode), [self.crop, self.crop])

    def to_tensor(self, image: Image.Image) -> Tensor:
        """Values only: an RGB image of H x W pixels to a float32 tensor `[3, H, W]`."""
        return self.normalized(TF.pil_to_tensor(image).to(torch.float32).div_(255))

    def normalized(self, x: Tensor) -> Tensor:
        """What is left to do to RGB values in [0, 1], `[..., 3, H, W]`; `x` is overwritten."""
        if self.channel_order == "bgr":
            x = x.flip(-3)
        if self.mean != (0.0, 0.0, 0.0) or self.std != (1.0, 1.0, 1.0):
            x = TF.normalize(x, list(self.mean), list(self.std), inplace=True)
        return x

    def __call__(self, image: Image.Image) -> Tensor:
        """Frame an RGB image of any size and make it a float32 tensor `[3, H, W]`; see `size`."""
        return self.to_tensor(self.frame(image))
