"""Training runs: small, but whole ones."""

import math
import os
import re
import signal
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mobilevit.__main__ import main
from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import digest, save
from mobilevit.data.errors import DataError
from mobilevit.data.options import DataOptions
from mobilevit.models.registry import NetworkOptions
from mobilevit.tasks.classification.options import ClassificationOptions
from mobilevit.tasks.classification.transforms import AugmentOptions
from mobilevit.training.errors import TrainingError
from mobilevit.training.options import OptimOptions
from tests.training.runs import (
    COLOURS,
    CommandServer,
    colour_images,
    interrupted_at,
    rows,
    small,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return colour_images(tmp_path_factory.mktemp("images"), count=20)


@pytest.fixture(scope="module")
def whole_run(images, tmp_path_factory):
    """One uninterrupted run."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return small(images, out, epochs=4), out


def test_a_run_learns_and_leaves_everything_behind(whole_run):
    result, out = whole_run
    assert result.metrics.images == 12  # four of twenty held out in each class
    assert 0 <= result.train_metrics.top1 <= 1
    assert str(out / "model") in str(result)
    model = load(out / "model")
    assert model.config.classes == ("blue", "green", "red")
    assert model.config.preprocessing.crop == 32
    assert load(out / "model_last").config.metrics["epoch"] == 4
    epochs, steps = rows(out / "metrics.csv"), rows(out / "steps.csv")
    assert [row["epoch"] for row in epochs] == ["1", "2", "3", "4"]
    assert {row["height"] for row in steps} == {"32", "48"}
    assert int(epochs[-1]["step"]) == int(steps[-1]["step"]) == len(steps)
    assert min(float(row["val_loss"]) for row in epochs) < 0.9 * math.log(3)  # by chance: log(3)
    best = max(float(row["val_top1"]) for row in epochs)
    assert model.config.metrics["top1"] == result.metrics.top1 == pytest.approx(best)
    assert list((out / "tensorboard").glob("events*"))
    assert "<html" in (out / "report.html").read_text()


def test_the_learning_rate_rises_and_falls_over_the_whole_run(whole_run):
    rates = [float(row["lr"]) for row in rows(whole_run[1] / "steps.csv")]
    top = int(np.argmax(rates))
    assert max(rates) == pytest.approx(0.01, rel=0.02)
    assert top <= 0.1 * len(rates)
    assert all(a > b for a, b in zip(rates[top:], rates[top + 1 :], strict=False))
    assert rates[-1] == pytest.approx(0.001, rel=0.05)


def test_config_yaml_repeats_the_run(whole_run, tmp_path):  # A47
    out = whole_run[1]
    again = tmp_path / "again"
    assert main(["train", "--config", str(out / "config.yaml"), "--out", str(again)]) == 0
    assert (again / "steps.csv").read_text() == (out / "steps.csv").read_text()
    weights = [digest(load(folder / "model_last").state_dict()) for folder in (out, again)]
    assert weights[0] == weights[1]
    config = yaml.safe_load((again / "config.yaml").read_text())
    assert config == yaml.safe_load((out / "config.yaml").read_text())


def test_an_interrupted_run_resumes_to_the_same_end(whole_run, images, tmp_path):
    """Ctrl-C in the first and in a later epoch; then, with a cache, the same weights as without."""
    out = tmp_path / "run"
    for step in (3, 30):
        with interrupted_at(step):
            small(images, out, epochs=4, resume=step > 3)
    data = DataOptions(root=str(images), workers=0, cache=str(tmp_path / "cache"))
    result = small(images, out, epochs=4, resume=True, data=data)
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 48 + 12
    expected, whole = whole_run
    assert (out / "steps.csv").read_text() == (whole / "steps.csv").read_text()
    for name in ("model", "model_last"):
        ours, theirs = load(out / name), load(whole / name)
        assert digest(ours.state_dict()) == digest(theirs.state_dict())
        assert ours.config.metrics == theirs.config.metrics
    for ours, theirs in zip(rows(out / "metrics.csv"), rows(whole / "metrics.csv"), strict=True):
        for figure in ("train_loss", "train_top1", "train_top5", "val_loss"):
            assert float(ours[figure]) == pytest.approx(float(theirs[figure]), rel=1e-6)
    assert result.metrics.loss == expected.metrics.loss
    seen = [
        re.findall(r">(\d+ × \d+<.*?</tr>)", (run / "report.html").read_text(), re.DOTALL)
        for run in (out, whole)
    ]
    assert seen[0] == seen[1] and len(seen[0]) == 2  # 32 and 48 px


@pytest.fixture(scope="module")
def server():
    with closing(CommandServer()) as server:
        yield server


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return colour_images(tmp_path_factory.mktemp("few"), count=8)


@pytest.mark.parametrize(
    ("number", "kill"),
    [(signal.SIGTERM, os.kill), (signal.SIGTERM, os.killpg), (signal.SIGINT, os.killpg)],
)
def test_a_killed_command_resumes(server, few, tmp_path, number, kill, capsys):
    """SIGTERM to the command alone or to its workers too, as schedulers do; Ctrl-C to both.

    `--out RUN --resume` says all that is needed to go on.
    """
    out, output = tmp_path / "run", tmp_path / "output"
    words = [
        *("train", "--model", "mobilevit_xxs", "--data.root", str(few), "--out", str(out)),
        *("--epochs", "60", "--size", "32", "--batch_size", "6", "--sampler.mode", "standard"),
        *("--threads", "1", "--data.workers", "1"),
    ]
    process = server.start(words, output)
    deadline = time.monotonic() + 120
    while not (out / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    kill(process, number)
    code, printed = server.wait(), output.read_text()
    assert code == 128 + number, printed
    assert "--resume" in printed
    assert "Traceback" not in printed
    done = len(rows(out / "metrics.csv"))
    assert main(["train", "--out", str(out), "--resume", "--epochs", str(done + 1)]) == 0
    printed = capsys.readouterr().out
    assert f"planned for 60 epochs and now has {done + 1}" in printed  # A17
    assert len(rows(out / "metrics.csv")) == done + 1


def test_a_run_folder_is_not_overwritten_and_resume_needs_one(whole_run, images, tmp_path):
    with pytest.raises(TrainingError, match="not empty; resume"):
        small(images, whole_run[1])
    with pytest.raises(TrainingError, match="no run to resume"):
        small(images, tmp_path / "none", resume=True)


def test_a_resumed_run_is_the_same_run(whole_run, images):
    before = (whole_run[1] / "config.yaml").read_text()
    with pytest.raises(TrainingError, match=r"other options: batch_size 6 -> 8; seed 0 -> 1"):
        small(images, whole_run[1], epochs=4, resume=True, batch_size=8, seed=1)
    assert (whole_run[1] / "config.yaml").read_text() == before


def test_a_run_that_failed_at_once_does_not_block_its_folder(images, tmp_path):
    """A loss that is no number is an error, and leaves the folder free."""
    with pytest.raises(TrainingError, match="diverged"):
        small(images, tmp_path / "run", epochs=1, optim=OptimOptions(lr=1e30))
    with interrupted_at(1):
        small(images, tmp_path / "run", epochs=1)


def test_fine_tuning_keeps_variant_and_preprocessing_and_can_freeze_the_backbone(images, tmp_path):
    torch.manual_seed(0)
    start = create_model("mobilevit_xxs", num_classes=9)
    start.config = replace(
        start.config, preprocessing=replace(start.config.preprocessing, channel_order="bgr")
    )
    save(start, tmp_path / "start")
    small(
        images,
        tmp_path / "run",
        model=None,
        epochs=1,
        weights=str(tmp_path / "start"),
        freeze_backbone=True,
        ema=0.0,
        network=NetworkOptions(dropout=0.3),
    )
    trained = load(tmp_path / "run" / "model")
    assert trained.config.model == "mobilevit_xxs"
    assert trained.config.preprocessing.channel_order == "bgr"
    assert trained.config.options == {"dropout": 0.3}
    before, after = start.state_dict(), trained.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if "backbone" in key)
    assert not torch.equal(before["expand.conv.weight"], after["expand.conv.weight"])


def test_the_recipe_of_v2_runs(images, tmp_path):
    """Everything that is off by default, at once: each part really runs."""
    result = small(
        images,
        tmp_path / "run",
        model="mobilevitv2_050",
        epochs=1,
        precision="bf16",
        task_options=ClassificationOptions(
            augment=AugmentOptions(rand_augment=2, erase=0.25, mixup=0.2, cutmix=1.0)
        ),
        optim=OptimOptions(clip=10.0, accumulate=2, decay_norms=False, head_lr=10.0),
        patience=3,
    )
    assert math.isfinite(result.metrics.loss)
    steps = rows(tmp_path / "run" / "steps.csv")  # each of two batches
    assert [int(row["step"]) for row in steps] == [*range(1, len(steps) + 1)]
    assert sum(int(row["batch"]) for row in steps) < 0.7 * 48


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, which may do all of it")
@pytest.mark.parametrize(
    ("options", "message"),
    [({"device": "cuda"}, "no cuda device"), ({"precision": "fp16"}, "fp16 needs a GPU")],
)
def test_what_needs_a_gpu_says_so(images, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        small(images, tmp_path / "run", **options)


def test_early_stopping(images, tmp_path):
    small(images, tmp_path / "run", epochs=30, patience=2, optim=OptimOptions(lr=1e-9))
    assert len(rows(tmp_path / "run" / "metrics.csv")) < 10


def broken_copies(images, root):
    """Two good images a class and, in one, three files that are none (A26)."""
    for name in COLOURS:
        (root / name).mkdir(parents=True)
        for number in range(4):
            content = (images / name / f"{number:02}.png").read_bytes()
            (root / name / f"{number:02}.png").write_bytes(content)
    good = (root / "red" / "00.png").read_bytes()
    (root / "red" / "cut.png").write_bytes(good[: len(good) // 2])
    (root / "red" / "empty.jpg").write_bytes(b"")
    (root / "red" / "text.jpg").write_text("not an image")
    return root


def test_bad_files_stop_a_run_and_are_all_named(images, tmp_path):  # A26
    root = broken_copies(images, tmp_path / "data")
    with pytest.raises(DataError) as caught:
        small(root, tmp_path / "run")
    assert all(name in str(caught.value) for name in ("cut.png", "empty.jpg", "text.jpg"))
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_bad_files_are_left_out_on_request(images, tmp_path, caplog):  # A26
    root = broken_copies(images, tmp_path / "data")
    small(
        root,
        tmp_path / "run",
        epochs=1,
        data=DataOptions(root=str(root), on_bad="skip", workers=0, val_fraction=0.3),
    )
    assert "3 images left out" in caplog.text
    seen = sum(int(row["batch"]) for row in rows(tmp_path / "run" / "steps.csv"))
    assert 0 < seen <= 9


def test_a_class_that_train_lacks_stops_a_run(images, tmp_path):  # A23
    for split, names in (("train", ["red", "blue"]), ("val", ["red", "green"])):
        for name in names:
            (tmp_path / split).mkdir(exist_ok=True)
            (tmp_path / split / name).symlink_to(images / name)
    with pytest.raises(DataError, match="green"):
        small(tmp_path, tmp_path / "run")
    with pytest.raises(DataError, match="nowhere"):
        small(Path("nowhere"), tmp_path / "run")


def test_few_images_train(images, tmp_path):  # A21
    for name in ("red", "blue"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(2):
            os.link(images / name / f"{number:02}.png", tmp_path / "data" / name / f"{number}.png")
    result = small(tmp_path / "data", tmp_path / "run", epochs=1, batch_size=128)
    assert result.metrics.images == 2
