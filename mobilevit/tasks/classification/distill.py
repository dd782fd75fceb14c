"""Distillation: a network learns what another classifier, its teacher, answers."""

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
"""What stands ahead of the name of a classifier of torchvision."""
IMAGENET_IDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
"""SHA-256 of ImageNet-1k's 1000 WordNet ids, n01440764 to n15075141, with line breaks between."""
SAME_PLACES = 900
"""So many of 1000 names that stand where ImageNet's do tell that all of them are ImageNet's."""


class TeacherError(ValueError):
    """A teacher that cannot teach the network in training; the message says why."""


@dataclass(frozen=True, kw_only=True)
class DistillOptions(Options, name="classification.distill"):
    """A teacher, whose answers the network learns (classification)."""

    teacher: str | None = None
    """Whatever `load` reads: a model folder, a published name, ...; or torchvision:NAME, such as
    torchvision:resnet101, with its published weights; torchvision:NAME=FILE takes those of a
    file. It must know all classes, by these names."""
    weight: Share = 1.0
    """Share of the teacher's loss, 0 to 1; the rest is the labels'. The authors: 1."""
    temperature: Positive = 1.0
    """What both networks' logits are divided by for the teacher's loss. The authors: 1."""

    def __post_init__(self) -> None:
        """Check the fields, and that there is a teacher for them.

        Raises:
            ValueError: one is out of range, or has no meaning here.
        """
        super().__post_init__()
        for name in ("weight", "temperature"):
            if self.teacher is None and getattr(self, name) != 1.0:
                raise ValueError(f"{self.prefix}{name} needs {self.prefix}teacher")


