"""A teacher in training: what is learned from it, and that nothing else comes of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torchvision import models

from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import save
from mobilevit.data.class_names import imagenet_classes
from mobilevit.data.preprocessing import normalize
from mobilevit.models.config import ModelConfig, Preprocessing
from mobilevit.models.mobilevit import Backbone
from mobilevit.tasks.classification.distill import (
    DistillOptions,
    Teacher,
    TeacherError,
    distillation_loss,
    load_teacher,
)
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.training import ClassificationTraining
from mobilevit.training.errors import TrainingError
from mobilevit.training.options import OptimOptions
from tests.numerics import assert_close
from tests.training import runs
from tests.training.runs import COLOURS, STANDARD, colour_images, rows

pytestmark = pytest.mark.slow

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.mark.parametrize("temperature", [1.0, 3.5])
def test_the_loss_is_hintons(temperature: float) -> None:
    """Sum over classes of p (log p - log q), meant over images, times T squared."""
    draw = np.random.default_rng(0)
    logits, answers = draw.normal(0, 3, (2, 5, 7))
    expected = 0.0
    for ours, theirs in zip(logits, answers, strict=True):
        p, q = (np.exp(x / temperature) for x in (theirs, ours))
        p, q = p / p.sum(), q / q.sum()
        expected += float((p * np.log(p / q)).sum()) / len(logits)
    loss = distillation_loss(torch.tensor(logits), torch.tensor(answers), temperature)
    assert float(loss) == pytest.approx(temperature**2 * expected, rel=1e-12)
    assert float(distillation_loss(torch.tensor(answers), torch.tensor(answers), temperature)) == 0


RULES = {
    "plain": Preprocessing(),
    "bgr": Preprocessing(channel_order="bgr"),
    "imagenet": Preprocessing(**IMAGENET),
    "imagenet, bgr": Preprocessing(channel_order="bgr", **IMAGENET),
}


@pytest.mark.parametrize("own", RULES)
@pytest.mark.parametrize("given", RULES)
def test_a_teacher_is_fed_properly(own: str, given: str) -> None:
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, 32, 32)
    network = create_model("mobilevit_xxs", num_classes=4).eval()
    teacher = Teacher(network, RULES[own], student=RULES[given])
    student = normalize(pixels.clone(), RULES[given])
    before = student.clone()
    proper = normalize(pixels.clone(), RULES[own])
    assert_close(teacher.convert(student), proper)
    with torch.no_grad():
        assert_close(teacher(student), network(proper), tolerance=1e-4)
    assert student.equal(before)
    assert (teacher.convert(student) is student) == (own == given)


def saved(folder: Path, classes: Sequence[str] | None, name: str = "mobilevit_xxs") -> str:
    """A model folder with weights at random."""
    torch.manual_seed(1)
    network = create_model(name, classes=classes, num_classes=None if classes else 4)
    save(network, folder)
    return str(folder)


def student_of(*classes: str) -> ModelConfig:
    return ModelConfig(model="mobilevit_xxs", num_classes=len(classes), classes=classes)


def read(name: str, *classes: str, sizes: Sequence[int] = (32,)) -> Teacher:
    return load_teacher(name, student_of(*classes), sizes=sizes, console=Console(quiet=True))


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    name = saved(tmp_path / "teacher", ["red", "green", "blue", "grey"])
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        own = load(name)(images)
    state = torch.get_rng_state()
    for classes, columns in (
        (("blue", "red"), [2, 0]),
        (("green", "blue", "red", "grey"), [1, 2, 0, 3]),
        (("red", "green", "blue", "grey"), [0, 1, 2, 3]),
    ):
        answers = read(name, *classes)(images)
        assert_close(answers, own[:, columns], tolerance=1e-4)
    assert torch.get_rng_state().equal(state)  # the student's weights are drawn from it
    with pytest.raises(TeacherError, match=r"lacks 6 of the 7 classes: a, b, c, d, e and 1 more"):
        read(name, *"abcdef", "red")


def test_imagenets_names_are_known() -> None:
    """Folders are called by WordNet ids, and transformers' lists have several names for a class."""
    from mobilevit.tasks.classification.distill import class_columns

    info = files("timm") / "data" / "_info"
    ids = tuple((info / "imagenet_synsets.txt").read_text().split())
    lemmas = dict(
        line.split("\t")[:2]
        for line in (info / "imagenet_synset_to_lemma.txt").read_text().splitlines()
    )
    usual, several = imagenet_classes(), tuple(lemmas[number] for number in ids)
    for theirs in (ids, several, usual):
        for ours in (ids, several, usual):
            assert class_columns("teacher", theirs, ours) == list(range(1000))
        assert class_columns("teacher", theirs, ("golf ball", "tench")) == [574, 0]
    with pytest.raises(TeacherError, match="lacks 1000 of the 1000"):
        class_columns("teacher", usual, tuple(reversed(ids)))


