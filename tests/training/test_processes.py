"""Runs in several processes, as torchrun starts them; gloo on the CPU."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mobilevit
from mobilevit.__main__ import main
from mobilevit.checkpoints.create import load
from mobilevit.data.options import DataOptions
from mobilevit.data.sampler import EpochOrder, MultiScaleBatchSampler, MultiScaleSchedule
from mobilevit.models.registry import task_of
from mobilevit.tasks import get_task
from mobilevit.training.module import TrainingModule
from tests.data.factories import write_class_folders, write_mask_folders, write_yolo
from tests.training.runs import COLOURS, rows

pytestmark = pytest.mark.slow

LOSS = 1e-4
"""Relative: sums in another order move the weights a little with each step, and so the loss."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ by colour: 24 images to train on, 21 to evaluate."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 7)):
        for name, colour in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                values = np.array(colour) + draw.normal(0, 60, (36, 40, 3))
                image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
                image.save(root / split / name / f"{number}.png")
    return root


@contextmanager
def without_batch_statistics() -> Iterator[None]:
    """Training without batch norm's statistics: those belong to the images of one process."""
    trained = TrainingModule.train

    def train(self: TrainingModule, mode: bool = True) -> TrainingModule:
        trained(self, mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "train", train)
        yield


SCRIPT = """
import json, os, sys
from contextlib import ExitStack, redirect_stdout
sys.path[:0] = {path!r}
from mobilevit.__main__ import main
from tests.training.test_processes import without_batch_statistics

for name, still, words in json.loads(sys.argv[1]):
    with ExitStack() as stack:
        output = stack.enter_context(open(f"{{name}}.{{os.environ['RANK']}}", "w"))
        stack.enter_context(redirect_stdout(output))
        if still:
            stack.enter_context(without_batch_statistics())
        if code := main(words):
            sys.exit(code)
"""
KILLING = """
import multiprocessing, sys
sys.path[:0] = {path!r}
from mobilevit.__main__ import main
from mobilevit.training.module import TrainingModule

step = TrainingModule.training_step

def kill(self, batch, batch_idx):
    if (self.global_rank, self.current_epoch, batch_idx) == (1, 1, 0):
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
    return step(self, batch, batch_idx)

TrainingModule.training_step = kill
sys.exit(main(sys.argv[1:]))
"""
DROPOUTS = ("dropout", "attention_dropout", "ffn_dropout", "classifier_dropout")
PLAIN = [word for name in DROPOUTS for word in (f"--network.{name}", "0")]
PLAIN += ["--sampler.mode", "standard"]


STEPWISE = [
    *("--batch_size", "4", "--sampler.min_size", "32", "--sampler.max_size", "48"),
    *("--sampler.multiple", "16", "--optim.accumulate", "2", "--epochs", "6"),
]
LOADED = ["--batch_size", "2", "--epochs", "4", "--data.workers", "1"]
MODELS = ("mobilevit_xxs", "ssdlite_mobilevit_xxs", "pspnet_mobilevit_xxs")
LONELY = [
    *("--epochs", "1", "--batch_size", "2", "--sampler.mode", "standard", "--size", "64"),
]


def torchrun(*words: str) -> list[str]:
    runner = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    what = () if words[0].endswith(".py") else ("-m", "mobilevit")
    return [*runner, "--nproc-per-node", "2", *what, *words]


def training(images: Path, out: Path, *words: str) -> list[str]:
    return [
        *("train", "--model", "mobilevit_xxs", "--data.root", str(images), "--out", str(out)),
        *("--size", "32", "--threads", "1", "--data.workers", "0", "--optim.lr", "0.005"),
        *("--epochs", "2", *words),
    ]


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ranks_take_the_same_sizes_and_other_samples() -> None:
    schedule = MultiScaleSchedule(
        samples=34, sizes=(32, 48, 64), base_size=48, base_batch=4, seed=3
    )
    for epoch in range(3):
        plans = []
        for rank in range(3):
            np.random.default_rng(rank).random(100 * rank)  # others draw as they like
            np.random.seed(rank)
            order = EpochOrder(100, seed=3, rank=rank, world_size=3)
            order.set_epoch(epoch)
            plans.append(list(MultiScaleBatchSampler(order, schedule)))
        shapes = [[(len(b), b[0].height, b[0].width) for b in plan] for plan in plans]
        assert shapes[0] == shapes[1] == shapes[2]
        seen = [key.sample for plan in plans for batch in plan for key in batch]
        assert len(seen) == 102 and set(seen) == set(range(100))  # two are seen twice


def lonely_data(root: Path, model: str) -> Path:
    """A data set of the model's task with a single image to validate on."""
    write = {
        "classification": write_class_folders,
        "detection": write_yolo,
        "segmentation": write_mask_folders,
    }[task_of(model)]
    first, *others = sorted(path for path in (write(root) / "val").rglob("*.*"))
    for extra in others:
        if extra.stem != first.stem:
            extra.unlink()
    return root


