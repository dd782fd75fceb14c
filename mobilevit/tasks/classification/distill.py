"""Distillation: a network learns the predictions of another classifier, its teacher."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.checkpoints.create import load
from mobilevit.checkpoints.keymap import shorten
from mobilevit.checkpoints.read import read_tensors
from mobilevit.data.class_names import imagenet_classes
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.fuse import fuse
from mobilevit.utils.options import Options, Positive, Share

TORCHVISION = "torchvision:"
"""Prefix of the names of torchvision's classifiers."""
IMAGENET_IDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of ImageNet-1k's 1000 WordNet ids, n01440764 to n15075141, joined by line breaks."""
MIN_SAME_NAMES = 900
"""1000 classes are ImageNet's if at least so many have ImageNet's name at their index."""


class TeacherError(ValueError):
    """The teacher cannot teach the network in training; the message says why."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions(Options, name="classification.distill"):
    """A teacher, whose predictions the network learns."""

    teacher: str | None = None
    """Whatever `load` reads: a model folder, a published name, ...; or torchvision:NAME, such as
    torchvision:resnet101, with its published weights; torchvision:NAME=FILE takes those of a
    file. It must know all classes, by these names."""
    weight: Share = 1.0
    """Weight of the teacher's loss; the rest is the weight of the labels'. The authors: 1."""
    temperature: Positive = 1.0
    """Divides the logits of both networks in the teacher's loss. The authors: 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("weight", "temperature"):
            if self.teacher is None and getattr(self, name) != 1.0:
                raise ValueError(f"{self.prefix}{name} needs {self.prefix}teacher")


