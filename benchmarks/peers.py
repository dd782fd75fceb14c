"""The same network in other libraries, carrying given weights."""

from __future__ import annotations

from torch import Tensor, nn

from mobilevit.checkpoints.transformers import V1, write_config
from mobilevit.models.config import ModelConfig


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

    config = write_config(ModelConfig(model=variant, num_classes=1000))["config.json"]
    model = MobileViTForImageClassification(MobileViTConfig(**config))
    model.load_state_dict(V1.from_ours(weights))
    return Logits(model)
