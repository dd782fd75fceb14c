"""`mobilevit sweep`: real trainings of noisy images at 32 px."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import yaml

from mobilevit.__main__ import main
from mobilevit.commands import sweep as module
from mobilevit.commands.sweep import read_space
from mobilevit.training.errors import DivergedError, Interrupted
from mobilevit.training.options import TrainOptions

pytestmark = pytest.mark.slow

pytest.importorskip("optuna")

SPACE = "optim.weight_decay=log:1e-3..0.1:2; classification.augment.mixup=0,0.2"


@pytest.fixture
def words(images: Path, tmp_path: Path) -> list[str]:
    return [
        *("sweep", "--data.root", str(images), "--out", str(tmp_path / "sweep")),
        *("--model", "mobilevit_xxs", "--size", "32", "--epochs", "1", "--batch_size", "8"),
        *("--sampler.mode", "standard", "--threads", "1", "--data.workers", "0"),
    ]


def test_an_interrupted_grid_goes_on_and_repeats_nothing(words, tmp_path, monkeypatch, capsys):
    began = []
    module_train = module.train

    def stops_at_third(options, *, resume):
        began.append((Path(options.out).name, resume))
        if len(began) == 3:
            raise Interrupted(tmp_path / "none")
        return module_train(options, resume=resume)

    monkeypatch.setattr(module, "train", stops_at_third)
    words += ["--space", SPACE, "--method", "grid"]
    assert main(words) == 130
    assert main(words) == 1 and "not empty" in capsys.readouterr().err
    assert main([*words, "--resume", "--epochs", "2"]) == 1
    assert "other options: epochs 1 -> 2" in capsys.readouterr().err
    assert main(["sweep", "--out", str(tmp_path / "sweep"), "--resume"]) == 0
    assert [name for name, _ in began] == [
        *("trial_000", "trial_001", "trial_002", "trial_002", "trial_003")
    ]

    folder = tmp_path / "sweep"
    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert {(row["optim.weight_decay"], row["classification.augment.mixup"]) for row in rows} == {
        *(("0.001", "0.0"), ("0.001", "0.2"), ("0.1", "0.0"), ("0.1", "0.2"))
    }
    assert "classification.augment.mixup" in (folder / "plot.svg").read_text()
    assert [row["trial"] for row in rows] == sorted(path.name for path in folder.glob("trial_*"))
    best = max(rows, key=lambda row: float(row["top1"]))
    recipe = yaml.safe_load((folder / "best.yaml").read_text())
    assert recipe["optim"]["weight_decay"] == float(best["optim.weight_decay"])
    assert recipe == yaml.safe_load((folder / best["trial"] / "config.yaml").read_text())
    out = capsys.readouterr().out
    assert "in 4 trials" in out and "trial_003" in out


def test_a_trial_that_diverges_is_reported_and_the_sweep_goes_on(words, monkeypatch, capsys):
    module_train = module.train

    def diverges(options, *, resume):
        if options.optim.weight_decay == 0.1:
            raise DivergedError("the loss is nan after epoch 1")
        return module_train(options, resume=resume)

    monkeypatch.setattr(module, "train", diverges)
    assert main([*words, "--space", "optim.weight_decay=0.1,0.01", "--method", "grid"]) == 0
    out = capsys.readouterr().out
    assert "failed" in out and "in 1 trials" in out


@pytest.mark.parametrize("method", ["tpe", "random"])
def test_values_are_drawn_within_the_range_and_differ(method, words, tmp_path):
    words += ["--space", "optim.weight_decay=log:1e-4..0.5", "--method", method]
    assert main([*words, "--trials", "1"]) == 0
    assert main([*words, "--trials", "2", "--resume"]) == 0
    rows = list(csv.DictReader((tmp_path / "sweep" / "results.csv").read_text().splitlines()))
    drawn = {float(row["optim.weight_decay"]) for row in rows}
    assert len(drawn) == 2 and all(1e-4 <= value <= 0.5 for value in drawn)


@pytest.mark.parametrize(
    ("space", "says"),
    [
        ("optim.wait_decay=0,1", "is it optim.weight_decay"),
        ("weight_decay=0,1", "is it optim.weight_decay"),
        ("optim.weight_decay=0.5..0.1", "no range 0.5..0.1"),
        ("optim.weight_decay=log:0..0.1", "no range log:0..0.1"),
        ("optim.weight_decay=0.1", "one value only"),
        ("optim.weight_decay=a,b", "cannot be 'a'"),
        ("optim.weight_decay", "OPTION=VALUES"),
        ("sampler.mode=0..1", "not a number"),
        ("classification.augment.scale=0.1..0.5", "not a number"),
        ("classification.augment.erase=0..2", "in [0, 1]"),
        (
            "classification.augment.mixup=0,1;classification.augment.mixup=0,2",
            "twice",
        ),
        (" ; ", "empty"),
        ("data.root=a,b", "no option 'data.root'"),
    ],
)
def test_what_cannot_be_varied_is_reported(space, says, words, tmp_path, capsys):
    assert main([*words, "--space", space]) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "sweep").exists()


def test_a_space_is_read_by_the_options_types():
    axes = read_space(
        "classification.augment.scale=[0.08,1],[0.35,1]\n"
        "classification.augment.rand_augment=0..2:3; sampler.mode=standard,multiscale",
        TrainOptions.flag_types(),
    )
    assert [axes[0].value(point) for point in axes[0].points] == [(0.08, 1.0), (0.35, 1.0)]
    assert axes[1].points == [0, 1, 2]
    assert axes[2].points == ["standard", "multiscale"]
