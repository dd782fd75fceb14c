"""transformers' `preprocessor_config.json`: how images are prepared, read and written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mobilevit.checkpoints.authors import ADE20K_CLASSES
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.models.config import ModelConfig, Preprocessing

log = logging.getLogger(__name__)

Refuse = Callable[[str], CheckpointError]
"""The error that the value under a key of the file is something we cannot do."""

_RESAMPLE = {2: "bilinear", 3: "bicubic"}
"""Pillow's numbers."""


def preprocessing(
    values: Mapping[str, Any], *, fallback: Preprocessing, whole: bool, file: str
) -> Preprocessing:
    """The file's rule as ours.

    Older files give `size` as a number and say `do_flip_channels`; those of 2022 say it for v1 and
    v2.

    Args:
        values: the file's content.
        fallback: the layout's custom, for what the file does not state.
        whole: whether the task is about whole images, as segmentation is: where the file has
            their centre cut out, they are kept whole at the same scale.
        file: what to call the folder in messages.

    Raises:
        CheckpointError: the rule is none that images' preparation here can do.
    """

    def refuse(key: str) -> CheckpointError:
        return CheckpointError(
            f"{file}: {key} = {values[key]!r} in preprocessor_config.json is not something that "
            "images' preparation here can do; it resizes the short side, cuts the centre out "
            "and divides by 255"
        )

    for key, wanted in (("do_resize", True), ("do_rescale", True), ("do_normalize", False)):
        if (value := values.get(key)) is not None and value is not wanted:
            raise refuse(key)
    if abs(values.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-6:
        raise refuse("rescale_factor")
    found = _whole(values, refuse, file) if whole else _frame(values, refuse)
    if (resample := values.get("resample")) is not None:
        if resample not in _RESAMPLE:
            raise refuse("resample")
        found["interpolation"] = _RESAMPLE[resample]
    flip = values.get("do_flip_channel_order", values.get("do_flip_channels"))
    if flip is not None:
        found["channel_order"] = "bgr" if flip else "rgb"
    assumed = tuple(name for name in fallback.assumed if name not in found)
    try:
        return replace(fallback, **found, assumed=assumed)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error


def _frame(values: Mapping[str, Any], refuse: Refuse) -> dict[str, Any]:
    """Those of `resize_mode`, `resize` and `crop` that the file states."""
    if values.get("do_center_crop") is False:
        side = _square(values.get("size"))
        if side is None:
            raise refuse("do_center_crop")
        return {"resize_mode": "stretch", "resize": side, "crop": side}
    found: dict[str, Any] = {}
    if (size := values.get("size")) is not None:
        found["resize"] = _short(size)
        if found["resize"] is None:
            raise refuse("size")
    if (size := values.get("crop_size")) is not None:
        found["crop"] = _square(size) if isinstance(size, Mapping) else size
        if found["crop"] is None:
            raise refuse("crop_size")
    return found


def _whole(values: Mapping[str, Any], refuse: Refuse, file: str) -> dict[str, Any]:
    """The same, where nothing of an image may be cut off."""
    if (size := values.get("size")) is None:
        return {}
    if values.get("do_center_crop") is not False:
        log.info("%s has images' centre cut out; here they are kept whole", file)
    if (side := _short(size)) is not None:
        return {"resize_mode": "shortest_edge", "resize": side, "crop": side}
    if (side := _square(size)) is not None:
        return {"resize_mode": "stretch", "resize": side, "crop": side}
    raise refuse("size")


def _short(size: object) -> int | None:
    """The short side that the file's `size` asks for."""
    side = size.get("shortest_edge") if isinstance(size, Mapping) else size
    return side if isinstance(side, int) else None


def _square(size: object) -> int | None:
    """The side of the square that the file's `size` or `crop_size` asks for."""
    sides = {size.get("height"), size.get("width")} if isinstance(size, Mapping) else {None}
    side = sides.pop()
    return side if not sides and isinstance(side, int) else None


def content(config: ModelConfig) -> dict[str, Any]:
    """The file for a network with this configuration.

    Raises:
        CheckpointError: transformers has no place for a mean or a standard deviation, or prepares
            no images for classification in this way.
    """
    rule = config.preprocessing
    if (rule.mean, rule.std) != ((0.0,) * 3, (1.0,) * 3):
        raise CheckpointError("transformers' processor of MobileViT has no place for mean and std")
    found: dict[str, Any] = {
        "image_processor_type": "MobileViTImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": rule.resize},
        "resample": {name: number for number, name in _RESAMPLE.items()}[rule.interpolation],
        "do_center_crop": rule.resize_mode == "crop",
        "crop_size": {"height": rule.crop, "width": rule.crop},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_flip_channel_order": rule.channel_order == "bgr",
    }
    if rule.resize_mode == "stretch":
        found["size"] = found["crop_size"]
    if config.task == "segmentation":
        # ADE20K's own masks count its classes from 1, and 0 is none of them.
        found["do_reduce_labels"] = config.num_classes == ADE20K_CLASSES
    return found
