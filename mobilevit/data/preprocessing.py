"""From an upright RGB image to the tensor that a model's weights expect."""

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from mobilevit.models.config import MAX_ASPECT_RATIO, Preprocessing


def frame_image(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """Resize and crop an RGB image to `preprocessing.size(height, width)`."""
    mode = v2.InterpolationMode(preprocessing.interpolation)
    if preprocessing.resize_mode != "crop":
        return TF.resize(image, list(preprocessing.size(image.height, image.width)), mode)
    longest = MAX_ASPECT_RATIO * min(image.size)
    if max(image.size) > longest:  # what the crop would cut off need not be resized
        sides = [min(side, longest) for side in (image.height, image.width)]
        image = TF.center_crop(image, sides)
    crop = preprocessing.crop
    return TF.center_crop(TF.resize(image, [preprocessing.resize], mode), [crop, crop])


def image_to_tensor(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """An RGB image as `[3, H, W]`: normalized float32, or uint8 if `preprocessing.as_pixels`."""
    pixels = TF.pil_to_tensor(image)
    if preprocessing.as_pixels:
        return pixels
    return normalize(pixels.to(torch.float32).div_(255), preprocessing)


def normalize(x: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Apply channel order, mean and std to RGB in [0, 1], `[..., 3, H, W]`; may change `x`."""
    if preprocessing.channel_order == "bgr":
        x = x.flip(-3)
    mean, std = list(preprocessing.mean), list(preprocessing.std)
    if mean != [0.0] * 3 or std != [1.0] * 3:
        x = TF.normalize(x, mean, std, inplace=True)
    return x


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> Tensor:
    """Resize, crop and normalize an RGB image of any size: a tensor `[3, H, W]`.

    >>> preprocess(Image.new("RGB", (400, 300)), Preprocessing()).shape
    torch.Size([3, 256, 256])
    """
    return image_to_tensor(frame_image(image, preprocessing), preprocessing)
