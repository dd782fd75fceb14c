"""`Task`: everything that differs between classification, detection and segmentation.

The rest of the package asks a task, by `get_task(model.config.task)`, and never which one it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
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
    cast,
)

import torch
from rich.console import Console, RenderableType
from torch import Tensor

from mobilevit.data.decode import Decode
from mobilevit.data.loader import BatchSource
from mobilevit.data.open import open_evaluation, open_splits
from mobilevit.data.options import DataOptions
from mobilevit.data.splits import Samples
from mobilevit.models.config import ModelConfig, Preprocessing, TaskName
from mobilevit.tasks.export import TaskExport
from mobilevit.tasks.visualize import class_colour
from mobilevit.utils.options import Count, Interval, Options
from mobilevit.utils.tables import json_value

if TYPE_CHECKING:
    # torchmetrics takes seconds to import, and prediction needs none of it.
    from mobilevit.tasks.report import TaskReport
    from mobilevit.tasks.training_task import TrainingTask

S = TypeVar("S")
O = TypeVar("O")  # noqa: E741
Postprocessing = Literal["later", "2021"]
Colour = tuple[int, int, int]


class Splits(NamedTuple, Generic[S]):
    """Samples to train on and to validate on, with the same classes."""

    train: S
    val: S
    category_ids: tuple[int, ...] | None = None
    """Detection: the classes' ids in the annotations."""


class InferenceModel(Protocol):
    """A network for inference, or an exported file in its place."""

    config: ModelConfig

    def __call__(self, images: Tensor, /) -> Any:
        """Preprocessed images `[B, 3, H, W]` -> outputs, which the task's `postprocess` takes."""


@dataclass(frozen=True, kw_only=True)
class InferenceOptions(Options):
    """What is made of a network's outputs; each task reads those that concern it."""

    top: Count = 5
    """Classification: classes listed for each image."""
    score: Annotated[float, Interval(0, 1)] | None = None
    """Detection: least probability of a box; None: that of `postprocessing`."""
    postprocessing: Postprocessing = "later"
    """Detection: a name in `PRESETS`."""
    boundary: Annotated[int, Interval(0)] = 0
    """Segmentation: also evaluate the pixels within so many of true boundaries; 0: do not."""


class Timing(NamedTuple):
    """Median milliseconds for an image."""

    network_ms: float
    postprocess_ms: float


class EvaluationPart(NamedTuple):
    """Images of one shape out of an evaluation batch."""

    images: Tensor
    """`[B, 3, H, W]`."""
    sizes: list[tuple[int, int]]
    """(height, width) of the images themselves, where the task needs them."""
    targets: Any
    """What the metric compares predictions with."""


@dataclass(frozen=True, kw_only=True)
class Metrics(ABC):
    """How good a model is on a set of images, each counted once."""

    classes: tuple[str, ...]
    images: int

    @abstractmethod
    def row(self) -> dict[str, str]:
        """The main metrics for a table: headers -> cells."""

    @abstractmethod
    def details(self) -> list[RenderableType]:
        """Tables and lines about classes and errors."""

    @property
    @abstractmethod
    def per_class(self) -> Sequence[Any]:
        """The metrics of each class, as named tuples."""

    def to_json(self) -> dict[str, Any]:
        """All metrics as values that JSON has."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {
            **{k: json_value(v) for k, v in values.items() if isinstance(v, int | float)},
            "per_class": [
                {key: json_value(value) for key, value in row._asdict().items()}
                for row in self.per_class
            ],
        }

    @abstractmethod
    def summary(self, train: Self) -> str:
        """These metrics of validation, next to those of training images, in a line or two."""


M = TypeVar("M", bound=Metrics)


class Metric(ABC, Generic[M]):
    """Counts predictions batch by batch; joined processes get the metrics of all their images."""

    @abstractmethod
    def parts(self, batch: Any) -> Iterator[EvaluationPart]:
        """Split a batch of the task's evaluation data set into images of one shape."""

    @abstractmethod
    def update(self, predictions: Sequence[Any], targets: Any) -> None:
        """Count what `Task.postprocess` made of one part."""

    @abstractmethod
    def compute(self, timing: Timing) -> M:
        """The metrics; of several processes each calls this once, at the same time."""