def test_a_file_of_torchvision_teaches(tmp_path: Path) -> None:
    network = models.get_model("shufflenet_v2_x0_5", num_classes=3).eval()
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    teacher = read(f"torchvision:shufflenet_v2_x0_5={file}", *COLOURS)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(normalize(images.clone(), Preprocessing(**IMAGENET)))
    assert_close(teacher(images), expected, tolerance=1e-4)
    with pytest.raises(TeacherError, match=r"with 2 classes, those of the images.* fc.weight"):
        read(f"torchvision:shufflenet_v2_x0_5={file}", "blue", "red")
    with pytest.raises(TeacherError, match=r"does not fit squeezenet1_1 .*features\.0\.weight"):
        read(f"torchvision:squeezenet1_1={file}", *COLOURS)
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        read("torchvision:shufflenet_v2_x0_5=none.pth", *COLOURS)


def test_published_weights_of_torchvision_teach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if they were downloaded already; their names are those of ImageNet."""
    weights = models.ShuffleNet_V2_X0_5_Weights.DEFAULT
    network = models.get_model("shufflenet_v2_x0_5").eval()
    file = tmp_path / "hub" / "checkpoints" / Path(weights.url).name
    file.parent.mkdir(parents=True)
    torch.save(network.state_dict(), file)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    teacher = read("torchvision:shufflenet_v2_x0_5", "golf ball", "tench")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(normalize(images.clone(), Preprocessing(**IMAGENET)))[:, [574, 0]]
    assert_close(teacher(images), expected, tolerance=1e-4)


def test_what_cannot_teach_is_refused(tmp_path: Path) -> None:
    detector = saved(tmp_path / "detector", ["cell"], "ssdlite_mobilevit_xxs")
    with pytest.raises(TeacherError, match="must be a classifier"):
        read(detector, "cell")
    nameless = saved(tmp_path / "nameless", None)
    with pytest.raises(TeacherError, match="has 4 classes without names"):
        read(nameless, *COLOURS)
    assert read(nameless, *"abcd").columns is None
    with pytest.raises(TeacherError, match=r"no classifier 'resnet11'; it has .*resnet101"):
        read("torchvision:resnet11", *COLOURS)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(str(tmp_path / "nowhere"), *COLOURS)
    with pytest.raises(TeacherError, match="does not tell its normalization"):
        read("torchvision:inception_v3=none.pth", *COLOURS)
    file = tmp_path / "vit.pth"
    torch.save(models.get_model("vit_b_32", num_classes=3).state_dict(), file)
    with pytest.raises(TeacherError, match="cannot take images of 64 px"):
        read(f"torchvision:vit_b_32={file}", *COLOURS, sizes=(64, 224))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_a_step_changes_the_student_alone(tmp_path: Path, weight: float) -> None:
    """Labels are shares, as MixUp makes them; the loss is the sum of its parts."""
    name, classes = saved(tmp_path / "teacher", list(COLOURS)), tuple(COLOURS)
    options = ClassificationOptions(
        distill=DistillOptions(teacher=name, weight=weight, temperature=2.0)
    )
    learner = ClassificationTraining(
        options,
        SimpleNamespace(classes=classes),
        student_of(*classes),
        sizes=(32,),
        console=Console(quiet=True),
    )
    teacher = learner.teacher
    before = {key: value.clone() for key, value in teacher.network.state_dict().items()}
    assert not list(learner.parameters()) and not any("network" in k for k in learner.state_dict())
    student = create_model("mobilevit_xxs", num_classes=3)
    images, shares = torch.rand(4, 3, 32, 32), torch.rand(4, 3).softmax(-1)
    loss = learner.training_loss(student, (images, shares))
    loss.backward()
    figures = learner.figures("train")
    parts = (figures["train_label_loss"], figures["train_teacher_loss"])
    total = (1 - weight) * parts[0] + weight * parts[1]
    assert loss.item() == pytest.approx(total, rel=1e-5) and parts[0] != parts[1]
    assert figures["train_loss"] == pytest.approx(loss.item())
    assert all(value.grad is not None for value in student.parameters())
    assert all(value.grad is None for value in teacher.network.parameters())
    after = teacher.network.state_dict()
    assert all(before[key].equal(after[key]) for key in before)
    learner.reset("train")
    assert not float(learner.means["teacher_loss"].images)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_images(tmp_path_factory.mktemp("images"), count=15)


def small(root: Path, out: Path, distill: DistillOptions | None = None, **options: Any) -> Any:
    defaults = {"sampler": STANDARD, "optim": OptimOptions(lr=0.005)}
    if distill is not None:
        options["task_options"] = ClassificationOptions(distill=distill)
    return runs.small(root, out, **{**defaults, **options})


@pytest.fixture(scope="module")
def taught(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A teacher with its own input values and firm opinions; a run with it, and one without."""
    out = tmp_path_factory.mktemp("runs")
    torch.manual_seed(1)
    teacher = create_model(
        "mobilevit_xxs", classes=list(COLOURS), preprocessing={"channel_order": "bgr", **IMAGENET}
    )
    assert not isinstance(teacher, Backbone)
    torch.nn.init.normal_(teacher.get_parameter("head.weight"), std=3.0)
    save(teacher, out / "teacher")
    small(images, out / "taught", DistillOptions(teacher=str(out / "teacher")), epochs=4)
    small(images, out / "alone", epochs=1)
    return out / "teacher", out / "taught", out / "alone"


