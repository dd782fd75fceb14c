"""`Task`: everything that differs between classification, detection and segmentation.

The rest of the package uses `get_task(model.config.task)`, and never checks which task it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields, replace
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeVar,
)

import torch
from rich.console import RenderableType
from rich.markup import escape
from torch import Tensor

from mobilevit.data.open import open_evaluation, open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import Samples, Splits
from mobilevit.models.config import ModelConfig, TaskName
from mobilevit.tasks.dataset import ImageBatch, TrainingSet
from mobilevit.tasks.export import TaskExport
from mobilevit.tasks.report import TaskReport, column_head
from mobilevit.utils.options import Count, Interval, Options
from mobilevit.utils.tables import json_value, percent, table

if TYPE_CHECKING:
    from mobilevit.tasks.training_task import TrainingTask

CAUSES = "its weights are damaged, or its precision is too low for them"
"""Why a model's outputs may not be finite."""
Postprocessing = Literal["later", "2021"]
Colour = tuple[int, int, int]


class InferenceModel(Protocol):
    """A network for inference, or an exported file in its place."""

    config: ModelConfig

    def __call__(self, images: Tensor, /) -> Any:
        """Preprocessed images `[B, 3, H, W]` -> outputs, which the task's `postprocess` takes."""


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(Options):
    """How a network's outputs are postprocessed; each task reads the options that concern it."""

    top: Count = 5
    """Classification: classes listed for each image."""
    score: Annotated[float, Interval(0, 1)] | None = None
    """Detection: lowest probability of a box; None: that of `postprocessing`."""
    postprocessing: Postprocessing = "later"
    """Detection: a name in `PRESETS`."""
    boundary: Annotated[int, Interval(0)] = 0
    """Segmentation: also evaluate the pixels within so many of true boundaries; 0: do not."""


class Timing(NamedTuple):
    """Median milliseconds per image."""

    network_ms: float
    postprocess_ms: float


def not_finite(outputs: Tensor | Sequence[Tensor]) -> list[int]:
    """Which of B images have NaN or infinity in a model's outputs, tensors `[B, ...]`.

    Minus infinity is none: a class of probability 0. Nor are masks, which are integers.
    """
    tensors = [outputs] if isinstance(outputs, Tensor) else outputs
    floats = [values for values in tensors if values.is_floating_point()]
    finite = [(values < torch.inf).flatten(1).all(1) for values in floats]
    return (~torch.stack(finite).all(0)).nonzero()[:, 0].tolist() if finite else []


@dataclass(frozen=True, kw_only=True)
class Metrics(ABC):
    """Metrics of a model on a set of images, each counted once."""

    classes: tuple[str, ...]
    images: int

    @abstractmethod
    def row(self) -> dict[str, str]:
        """The main metrics as a row of a table: headers -> cells."""

    def details(self) -> list[RenderableType]:
        """Tables and text about classes and errors; here the table of classes, if there is one."""
        if not self.per_class:
            return []
        classes = table(*map(column_head, self.per_class[0]._fields))
        for name, *values in self.per_class:
            cells = (self.cell(v) if isinstance(v, float) else str(v) for v in values)
            classes.add_row(escape(name), *cells)
        return [classes]

    def cell(self, value: float) -> str:
        """A class's metric as text."""
        return percent(value)

    @property
    def per_class(self) -> Sequence[Any]:
        """The metrics of each class, as named tuples; here none."""
        return ()

    def to_json(self) -> dict[str, Any]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **{k: json_value(v) for k, v in values.items() if isinstance(v, int | float)},
            "classes": self.classes,
            "per_class": [
                {key: json_value(value) for key, value in row._asdict().items()}
                for row in self.per_class
            ],
        }

    @abstractmethod
    def summary(self, train: Self) -> str:
        """These validation metrics next to those of training images, in one or two lines."""


M = TypeVar("M", bound=Metrics)


