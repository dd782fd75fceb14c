"""The options of a training run: a recipe, as dataclasses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, Literal, Self, TypeVar

from mobilevit.data.options import DataOptions
from mobilevit.data.sampler import BatchRule, MultiScaleSchedule, scales
from mobilevit.models.config import TaskName
from mobilevit.models.registry import NetworkOptions
from mobilevit.tasks import TASKS, get_task
from mobilevit.utils.options import Count, Interval, NonNegative, Options, Positive, Share


@dataclass(frozen=True, kw_only=True)
class SamplerOptions(Options, name="sampler"):
    """How images are batched."""

    mode: Literal["multiscale", "standard"] = "multiscale"
    """Sizes that vary by step, or one size."""
    min_size: Count | None = None
    """Smallest size in pixels; by default 0.625 of the base size, as the paper's 160 of 256."""
    max_size: Count | None = None
    """Largest size; by default 1.25 of the base size, as the paper's 320 of 256."""
    scales: Count = 5
    """Number of sizes between the two, before rounding."""
    multiple: Count = 32
    """Sizes are rounded to multiples of this."""
    batch_rule: BatchRule = "area"
    """How the batch size follows the image size; see `MultiScaleSchedule`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "standard" and (self.min_size, self.max_size) != (None, None):
            raise ValueError(
                "sampler.min_size and sampler.max_size are for sampler.mode multiscale"
            )

    def schedule(
        self, *, samples: int, size: int, batch_size: int, seed: int
    ) -> MultiScaleSchedule:
        """The schedule of a run whose base is `batch_size` images of `size` pixels."""
        sizes: Sequence[int] = (size,)
        if self.mode == "multiscale":
            sizes = scales(
                self.min_size or round(0.625 * size),
                self.max_size or round(1.25 * size),
                size,
                count=self.scales,
                multiple=self.multiple,
            )
        return MultiScaleSchedule(
            samples=samples,
            sizes=tuple(sizes),
            base_size=size,
            base_batch=batch_size,
            batch_rule=self.batch_rule,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class OptimOptions(Options, name="optim"):
    """The optimizer and its learning rate."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent with momentum."""
    lr: Positive | None = None
    """Peak learning rate; by default 0.002 for new weights, 0.001 in fine-tuning; in detection
    0.001; in segmentation 0.001 and 0.0005. They suit AdamW; SGD needs its own."""
    momentum: Annotated[float, Interval(0, 1)] = 0.9
    """SGD only."""
    final_lr: Share = 0.1
    """End of the cosine, as a share of the peak; 1 without warmup is a fixed learning rate."""
    warmup: Share = 0.05
    """Share of all steps in which the learning rate rises linearly; at most 3000 steps."""
    head_lr: Positive | None = None
    """The head's learning rate, as a multiple of the backbone's; by default 10 in segmentation, as
    the paper's, else 1."""
    weight_decay: NonNegative = 0.01
    """Of all parameters, as in the authors' v1 recipe."""
    decay_norms: bool = True
    """Whether weight decay includes norms and biases; in the authors' v2 recipe it does not."""
    clip: Positive | None = 1.0
    """Largest norm of the gradient; null: no clipping. The paper has none, at batches of 1024; at
    small batches of varying size single large gradients spoil a run, see docs/training.md."""
    accumulate: Count = 1
    """Batches whose gradients are averaged before a step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.name == "adamw" and self.momentum != 0.9:
            raise ValueError("optim.momentum is for optim.name sgd; AdamW has none")
        if self.name == "sgd" and self.lr is None:
            raise ValueError(
                "optim.name sgd needs optim.lr: the default rates suit AdamW. The authors of "
                "MobileViTv2 fine-tune at 0.001 to 0.01"
            )


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Options):
    """All options of a training run, as recipes and the run's `config.yaml` hold them.

    The task's options are one field here; in recipes and on the command line they are a group with
    the task's name, such as `classification`.

    >>> from mobilevit.tasks.classification.options import ClassificationOptions
    >>> options = TrainOptions(
    ...     data=DataOptions(root="photos"),
    ...     out="runs/photos",
    ...     epochs=5,
    ...     task_options=ClassificationOptions(label_smoothing=0.0),
    ... )
    >>> options.as_recipe()["classification"]["label_smoothing"]
    0.0
    """

    data: DataOptions
    """Where the images are."""
    out: str
    """Run folder to write; must be new, or of the run to resume."""
    task: TaskName | None = None
    """By default that of `task_options`, of `model`, or else of `weights`."""
    model: str | None = None
    """Name of the network to train, see `mobilevit models`; by default the weights' variant, or
    XS."""
    weights: str | None = None
    """Start from these: a model folder, a checkpoint of the authors, timm or transformers, a
    published name, a Hub id or a URL. The head is new if the classes differ."""
    preprocessing: dict[str, Any] | None = None
    """Fields that differ from the weights' preprocessing, such as channel_order."""
    epochs: Count = 30
    """How often every image is seen."""
    size: Count | None = None
    """Base image size in pixels, which validation uses; by default that of the weights, or 256, in
    detection 320, in segmentation 512."""
    batch_size: Count | None = None
    """Images in a batch at the base size, in each process; by default 64 in classification, 16 in
    detection, 8 in segmentation."""
    sampler: SamplerOptions = SamplerOptions()
    """How images are batched."""
    optim: OptimOptions = OptimOptions()
    """Optimizer and learning rate."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    """Options of the network."""
    task_options: Options | None = field(default=None, metadata={"flag": False})
    """Options of the task, such as `ClassificationOptions`; None: its defaults."""
    ema: Annotated[float, Interval(0, 1)] = 0.9995
    """Decay of the moving average of the weights, which is evaluated and saved; 0: off."""
    freeze_backbone: bool = False
    """Train only the layers after the backbone."""
    quantize_aware: bool = False
    """Fine-tune `weights` with the rounding of int8 files in training and validation, where int8
    loses too much otherwise. The result is a float network, to be exported as usual."""
    patience: Count | None = None
    """Stop after this many epochs without a better top-1, AP or mean IoU."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Number format of the network's arithmetic; auto: bf16 if the GPU or CPU has instructions for
    it, else fp32."""
    compile: bool = False
    """Compile the network by torch, once for each size of the sampler; takes a minute or more for
    each, and a C++ compiler on a CPU."""
    sync_batch_norm: bool = False
    """Several GPUs: batch norm uses the statistics of all processes' images."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    threads: Count | None = None
    """Compute threads on a CPU; by default from the number of cores."""
    keep_memory: bool = True
    """On a Linux CPU, keep freed memory for the next batch: faster, and nothing is returned to the
    system before the end."""
    seed: int = 0
    """Seed of everything random."""
    checkpoint_minutes: NonNegative = 10.0
    """How often, at most, to save a checkpoint in the middle of an epoch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.quantize_aware and not self.weights:
            raise ValueError(
                "quantize_aware fine-tunes a trained network: give it as weights, such as the "
                "model folder of another run"
            )
        if self.quantize_aware and self.compile:
            raise ValueError("compile and quantize_aware cannot be combined: leave one out")
        own = self.task_of_options
        if own is not None and self.task not in (None, own):
            raise ValueError(f"{own} options are not for {self.task}")

    @property
    def task_of_options(self) -> TaskName | None:
        tasks = map(get_task, TASKS)
        return next((task.name for task in tasks if type(self.task_options) is task.options), None)

    @classmethod
    def flag_groups(cls) -> dict[str, type[Options]]:
        return {name: get_task(name).options for name in TASKS}

    @classmethod
    def from_flags(cls, **values: Any) -> Self:
        """Options from the values of all flags; at most one task's group may be set."""
        groups = {name: values.pop(name) for name in TASKS}
        given = {name: group for name, group in groups.items() if group != type(group)()}
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)}: a run has the options of one task")
        return cls(**values, task_options=next(iter(given.values()), None))

    def with_option(self, name: str, value: Any) -> Self:
        """The same options with one changed, by its name in recipes.

        >>> options = TrainOptions(data=DataOptions(root="photos"), out="runs/photos")
        >>> options.with_option("classification.augment.mixup", 0.2).task_options.augment.mixup
        0.2
        """
        task, _, rest = name.partition(".")
        if task not in TASKS:
            return _replace(self, name, value)
        if self.task_of_options not in (None, task):
            raise ValueError(f"{task} options are not for {self.task_of_options}")
        task_options = self.task_options or get_task(task).options()
        return replace(self, task_options=_replace(task_options, rest, value))

    def as_recipe(self) -> dict[str, Any]:
        """The options as in a recipe's YAML, without `out`."""
        values = asdict(self)
        del values["out"]
        task_options = values.pop("task_options")
        if (task := self.task_of_options) is not None:
            values[task] = task_options
        plain: dict[str, Any] = json.loads(json.dumps(values))  # YAML has no tuples
        return plain


O = TypeVar("O", bound=Options)  # noqa: E741


def _replace(options: O, name: str, value: Any) -> O:
    name, _, rest = name.partition(".")
    if rest:
        value = _replace(getattr(options, name), rest, value)
    return replace(options, **{name: value})
