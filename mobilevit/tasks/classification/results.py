"""Predictions of classifiers."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from mobilevit.tasks.results import Prediction, Predictions
from mobilevit.tasks.visualize import draw_classes

DRAWN = 3
"""Classes written under a drawn image, at most."""
CONTACT_SHEET = 5
"""Classes of an image on a contact sheet."""


class ClassProbability(NamedTuple):
    """A class and its probability, in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassificationPrediction(Prediction):
    """The classes of one image."""

    logits: np.ndarray | None = None
    """Float32 `[K]`; None where the image could not be read."""
    listed: int = 5
    """Classes that texts and files list."""

    @property
    def probabilities(self) -> np.ndarray:
        """Of each class, float32 `[K]`; ImageError if the image could not be read."""
        self.check()
        return torch.as_tensor(self.logits).softmax(-1).numpy()

    def top(self, count: int) -> list[ClassProbability]:
        """The most probable classes, in order; ImageError if the image could not be read."""
        probabilities = self.probabilities
        assert self.logits is not None
        # By logits: where they differ by 100 or more, float32 probabilities are 0 alike.
        order = np.argsort(-self.logits, kind="stable")[:count]
        return [ClassProbability(self.classes[k], float(probabilities[k])) for k in order]

    def to_json(self) -> dict[str, Any]:
        return {
            "predictions": [
                {"class": name, "probability": round(probability, 6)}
                for name, probability in self.top(self.listed)
            ]
        }

    def csv_rows(self) -> list[dict[str, str]]:
        row: dict[str, str] = {}
        for rank, (name, probability) in enumerate(self.top(self.listed), start=1):
            row |= {f"class_{rank}": name, f"probability_{rank}": f"{probability:.6f}"}
        return [row]

    def table_row(self) -> tuple[str, ...]:
        first, *others = self.top(self.listed)
        rest = ", ".join(f"{name} {probability:.1%}" for name, probability in others)
        return first.name, f"{first.probability:.1%}", rest

    def parquet_row(self) -> dict[str, Any]:
        names, probabilities = zip(*self.top(self.listed), strict=True)
        return {
            "class": names[0],
            "probability": probabilities[0],
            "classes": list(names),
            "probabilities": list(probabilities),
        }

    def scores(self) -> list[ClassProbability]:
        return self.top(CONTACT_SHEET)

    def draw(self, image: Image.Image) -> Image.Image:
        return draw_classes(image, self.top(min(DRAWN, self.listed)))


@dataclass(frozen=True, kw_only=True)
class ClassificationPredictions(Predictions[ClassificationPrediction]):
    """The classes of several images."""

    task = "classification"
    table_columns = ("image", "class", "probability", "others")

    def top(self, count: int) -> list[ClassProbability]:
        """The most probable classes of the only image; ValueError if there are several."""
        if len(self.items) != 1:
            raise ValueError(f"{len(self.items)} images: select one, such as predictions[0].top(5)")
        return self.items[0].top(count)