@dataclass(eq=False)
class Metric(ABC, Generic[M]):
    """Counts predictions batch by batch; in several processes, `compute` covers all of them."""

    samples: Any
    """Those to evaluate on."""
    options: InferenceOptions = InferenceOptions()
    _: KW_ONLY
    device: torch.device | str = "cpu"
    """Where predictions are."""
    worst: int = 24
    """How many of the worst images the metrics list, at most."""
    shown: int = 12
    """How many other images, evenly spaced."""
    figures_only: bool = False
    """Count only what `figures` needs; `compute` is not called then."""

    @abstractmethod
    def update(self, predictions: Sequence[Any], batch: ImageBatch) -> None:
        """Count the results of `Task.postprocess` for a batch."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """The figures of an epoch, which include the task's `metric_key`; gathered likewise."""

    @abstractmethod
    def compute(self, timing: Timing) -> M:
        """The metrics; in several processes, each calls this once, at the same time."""


class Task(ABC):
    """One task."""

    name: ClassVar[TaskName]
    metric_key: ClassVar[str]
    """The metric by which epochs are compared, larger is better: an attribute of the task's
    `Metrics`, and `val_{metric_key}` among the figures of training."""
    metric_name: ClassVar[str]
    """Its name in texts."""
    default_model: ClassVar[str]
    lr_scratch: ClassVar[float]
    """Peak learning rate for new weights."""
    lr_finetune: ClassVar[float]
    """Peak learning rate for given weights."""
    head_lr: ClassVar[float] = 1.0
    """The head's learning rate, as a multiple of the backbone's."""
    batch_size: ClassVar[int]
    """Images in a training batch at the base size."""
    max_eval_batch_size: ClassVar[int | None] = None
    """Largest evaluation batch; None: no limit."""
    data_options: ClassVar[frozenset[str]]
    """Fields of `DataOptions` that this task reads and not every task does."""
    inference_options: ClassVar[tuple[str, ...]] = ()
    """Fields of `InferenceOptions` that affect predictions."""
    export: ClassVar[TaskExport]
    options: ClassVar[type[Any]]
    """Dataclass of the training options; all its fields have defaults."""

    # Data

    samples_type: ClassVar[type[Samples]]
    """Class of the samples, into which annotation formats are read."""
    training_dataset: ClassVar[type[TrainingSet]]
    """Augmented batches of samples."""

    def open(self, data: DataOptions, *, seed: int) -> Splits[Any]:
        """Find the samples to train and validate on, and check their files."""
        return open_splits(self.samples_type, data, seed=seed)

    def evaluation_samples(self, data: DataOptions, classes: tuple[str, ...]) -> Any:
        """The samples to evaluate on: those held out, else all; labels are indices of `classes`."""
        return open_evaluation(self.samples_type, data, classes=classes)

    def training_samples(self, data: DataOptions, classes: tuple[str, ...]) -> Any:
        """The samples that training uses; if the data is not split, those not held out.

        Their files are not checked: training has done that.
        """
        return open_splits(self.samples_type, replace(data, check=False), classes=classes).train

    # Training

    def source_note(self, options: Any) -> str:
        """What the options add to `ModelConfig.source`, such as ", taught by TEACHER"."""
        return ""

    training_task: ClassVar[type[TrainingTask]]
    """The loss and figures of a run."""

    # Inference

    @abstractmethod
    def postprocess(
        self, model: Any, outputs: Any, batch: ImageBatch, options: InferenceOptions
    ) -> Sequence[Any]:
        """Turn a model's outputs for a batch, on any device, into one result for each image."""

    def refused_by_files(self, options: InferenceOptions) -> str | None:
        """Why a file with postprocessing inside cannot follow these options; None: it can."""
        return None

    def palette(self, classes: Sequence[str]) -> list[Colour]:
        """The colours in which classes are drawn; none if they are not."""
        return []

    prediction_type: ClassVar[type[Any]]
    predictions_type: ClassVar[type[Any]]

    @abstractmethod
    def prediction(
        self, source: str, classes: tuple[str, ...], result: Any, options: InferenceOptions
    ) -> Any:
        """Make a `Prediction` from one image's result of `postprocess`."""

    @abstractmethod
    def parquet_columns(self, pyarrow: Any) -> list[tuple[str, Any]]:
        """(name, type) of each column of Parquet files, with types of `pyarrow`."""

    # Evaluation

    metric: ClassVar[type[Metric[Any]]]
    report: Callable[[Any, Any, Any, ModelConfig], TaskReport]
    """(metrics of the best weights on the validation samples, of the same weights on (a sample of)
    the training samples, the validation samples, configuration) -> the report of a run."""
