"""`mobilevit demo`: train, evaluate and predict in minutes, on images of a dependency."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mobilevit.commands.evaluate import evaluate
from mobilevit.commands.predict import predict
from mobilevit.data.options import DataOptions
from mobilevit.tasks.classification.metrics import ClassificationMetrics
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.results import ClassificationPredictions
from mobilevit.tasks.classification.transforms import AugmentOptions
from mobilevit.tasks.results import Evaluation
from mobilevit.training.errors import TrainingError
from mobilevit.training.options import OptimOptions, SamplerOptions, TrainOptions
from mobilevit.training.train import train

SIZE = 64
"""Side in pixels of the enlarged 8x8 digits."""
VAL_EVERY = 5
"""Of each class, one digit in this many is held out."""
SHOWN = 10
"""Images to predict at the end, one of each class."""


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The demo's results."""

    folder: Path
    evaluation: Evaluation[ClassificationMetrics]
    predictions: ClassificationPredictions

    def __str__(self) -> str:
        run = self.folder / "run"
        return (
            f"{self.evaluation}\n{self.predictions}\n\n"
            f"{self.evaluation.metrics.top1:.2%} of {self.evaluation.metrics.images} unseen "
            "digits are correct.\n"
            f"  the run:          {run / 'report.html'}\n"
            f"  the model:        {run / 'model'}\n"
            f"  images, drawn:    {self.folder / 'predictions'}\n"
            "Now with your own, in one folder per class:\n"
            "  mobilevit train --data.root PHOTOS --out runs/photos"
        )


def demo(*, out: str = "demo", epochs: int = 18, seed: int = 0) -> DemoResult:
    """Train, evaluate and use an XXS on handwritten digits: two to three minutes on two cores.

    The 1,797 digits come with scikit-learn; no network is needed.

    Args:
        out: folder to write everything to; must be new or empty.
        epochs: how often every digit is seen.
        seed: of everything that is random.

    Raises:
        TrainingError: `out` is not empty.
    """
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise TrainingError(f"{folder} is not empty; remove it, or choose another --out")
    images = _write_digits(folder / "digits")
    train(
        TrainOptions(
            model="mobilevit_xxs",
            data=DataOptions(root=str(images)),
            out=str(folder / "run"),
            epochs=epochs,
            size=SIZE,
            batch_size=32,
            sampler=SamplerOptions(min_size=48, max_size=80, multiple=16),
            task_options=ClassificationOptions(
                augment=AugmentOptions(scale=(0.6, 1.0), flip=0.0)  # a mirrored digit is no digit
            ),
            optim=OptimOptions(lr=0.003),
            seed=seed,
        )
    )
    model = folder / "run" / "model"
    evaluation = evaluate(model, data=DataOptions(root=str(images)))
    firsts = [sorted(digit.iterdir())[0] for digit in sorted((images / "val").iterdir())]
    predictions = predict(model, *firsts[:SHOWN], out=str(folder / "predictions"), top=3)
    return DemoResult(folder=folder, evaluation=evaluation, predictions=predictions)


def _write_digits(folder: Path) -> Path:
    """Write the digits as PNG files, `train/3/0123.png`; return the folder."""
    digits = load_digits()
    seen = [0] * 10
    for number, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "val" if seen[label] % VAL_EVERY == 0 else "train"
        seen[label] += 1
        small = Image.fromarray(np.uint8(values * 255 / 16))
        file = folder / split / str(label) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        small.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(file)
    return folder