def test_the_predictions_of_the_teacher_are_learned(taught: tuple[Path, Path, Path]) -> None:
    _, run, _ = taught
    epochs = rows(run / "metrics.csv")
    losses = [float(row["train_teacher_loss"]) for row in epochs]
    assert losses == [float(row["train_loss"]) for row in epochs]  # labels play no part
    assert losses[-1] < losses[0]
    assert all(float(row["train_label_loss"]) != float(row["train_loss"]) for row in epochs)
    config = load(run / "model").config
    assert "taught by" in config.source and "taught by" in (run / "report.html").read_text()


def test_the_teacher_is_in_no_file(taught: tuple[Path, Path, Path]) -> None:
    _, run, alone = taught
    ours, theirs = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (run, alone)
    )
    for part in ("state_dict", "averaging_state"):
        more = ours[part].keys() - theirs[part].keys()
        assert theirs[part].keys() <= ours[part].keys()
        assert all(re.search(r"task\.means\.(label|teacher)_loss\.", key) for key in more)
    sizes = [(folder / "checkpoints" / "last.ckpt").stat().st_size for folder in (run, alone)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    own, other = (load(folder / "model").state_dict() for folder in (run, alone))
    assert own.keys() == other.keys()


def test_a_teacher_without_weight_changes_nothing(
    images: Path, taught: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Initial weights, augmentation and dropout are those of the run without it, bit by bit."""
    small(images, tmp_path / "run", DistillOptions(teacher=str(taught[0]), weight=0.0), epochs=1)
    ours, theirs = (load(run / "model").state_dict() for run in (tmp_path / "run", taught[2]))
    assert all(ours[key].equal(theirs[key]) for key in theirs)


def test_other_tasks_have_no_teacher(images: Path, tmp_path: Path) -> None:
    options = DistillOptions(teacher="mobilevit_s")
    for model in ("ssdlite_mobilevit_xxs", "deeplabv3_mobilevit_xxs"):
        with pytest.raises(TrainingError, match="classification options are not for"):
            small(images, tmp_path / "run", model=model, distill=options)


def test_a_failed_teacher_leaves_the_folder_free(images: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = create_model("mobilevit_xxs", classes=["cat", "dog"])
    other.config = replace(other.config, source="elsewhere")
    save(other, tmp_path / "other")
    with pytest.raises(TeacherError, match="lacks 3 of the 3 classes: blue, green, red"):
        small(images, tmp_path / "run", distill=DistillOptions(teacher=str(tmp_path / "other")))
    small(images, tmp_path / "run", epochs=1)
