"""Image classification: a backbone, a global mean and a linear layer."""

from typing import ClassVar

from torch import Tensor, nn

from mobilevit.models.config import ModelConfig
from mobilevit.models.layers import ConvNormAct
from mobilevit.models.mobilevit import Backbone


class Classifier(nn.Module):
    """A backbone whose last map is averaged over its positions and classified."""

    name: str
    config: ModelConfig
    head_modules: ClassVar[tuple[str, ...]] = ("head",)
    """The modules that fine-tuning trains at the learning rate of new weights."""
    fixed_size: ClassVar[str | None] = None
    """Why an exported graph takes only one image size, if it does."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        channels: int | None,
        classifier_dropout: float,
    ) -> None:
        """`channels`: width of a 1x1 convolution before the mean; None for none, as in v2."""
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {num_classes}")
        self.backbone = backbone
        self.expand = (
            nn.Identity() if channels is None else ConvNormAct(backbone.channels, channels)
        )
        self.dropout = nn.Dropout(classifier_dropout)
        self.head = nn.Linear(channels or backbone.channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `[B, C, H, W]`, values in [0, 1], to logits `[B, num_classes]`."""
        x = self.expand(self.backbone(images)[-1])
        return self.head(self.dropout(x.mean(dim=(2, 3))))