@pytest.fixture(scope="module")
def stopped(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A training, one of whose processes was terminated after an epoch, and what was printed."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    process = subprocess.Popen(
        torchrun(*training(images, out, *STEPWISE)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (out / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
    os.kill(int(children.stdout.split()[-1]), signal.SIGTERM)
    _, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    return out, errors


@pytest.fixture(scope="module")
def killed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A training, one of whose loader workers was killed, and what was printed."""
    out = tmp_path_factory.mktemp("killed")
    script = out / "killing.py"
    script.write_text(KILLING.format(path=sys.path))
    command = torchrun(str(script), *training(images, out / "run", *LOADED))
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode != 0
    return out / "run", done.stderr


@pytest.fixture(scope="module")
def runs(
    images: Path,
    stopped: tuple[Path, str],
    killed: tuple[Path, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Commands by two processes, which are started once for all of them.

    `one` and `one taught` are by this process alone, with twice the batch. In these, `two` and `two
    taught`, nothing is dropped; what augmentation draws belongs to a sample and an epoch.
    """
    out = tmp_path_factory.mktemp("runs")
    script = out / "script.py"
    script.write_text(SCRIPT.format(path=sys.path))
    taught = ["--epochs", "1", "--classification.distill.teacher", str(out / "one" / "model")]
    by_two = []
    for name, options in (("", PLAIN), (" taught", [*PLAIN, *taught])):
        with without_batch_statistics():
            one = training(images, out / f"one{name}", "--batch_size", "8", *options)
            assert main(one) == 0
        two = training(images, out / f"two{name}", "--batch_size", "4", *options)
        by_two.append((f"two{name}", True, two))
    for name, options in (("whole", STEPWISE), ("loaded", LOADED)):
        by_two.append((name, False, training(images, out / name, *options)))
    for begun, _ in (stopped, killed):
        by_two.append(("resumed", False, ["train", "--out", str(begun), "--resume"]))
    for model in MODELS:
        data = lonely_data(out / f"{model} data", model)
        by_two.append((model, False, training(data, out / model, "--model", model, *LONELY)))
    plan = [(str(out / f"{name}.txt"), still, words) for name, still, words in by_two]
    run(torchrun(str(script), json.dumps(plan)))
    return out


def printed(runs: Path, name: str) -> str:
    """What both processes of a training have printed."""
    return "".join((runs / f"{name}.txt.{rank}").read_text() for rank in range(2))


@pytest.fixture(scope="module")
def still(runs: Path) -> tuple[Path, Path]:
    """The same training by one process with a batch of 8, and by two with one of 4 each."""
    text = printed(runs, "two")
    assert text.count("epoch 2/2") == 1  # one of them speaks
    assert "in each of 2 processes" in text
    return runs / "one", runs / "two"


def test_two_processes_learn_as_one_with_twice_the_batch(still: tuple[Path, Path]) -> None:
    ours, theirs = (rows(out / "steps.csv") for out in still)
    assert len(ours) == len(theirs) == 6
    for a, b in zip(ours, theirs, strict=True):
        assert (a["height"], a["batch"]) == (b["height"], b["batch"])
        assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=LOSS)
    one, two = (load(out / "model_last").state_dict() for out in still)
    # Not each for itself: a key's bias has no gradient but for rounding, which Adam makes steps of.
    a, b = (torch.cat([value.flatten().float() for value in net.values()]) for net in (one, two))
    assert (a - b).norm() < 1e-3 * a.norm()


def test_two_processes_evaluate_as_one(still: tuple[Path, Path]) -> None:  # A22
    one, two = (rows(out / "metrics.csv") for out in still)
    for a, b in zip(one, two, strict=True):
        for figure in ("val_top1", "val_top5", "train_top1"):
            assert float(a[figure]) == float(b[figure])
        assert float(a["val_loss"]) == pytest.approx(float(b["val_loss"]), rel=LOSS)


def test_evaluation_by_two_processes_is_that_by_one(
    still: tuple[Path, Path], images: Path, tmp_path: Path
) -> None:  # A22
    words = ["evaluate", str(still[0] / "model"), "--data.root", str(images), "--threads", "1"]
    assert main([*words, "--out", str(tmp_path / "one.json")]) == 0
    text = run(torchrun(*words, "--out", str(tmp_path / "two.json")))
    files = (tmp_path / "one.json", tmp_path / "two.json")
    one, two = (json.loads(file.read_text())["sizes"]["32"] for file in files)
    assert one.keys() == two.keys() and one["images"] == two["images"] == 21
    # What hangs on the last digit of a logit, which hangs on a batch's size.
    for summed in ("loss", "calibration_error"):
        assert one.pop(summed) == pytest.approx(two.pop(summed), rel=LOSS)
    ours, theirs = (sorted(mistake[:3] for mistake in one.pop("mistakes")) for one in (one, two))
    assert ours == theirs
    assert one == two
    assert "21" in text


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert (ours / "steps.csv").read_text() == (theirs / "steps.csv").read_text()
    one, other = (load(path / "model_last").state_dict() for path in (ours, theirs))
    assert all(one[name].equal(other[name]) for name in other)


def test_a_signal_to_one_process_stops_all_and_they_resume(
    runs: Path, stopped: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Multi-scale, accumulated; the end is that of a run that nothing has stopped."""
    out, errors = stopped
    assert "--resume" in errors
    assert_same_run(out, runs / "whole")
    assert main(["train", "--out", str(out), "--resume"]) == 1
    assert "begun with 2 processes" in capsys.readouterr().err


def test_a_dying_worker_of_one_process_stops_all_and_they_resume(
    runs: Path, killed: tuple[Path, str]
) -> None:
    out, errors = killed
    assert "fewer --data.workers need less" in errors
    assert "a worker of another process has died. --resume continues from" in errors
    assert_same_run(out, runs / "loaded")


def test_two_processes_have_a_teacher_each(runs: Path) -> None:
    """Its answers are those that one process learns, with twice the batch."""
    assert printed(runs, "two taught").count("teacher: ") == 1
    ours, theirs = (rows(runs / f"{name} taught" / "steps.csv") for name in ("one", "two"))
    losses = [[float(row["loss"]) for row in steps] for steps in (ours, theirs)]
    assert losses[0] == pytest.approx(losses[1], rel=LOSS)
    ours, theirs = (rows(runs / f"{name} taught" / "metrics.csv") for name in ("one", "two"))
    for figure in ("train_loss", "train_label_loss", "train_teacher_loss"):
        assert float(ours[0][figure]) == pytest.approx(float(theirs[0][figure]), rel=LOSS)


@pytest.mark.parametrize("model", MODELS)
def test_a_process_without_a_validation_image_takes_part(runs: Path, model: str) -> None:
    """Of two processes one has the only image; figures are those of the image alone."""
    assert "1 validation images" in printed(runs, model)
    data = DataOptions(root=str(runs / f"{model} data"), workers=0)
    found = mobilevit.evaluate(runs / model / "model", data=data).metrics
    assert found.images == 1
    (figures,) = rows(runs / model / "metrics.csv")
    key = get_task(task_of(model)).metric_key
    expected = getattr(found, key)
    assert float(figures[f"val_{key}"]) == pytest.approx(expected, abs=1e-6, nan_ok=True)


@pytest.fixture
def hosts() -> Iterator[list[tuple[str, str, str]]]:
    """Two network namespaces with a cable between them: (name, network device, address)."""
    made = [(f"mvit{side}{os.getpid()}", f"mvit{side}", f"10.213.7.{side}") for side in (1, 2)]

    def ip(*words: str, inside: str | None = None) -> None:
        where = ["ip", "-n", inside] if inside else ["ip"]
        subprocess.run([*where, *words], check=True, capture_output=True)

    if shutil.which("ip") is None:
        pytest.skip("there is no command ip to make network namespaces with")
    try:
        for name, *_ in made:
            ip("netns", "add", name)
        first, second = made
        far = ("peer", "name", second[1], "netns", second[0])
        ip("link", "add", first[1], "netns", first[0], "type", "veth", *far)
    except subprocess.CalledProcessError as error:
        for name, *_ in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        pytest.skip(f"network namespaces are not allowed here: {error.stderr.decode().strip()}")
    for name, device, address in made:
        ip("address", "add", f"{address}/24", "dev", device, inside=name)
        ip("link", "set", device, "up", inside=name)
        ip("link", "set", "lo", "up", inside=name)
    yield made
    for name, *_ in made:
        ip("netns", "del", name)


def test_two_hosts_train_together(
    hosts: list[tuple[str, str, str]], runs: Path, images: Path, tmp_path: Path
) -> None:
    """Each has its own address; the curve is that of two processes on one host."""
    words = training(images, tmp_path / "run", *PLAIN, "--batch_size", "4")
    plan = json.dumps([(str(tmp_path / "printed"), True, words)])
    started = []
    for rank, (name, device, _) in enumerate(hosts):
        # The launcher passes its environment on to the processes.
        environment = ["env", f"GLOO_SOCKET_IFNAME={device}"]
        launcher = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank"),
            *(str(rank), "--nproc-per-node", "1", "--master-addr", hosts[0][2]),
            *("--master-port", "29511", str(runs / "script.py"), plan),
        ]
        command = [*("ip", "netns", "exec", name), *environment, *launcher]
        started.append(
            subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = [process.communicate(timeout=600)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    assert (tmp_path / "run" / "steps.csv").read_text() == (runs / "two" / "steps.csv").read_text()