def distillation_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """The loss of distillation (Hinton et al., 2015) from logits `[B, K]`.

    The Kullback-Leibler divergence of softmax(logits / T) from softmax(teacher_logits / T),
    averaged over the batch, times T^2, which keeps the scale of gradients similar at any T.

    >>> distillation_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), 2.0)
    tensor(0.)
    """
    student, teacher = (F.log_softmax(x / temperature, dim=-1) for x in (logits, teacher_logits))
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class Teacher:
    """A frozen classifier: takes the student's input, returns logits of the student's classes.

    Not an `nn.Module`: the student that holds it must not train, average, save or broadcast it.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        student: Preprocessing,
        columns: Sequence[int] | None = None,
    ) -> None:
        """`columns`: the student's classes among the teacher's; None: they are the same."""
        self.network = network.eval().requires_grad_(False)
        self.columns = None if columns is None else torch.tensor(columns)
        self.flipped = preprocessing.channel_order != student.channel_order
        mean, std, input_mean, input_std = (
            torch.tensor(values, dtype=torch.float64)
            for values in (preprocessing.mean, preprocessing.std, student.mean, student.std)
        )
        if self.flipped:
            input_mean, input_std = input_mean.flip(0), input_std.flip(0)
        scale, shift = input_std / std, (input_mean - mean) / std
        self.affine: tuple[Tensor, Tensor] | None = None
        """Scale and shift `[3, 1, 1]` of the input; None: it is used unmodified."""
        if not (scale == 1).all() or not (shift == 0).all():
            self.affine = scale.float().view(3, 1, 1), shift.float().view(3, 1, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        # The copy of the student that averages weights needs no second teacher.
        return self

    def to(self, device: torch.device) -> None:
        self.network.to(device)
        if self.columns is not None:
            self.columns = self.columns.to(device)
        if self.affine is not None:
            scale, shift = self.affine
            self.affine = scale.to(device), shift.to(device)

    def convert(self, images: Tensor) -> Tensor:
        """The student's input `[B, 3, H, W]`, normalized as the teacher expects."""
        if self.flipped:
            images = images.flip(1)
        if self.affine is not None:
            scale, shift = self.affine
            images = torch.addcmul(shift, images, scale)
        return images

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The student's input -> float32 logits `[B, K]` of the student's classes."""
        weight = next(self.network.parameters())
        if weight.device != images.device:
            self.to(images.device)
        logits = self.network(self.convert(images)).float()
        return logits if self.columns is None else logits[:, self.columns]


class _Classifier(NamedTuple):
    network: nn.Module
    classes: tuple[str, ...] | None
    """None: unknown."""
    preprocessing: Preprocessing


def load_teacher(
    name: str, student: ModelConfig, *, sizes: Sequence[int], console: Console
) -> Teacher:
    """Load `DistillOptions.teacher`; check that it fits the student and images of these sizes."""
    assert student.classes is not None
    # Networks draw new weights before they load theirs; the student's must be as without a teacher.
    with torch.random.fork_rng(devices=[]):
        if name.startswith(TORCHVISION):
            found = _of_torchvision(name, len(student.classes))
        else:
            found = _of_ours(name)
    network = found.network.eval().requires_grad_(False)
    outputs = _outputs(name, network, sizes)
    columns = None
    if found.classes is not None:
        columns = class_columns(name, found.classes, student.classes)
        how = "matched by name"
    elif outputs == len(student.classes):
        how = "assumed to be in the same order, since they have no names"
    else:
        raise TeacherError(
            f"the teacher {name} has {outputs} classes without names, and the images have "
            f"{len(student.classes)}, so they cannot be matched. Write a model folder with "
            "names by `mobilevit convert --classes`"
        )
    console.print(
        f"teacher: {name}, {outputs} classes, {how}", highlight=False, markup=False, soft_wrap=True
    )
    return Teacher(network, found.preprocessing, student=student.preprocessing, columns=columns)


def _of_ours(name: str) -> _Classifier:
    from torchvision import models

    if not Path(name).exists() and name in models.list_models(module=models):
        raise TeacherError(f"the teacher {name}: did you mean {TORCHVISION}{name}?")
    network = load(name)
    config = network.config
    if config.task != "classification":
        raise TeacherError(
            f"the teacher {name} is {config.model}, for {config.task}: a teacher must be a "
            "classifier"
        )
    return _Classifier(fuse(network), config.classes, config.preprocessing)


def _of_torchvision(name: str, classes: int) -> _Classifier:
    # A file has no class names; its network has as many classes as the student.
    from torchvision import models

    model, has_file, file = name.removeprefix(TORCHVISION).partition("=")
    known = models.list_models(module=models)
    if model not in known:
        near = difflib.get_close_matches(model, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {shorten(known)}"
        raise TeacherError(f"torchvision has no classifier {model!r}; {hint}")
    weights = models.get_model_weights(model).DEFAULT
    values = weights.transforms()
    preprocessing = Preprocessing(mean=tuple(values.mean), std=tuple(values.std))
    if not has_file:
        try:
            network = models.get_model(model, weights=weights, progress=False)
        except (OSError, RuntimeError) as error:  # RuntimeError: the digest differs
            raise TeacherError(
                f"the weights of the teacher {name} could not be downloaded from {weights.url} "
                f"({error}); to load a file, write {TORCHVISION}{model}=FILE"
            ) from error
        return _Classifier(network, tuple(weights.meta["categories"]), preprocessing)
    if model in ("googlenet", "inception_v3"):
        raise TeacherError(
            f"{name}: a file of {model} does not tell its normalization, of which two are in use; "
            f"use the published weights ({TORCHVISION}{model}) or another teacher"
        )
    tensors = read_tensors(Path(file)).tensors
    network = models.get_model(model, weights=None, num_classes=classes)
    own = network.state_dict()
    lacks, extra = (sorted(a - b) for a, b in ((own.keys(), tensors), (tensors.keys(), own)))
    wrong = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    for difference, names in (("lacks", lacks), ("also has", extra)):
        if names:
            raise TeacherError(
                f"{file} is no {model} of torchvision: it {difference} {shorten(names)}"
            )
    if wrong:
        shapes = f"{wrong[-1]} {list(tensors[wrong[-1]].shape)}, not {list(own[wrong[-1]].shape)}"
        raise TeacherError(
            f"{file} does not fit {model} of torchvision with {classes} classes: it has {shapes}. "
            "Files of torchvision have no class names: their classes must be those of the images, "
            "in the same order"
        )
    network.load_state_dict(tensors)
    return _Classifier(network, None, preprocessing)


def _outputs(name: str, network: nn.Module, sizes: Sequence[int]) -> int:
    """The number of logits; runs the network once at each size, to see that it can."""
    outputs = 0
    for size in sizes:
        try:
            with torch.no_grad():
                outputs = network(torch.zeros(1, 3, size, size)).shape[1]
        except (AssertionError, RuntimeError, ValueError) as error:  # of torchvision, torch, ours
            raise TeacherError(
                f"the teacher {name} cannot take images of {size} px ({error}), as the student "
                "does: try another size, sampler.mode standard or another teacher"
            ) from error
    return outputs


def class_columns(
    name: str, theirs: tuple[str, ...], ours: tuple[str, ...]
) -> tuple[int, ...] | None:
    """The indices of the student's classes among the teacher's; None: they are the same."""
    theirs, wanted = _usual_names(theirs), _usual_names(ours)
    if theirs == wanted:
        return None
    column = {known: index for index, known in enumerate(theirs)}
    missing = [own for own, usual in zip(ours, wanted, strict=True) if usual not in column]
    if missing:
        raise TeacherError(
            f"the teacher {name} lacks {len(missing)} of the {len(ours)} classes: "
            f"{shorten(missing, 5)}. It has {shorten(list(theirs), 5)}; the names of the images' "
            "folders must be among them"
        )
    return tuple(column[usual] for usual in wanted)


def _usual_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Torchvision's names, if these are ImageNet's 1000 classes in their order; else unchanged.

    Folders of ImageNet have WordNet ids; transformers has several names for each class.
    """
    if len(classes) != 1000:
        return classes
    usual = imagenet_classes()
    same = sum(
        a.partition(",")[0].casefold() == b.partition(",")[0].casefold()
        for a, b in zip(classes, usual, strict=True)
    )
    digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()
    return usual if same >= MIN_SAME_NAMES or digest == IMAGENET_IDS else classes