class Task(ABC, Generic[S, O]):
    """One task. S: its samples; O: its training options."""

    name: ClassVar[TaskName]
    metric_key: ClassVar[str]
    """The metric that counts, larger is better: an attribute of the task's `Metrics`, and as
    `val_{metric_key}` a figure of training."""
    metric_name: ClassVar[str]
    """The same for people."""
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
    """Images in an evaluation batch at most; None: any number."""
    data_options: ClassVar[frozenset[str]]
    """The fields of `DataOptions` that this task reads, of those that not every task does."""
    inference_options: ClassVar[tuple[str, ...]] = ()
    """Those of `InferenceOptions` that predictions follow."""
    export: ClassVar[TaskExport]
    """The task's part in exported files."""
    options: ClassVar[type[Any]]
    """The dataclass of the task's training options, O; all its fields have defaults."""

    # Data

    samples_type: ClassVar[type[Samples]]
    """The samples that annotation formats are read as."""

    def open(self, data: DataOptions, *, seed: int, console: Console) -> Splits[S]:
        """Find the samples to train and validate on, and check their files.

        Raises:
            DataError: they cannot be used; the message names which and why.
        """
        found: Any = open_splits(self.samples_type, data, seed=seed)
        console.print(f"data: {found.note}", highlight=False, soft_wrap=True)
        category_ids = getattr(found.train, "category_ids", None)  # only boxes have any
        return Splits(found.train, found.val, category_ids)

    def evaluation_samples(self, data: DataOptions, classes: tuple[str, ...]) -> S:
        """The samples to evaluate on: those held out, else all; labels are places in `classes`.

        Raises:
            DataError: they cannot be used; the message names which and why.
        """
        samples: Any = open_evaluation(self.samples_type, data, classes=classes)
        return cast(S, samples)

    def training_samples(self, data: DataOptions, classes: tuple[str, ...]) -> S:
        """The samples that training takes; where the data is not split, those not held out.

        Raises:
            DataError: there are none, or they cannot be used.
        """
        samples: Any = open_splits(self.samples_type, data, classes=classes).train
        return cast(S, samples)

    def subset(self, samples: S, indices: Sequence[int]) -> S:
        """The samples at `indices`, in this order."""
        subset: S = cast(Any, samples).subset(indices)
        return subset

    @abstractmethod
    def training_dataset(
        self, samples: S, preprocessing: Preprocessing, options: O, *, seed: int, decode: Decode
    ) -> BatchSource:
        """Augmented batches, by lists of `SampleKey`s."""

    @abstractmethod
    def evaluation_dataset(self, samples: S, preprocessing: Preprocessing) -> BatchSource:
        """Batches for evaluation, by lists of indices."""

    # Training

    def source_note(self, options: O) -> str:
        """What the options add to `ModelConfig.source`, such as ", taught by TEACHER"."""
        return ""

    @abstractmethod
    def training_task(
        self, options: O, val: S, config: ModelConfig, *, sizes: Sequence[int], console: Console
    ) -> TrainingTask:
        """The loss and the figures of a run.

        Args:
            options: the task's training options.
            val: the samples to validate on.
            config: of the network in training.
            sizes: of the training images, in pixels.
            console: for notes.

        Raises:
            ValueError: the options do not fit the network.
        """

    # Inference

    @abstractmethod
    def postprocess(
        self,
        model: Any,
        outputs: Any,
        *,
        input_size: tuple[int, int],
        sizes: Sequence[tuple[int, int]],
        options: InferenceOptions,
    ) -> Sequence[Any]:
        """Turn a model's outputs for B images into one result for each.

        Args:
            model: whose outputs they are.
            outputs: on any device.
            input_size: (height, width) of the model's input.
            sizes: (height, width) of the images themselves.
            options: see `InferenceOptions`.
        """

    def refused_by_files(self, options: InferenceOptions) -> str | None:
        """Why an exported file that postprocesses its outputs cannot follow these options."""
        return None

    def palette(self, classes: int) -> list[Colour]:
        """The colours in which so many classes are drawn."""
        return [class_colour(label) for label in range(classes)]

    prediction_type: ClassVar[type[Any]]
    """The task's `Prediction`."""
    predictions_type: ClassVar[type[Any]]
    """The task's `Predictions`."""

    @abstractmethod
    def prediction(
        self, source: str, classes: tuple[str, ...], result: Any, options: InferenceOptions
    ) -> Any:
        """A `Prediction` made of one image's result of `postprocess`."""

    @abstractmethod
    def parquet_columns(self, pyarrow: Any) -> list[tuple[str, Any]]:
        """(name, type) of the columns in Parquet files, of `pyarrow`'s types."""

    @abstractmethod
    def metric(
        self, samples: S, *, device: torch.device | str = "cpu", options: InferenceOptions
    ) -> Metric[Any]:
        """What an evaluation counts."""

    @abstractmethod
    def report(
        self, metrics: Any, train_metrics: Any, samples: S, config: ModelConfig
    ) -> TaskReport:
        """The report of a run.

        Args:
            metrics: of the best weights, on the validation samples.
            train_metrics: of the same weights, on (a sample of) the training samples.
            samples: to validate on.
            config: of the best weights.
        """