def soft_loss(logits: Tensor, answers: Tensor, temperature: float) -> Tensor:
    """How far a student's probabilities are from its teacher's (Hinton et al., 2015).

    The Kullback-Leibler divergence of softmax(logits / T) from softmax(answers / T), averaged over
    the batch. It is multiplied by T^2, so that its gradients are about as large at any T.

    Args:
        logits: the student's, `[B, K]`.
        answers: the teacher's logits, `[B, K]`.
        temperature: T, above 0.
    """
    student, teacher = (F.log_softmax(x / temperature, dim=-1) for x in (logits, answers))
    divergence = F.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class Teacher:
    """A classifier that answers in a student's classes to a student's input.

    It is no `nn.Module`, so that the student's does not list it: it is not trained, averaged, saved
    or shared between processes.
    """

    def __init__(
        self,
        network: nn.Module,
        rule: Preprocessing,
        *,
        student: Preprocessing,
        columns: Sequence[int] | None = None,
    ) -> None:
        """Freeze a network.

        Args:
            network: images `[B, 3, H, W]` to logits.
            rule: the values that it expects.
            student: the values that it will be given.
            columns: where the student's classes stand in its logits; None: they are the same.
        """
        self.network = network.eval().requires_grad_(False)
        self.columns = None if columns is None else torch.tensor(columns)
        self.flipped = rule.channel_order != student.channel_order
        mean, std, given_mean, given_std = (
            torch.tensor(values, dtype=torch.float64)
            for values in (rule.mean, rule.std, student.mean, student.std)
        )
        if self.flipped:
            given_mean, given_std = given_mean.flip(0), given_std.flip(0)
        scale, shift = given_std / std, (given_mean - mean) / std
        self.change: tuple[Tensor, Tensor] | None = None
        """What values are multiplied by, and what is then added, `[3, 1, 1]`; None: nothing."""
        if not (scale == 1).all() or not (shift == 0).all():
            self.change = scale.float().view(3, 1, 1), shift.float().view(3, 1, 1)

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        """Share it: the copy of the student that averages weights needs no second one."""
        return self

    def to(self, device: torch.device) -> None:
        """Move it to where it shall answer."""
        self.network.to(device)
        if self.columns is not None:
            self.columns = self.columns.to(device)
        if self.change is not None:
            scale, shift = self.change
            self.change = scale.to(device), shift.to(device)

    def values(self, images: Tensor) -> Tensor:
        """A student's input `[B, 3, H, W]`, with the values that this network expects."""
        if self.flipped:
            images = images.flip(1)
        if self.change is not None:
            scale, shift = self.change
            images = torch.addcmul(shift, images, scale)
        return images

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits `[B, K]` in float32 in the student's classes, of a student's input."""
        weight = next(self.network.parameters())
        if weight.device != images.device:
            self.to(images.device)
        logits = self.network(self.values(images)).float()
        return logits if self.columns is None else logits[:, self.columns]


class _Found(NamedTuple):
    network: nn.Module
    classes: tuple[str, ...] | None
    """None where nobody has stated them."""
    preprocessing: Preprocessing


def teacher_of(
    name: str, student: ModelConfig, *, sizes: Sequence[int], console: Console
) -> Teacher:
    """Read a teacher, and see that it can teach.

    Args:
        name: whatever `load` reads; or `torchvision:` and the name of a classifier of torchvision,
            with its published weights, or with those of a file: `torchvision:resnet101=FILE`.
        student: who learns.
        sizes: of the images that it will be given, in pixels.
        console: where to say how classes were matched.

    Raises:
        TeacherError: it is no classifier, lacks classes of the student, cannot take images of
            these sizes, or torchvision does not have it.
        FileNotFoundError, DownloadError, CheckpointError: see `load`.
    """
    assert student.classes is not None
    # Networks draw new weights before they get their own. A run's are the same with a teacher.
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
        how = "taken to be in the same order, since nobody has named them"
    else:
        raise TeacherError(
            f"the teacher {name} does not name its {outputs} classes, and the images have "
            f"{len(student.classes)}: there is no telling which is which. A model folder names "
            "them; `mobilevit convert` writes one, --classes states the names"
        )
    console.print(
        f"teacher: {name}, {outputs} classes, {how}", highlight=False, markup=False, soft_wrap=True
    )
    return Teacher(network, found.preprocessing, student=student.preprocessing, columns=columns)


def _of_ours(name: str) -> _Found:
    """A teacher that `load` reads."""
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
    return _Found(fuse(network), config.classes, config.preprocessing)


def _of_torchvision(name: str, classes: int) -> _Found:
    """A teacher of torchvision; where its weights are a file's, it has so many classes."""
    from torchvision import models

    kind, given, file = name.removeprefix(TORCHVISION).partition("=")
    known = models.list_models(module=models)
    if kind not in known:
        near = difflib.get_close_matches(kind, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {shorten(known)}"
        raise TeacherError(f"torchvision has no classifier {kind!r} to teach; {hint}")
    weights = models.get_model_weights(kind).DEFAULT
    values = weights.transforms()
    rule = Preprocessing(mean=tuple(values.mean), std=tuple(values.std))
    if not given:
        try:
            network = models.get_model(kind, weights=weights, progress=False)
        except (OSError, RuntimeError) as error:  # RuntimeError: another digest than published
            raise TeacherError(
                f"the weights of the teacher {name} could not be downloaded from {weights.url} "
                f"({error}); of a file they are given by {TORCHVISION}{kind}=FILE"
            ) from error
        return _Found(network, tuple(weights.meta["categories"]), rule)
    if kind in ("googlenet", "inception_v3"):
        raise TeacherError(
            f"{name}: a file of {kind} does not say in which values it expects images, of which "
            f"there are two customs; take its published weights ({TORCHVISION}{kind}) or another "
            "teacher"
        )
    tensors = read_tensors(Path(file)).tensors
    network = models.get_model(kind, weights=None, num_classes=classes)
    own = network.state_dict()
    lacks, extra = (sorted(a - b) for a, b in ((own.keys(), tensors), (tensors.keys(), own)))
    wrong = [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    for fault, names in (("lacks", lacks), ("has besides", extra)):
        if names:
            raise TeacherError(f"{file} is no {kind} of torchvision: it {fault} {shorten(names)}")
    if wrong:
        shapes = f"{wrong[-1]} {list(tensors[wrong[-1]].shape)}, not {list(own[wrong[-1]].shape)}"
        raise TeacherError(
            f"{file} does not fit {kind} of torchvision with {classes} classes: it has {shapes}. A "
            "file of torchvision does not name its classes: they must be the images', in their "
            "order"
        )
    network.load_state_dict(tensors)
    return _Found(network, None, rule)


def _outputs(name: str, network: nn.Module, sizes: Sequence[int]) -> int:
    """How many logits a network gives, at each of these sizes.

    Raises:
        TeacherError: it cannot take images of such a size.
    """
    outputs = 0
    for size in sizes:
        try:
            with torch.no_grad():
                outputs = network(torch.zeros(1, 3, size, size)).shape[1]
        except (AssertionError, RuntimeError, ValueError) as error:  # torchvision's, torch's, ours
            raise TeacherError(
                f"the teacher {name} cannot take images of {size} px ({error}). It is given "
                "the student's: another size or sampler.mode standard may do, or another teacher"
            ) from error
    return outputs


def class_columns(
    name: str, theirs: tuple[str, ...], ours: tuple[str, ...]
) -> tuple[int, ...] | None:
    """Where a teacher has a student's classes; None: it has them alone, in the same order.

    Raises:
        TeacherError: it lacks some.
    """
    theirs, wanted = _usual_names(theirs), _usual_names(ours)
    if theirs == wanted:
        return None
    column = {known: index for index, known in enumerate(theirs)}
    missing = [named for named, usual in zip(ours, wanted, strict=True) if usual not in column]
    if missing:
        raise TeacherError(
            f"the teacher {name} lacks {len(missing)} of the {len(ours)} classes: "
            f"{shorten(missing, 5)}. Its own are called {shorten(list(theirs), 5)}; the names of "
            "the images' folders must be among them"
        )
    return tuple(column[usual] for usual in wanted)


def _usual_names(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The same; ImageNet's 1000 in their order, however they are called, under torchvision's names.

    Folders are called by WordNet ids; transformers lists several names for each class.
    """
    if len(classes) != 1000:
        return classes
    usual = imagenet_classes()
    same = sum(
        a.partition(",")[0].casefold() == b.partition(",")[0].casefold()
        for a, b in zip(classes, usual, strict=True)
    )
    digest = hashlib.sha256("\n".join(classes).encode()).hexdigest()
    return usual if same >= SAME_PLACES or digest == IMAGENET_IDS else classes
