"""The same network in other libraries, carrying given weights."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

SIZES = {
    "mobilevit_xxs": {
        "hidden_sizes": [64, 80, 96],
        "neck_hidden_sizes": [16, 16, 24, 48, 64, 80, 320],
        "expand_ratio": 2.0,
    },
    "mobilevit_s": {
        "hidden_sizes": [144, 192, 240],
        "neck_hidden_sizes": [16, 32, 64, 96, 128, 160, 640],
        "expand_ratio": 4.0,
    },
}
"""How transformers describes a variant."""

# Applied in order to each of our names; a stage's number becomes that of transformers below.
RENAMES = (
    (r"^backbone\.stem\.", "mobilevit.conv_stem."),
    (r"^backbone\.stage([12])\.", r"mobilevit.encoder.layer.<\1>.layer."),
    (r"^backbone\.stage([345])\.0\.", r"mobilevit.encoder.layer.<\1>.downsampling_layer."),
    (r"^backbone\.stage([345])\.1\.", r"mobilevit.encoder.layer.<\1>."),
    (r"^expand\.", "mobilevit.conv_1x1_exp."),
    (r"^head\.", "classifier."),
    (r"\.expand\.(conv|norm)\.", r".expand_1x1.\1."),
    (r"\.depthwise\.", ".conv_3x3."),
    (r"\.project\.(conv|norm)\.", r".reduce_1x1.\1."),
    (r"\.local_conv\.", ".conv_kxk."),
    (r"\.local_project\.", ".conv_1x1.conv."),
    (r"\.global_project\.", ".conv_projection."),
    (r"(layer\.<\d>)\.norm\.", r"\1.layernorm."),
    (r"\.transformer\.", ".transformer.layer."),
    (r"\.attention_norm\.", ".layernorm_before."),
    (r"\.feed_forward_norm\.", ".layernorm_after."),
    (r"\.attention\.out\.", ".attention.output.dense."),
    (r"\.feed_forward\.expand\.", ".intermediate.dense."),
    (r"\.feed_forward\.project\.", ".output.dense."),
    (r"\.conv\.(?=weight)", ".convolution."),
    (r"\.norm\.", ".normalization."),
)


class Logits(nn.Module):
    """A transformers classifier that returns logits alone."""

    def __init__(self, model: nn.Module) -> None:
        """Wrap `model`."""
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images to logits."""
        return self.model(images).logits


def timm(variant: str, weights: dict[str, Tensor]) -> nn.Module:
    """timm's network with weights in its own layout."""
    from timm import create_model

    model = create_model(variant)
    model.load_state_dict(weights)
    return model


def transformers(variant: str, weights: dict[str, Tensor]) -> nn.Module:
    """transformers' v1 network with weights in our layout."""
    from transformers import MobileViTConfig, MobileViTForImageClassification

    model = MobileViTForImageClassification(MobileViTConfig(num_labels=1000, **SIZES[variant]))
    model.load_state_dict(_to_transformers(weights))
    return Logits(model)


def _to_transformers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in weights.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        name = re.sub(r"<(\d)>", lambda stage: str(int(stage[1]) - 1), name)
        if ".attention.qkv." in name:
            for part, rows in zip(("query", "key", "value"), torch.chunk(tensor, 3), strict=True):
                result[name.replace(".qkv.", f".attention.{part}.")] = rows
        else:
            result[name] = tensor
    return result
