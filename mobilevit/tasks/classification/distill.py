"""Distillation: a network learns the predictions of another classifier, its teacher."""

from __future__ import annotations

import difflib
import hashlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from mobilevit.checkpoints.create import load
from mobilevit.checkpoints.keymap import shorten
from mobilevit.checkpoints.read import read_tensors, without_prefix
from mobilevit.data.class_names import imagenet_classes
from mobilevit.data.preprocessing import normalize
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
        """`columns`: the student's classes among the teacher's; None: all, in the same order."""
        self.network = network.eval().requires_grad_(False)
        self.preprocessing, self.student, self.columns = preprocessing, student, columns

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        # The copy of the student that averages weights needs no second teacher.
        return self

    def convert(self, images: Tensor) -> Tensor:
        """The student's input `[B, 3, H, W]`, normalized as the teacher expects."""
        ours, theirs = self.student, self.preprocessing
        if all(
            getattr(ours, name) == getattr(theirs, name)
            for name in ("channel_order", "mean", "std")
        ):
            return images
        mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (ours.mean, ours.std))
        pixels = images * std + mean
        return normalize(pixels.flip(1) if ours.channel_order == "bgr" else pixels, theirs)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The student's input -> float32 logits `[B, K]` of the student's classes."""
        self.network.to(images.device)  # it moves once
        logits = self.network(self.convert(images)).float()
        return logits if self.columns is None else logits[:, self.columns]


def load_teacher(
    name: str, student: ModelConfig, *, sizes: Sequence[int], console: Console
) -> Teacher:
    """Load `DistillOptions.teacher`; check that it fits the student and images of these sizes."""
    assert student.classes is not None
    read = _of_torchvision if name.startswith(TORCHVISION) else _of_ours
    # Networks draw new weights before they load theirs; the student's must be as without a teacher.
    with torch.random.fork_rng(devices=[]):
        network, classes, preprocessing = read(name, len(student.classes))
    outputs = _outputs(name, network.eval(), sizes)
    columns = None
    if classes is not None:
        columns = class_columns(name, classes, student.classes)
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
    return Teacher(network, preprocessing, student=student.preprocessing, columns=columns)


Classifier: TypeAlias = tuple[nn.Module, tuple[str, ...] | None, Preprocessing]
"""A network; its classes, None if they are unknown; what it takes."""


def _of_ours(name: str, num_classes: int) -> Classifier:
    network = load(name)
    config = network.config
    if config.task != "classification":
        raise TeacherError(
            f"the teacher {name} is {config.model}, for {config.task}: a teacher must be a "
            "classifier"
        )
    return fuse(network), config.classes, config.preprocessing


def _of_torchvision(name: str, num_classes: int) -> Classifier:
    """A classifier with its published weights, or those of a file, for so many nameless classes."""
    from torchvision import models

    model, _, file = name.removeprefix(TORCHVISION).partition("=")
    known = models.list_models(module=models)
    if model not in known:
        near = difflib.get_close_matches(model, known) or known
        raise TeacherError(f"torchvision has no classifier {model!r}; it has {shorten(near)}")
    weights = models.get_model_weights(model).DEFAULT
    values = weights.transforms()
    preprocessing = Preprocessing(mean=tuple(values.mean), std=tuple(values.std))
    if not file:
        try:
            network = models.get_model(model, weights=weights, progress=False)
        except (OSError, RuntimeError) as error:  # RuntimeError: the digest differs
            raise TeacherError(
                f"the weights of the teacher {name} could not be downloaded from {weights.url} "
                f"({error}); to load a file, write {TORCHVISION}{model}=FILE"
            ) from error
        return network, tuple(weights.meta["categories"]), preprocessing
    if model in ("googlenet", "inception_v3"):
        raise TeacherError(
            f"{name}: a file of {model} does not tell its normalization, of which two are in use; "
            f"use the published weights ({TORCHVISION}{model}) or another teacher"
        )
    network = models.get_model(model, weights=None, num_classes=num_classes)
    try:
        tensors = read_tensors(Path(file)).tensors
        network.load_state_dict(without_prefix(tensors, next(iter(network.state_dict()))))
    except RuntimeError as error:
        raise TeacherError(
            f"{file} does not fit {model} of torchvision with {num_classes} classes, those of the "
            f"images, in the same order: {textwrap.shorten(str(error), 400)}"
        ) from error
    return network, None, preprocessing


def _outputs(name: str, network: nn.Module, sizes: Sequence[int]) -> int:
    """The number of logits; runs the network once at each size, to see that it can."""
    size = outputs = 0
    try:
        with torch.no_grad():
            for size in sizes:
                outputs = network(torch.zeros(1, 3, size, size)).shape[1]
    except (AssertionError, RuntimeError, ValueError) as error:  # of torchvision, torch, ours
        raise TeacherError(
            f"the teacher {name} cannot take images of {size} px ({error}), as the student does: "
            "try another size, sampler.mode standard or another teacher"
        ) from error
    return outputs


def class_columns(name: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> list[int]:
    """The indices of the student's classes among the teacher's."""
    theirs, wanted = _usual_names(theirs), _usual_names(ours)
    column = {known: index for index, known in enumerate(theirs)}
    missing = [own for own, usual in zip(ours, wanted, strict=True) if usual not in column]
    if missing:
        raise TeacherError(
            f"the teacher {name} lacks {len(missing)} of the {len(ours)} classes: "
            f"{shorten(missing, 5)}. It has {shorten(list(theirs), 5)}; the names of the images' "
            "folders must be among them"
        )
    return [column[usual] for usual in wanted]


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
