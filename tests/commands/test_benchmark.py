"""Times, and what stands beside them."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from torch import nn

import mobilevit
from mobilevit.commands.benchmark import measure as bench_measure
from mobilevit.commands.benchmark.checks import input_images, measure_agreement
from mobilevit.commands.benchmark.command import benchmark
from mobilevit.commands.benchmark.measure import Worker, measure
from mobilevit.commands.benchmark.models import ModelSpec, find_subjects
from mobilevit.commands.benchmark.report import JSON, PLOT, TABLE, Benchmark, Row
from mobilevit.commands.export import sample_images

# torch's exporter and onnxscript use what their own dependencies deprecate.
pytestmark = [
    pytest.mark.export,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
    ),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Benchmark, Path]:
    """A trained model (so it says) in PyTorch, beside the file made of it in ONNX Runtime."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("benchmark")
    (subject,) = find_subjects(["mobilevit_xxs:num_classes=5@64"], None)
    model: Any = subject.network  # type: ignore[union-attr]
    model.config = replace(
        model.config, source="a test", classes=tuple("abcde"), metrics={"top1": 0.8}
    )
    mobilevit.save(model, folder / "model")
    options = mobilevit.ExportOptions(out=str(folder / "model.onnx"))
    mobilevit.export(folder / "model", options)
    result = benchmark(
        folder / "model",
        folder / "model.onnx",
        runtime=["torch"],
        runs=3,
        warmup=1,
        out=str(folder / "out"),
    )
    return result, folder


def test_rows_have_times_memory_and_agreement(report: tuple[Benchmark, Path]) -> None:
    result, folder = report
    assert [row.runtime for row in result.rows] == ["torch", "onnx"]
    assert result.exit_code == 0
    for row in result.rows:
        opening, size = row.opening_bytes, row.file_bytes
        assert row.why == "" and row.runs == 3 and row.warmup == 1
        assert row.min_ms and row.median_ms and row.p90_ms and row.cpu_ms
        assert 0 < row.min_ms <= row.median_ms <= row.p90_ms and row.cpu_ms > 0
        assert row.opening_ms and row.first_run_ms and row.resize_ms
        assert size and size > 3e6 and opening and opening > size / 4
        assert row.agrees and row.same == 1
        assert row.difference is not None and row.difference < 1e-3
        assert (row.accuracy, row.accuracy_metric) == (0.8, "top1")
    raw, whole = result.rows
    assert raw.ratio == raw.cpu_ratio == 1
    assert raw.version == f"torch {torch.__version__}"
    assert (raw.end_to_end, whole.end_to_end) == (False, True)
    assert whole.version is not None and whole.version.startswith("onnxruntime ")
    assert raw.macs and whole.macs is None
    assert raw.normalize_ms is not None and raw.postprocess_ms is not None
    assert whole.normalize_ms is None and whole.postprocess_ms is None
    assert str(folder) in str(result)


def test_files_hold_every_figure(report: tuple[Benchmark, Path]) -> None:
    result, folder = report
    values = json.loads((folder / "out" / JSON).read_text())
    assert {"device", "cores", "os", "python", "load_before"} <= values["machine"].keys()
    for row in values["rows"]:
        assert row.keys() == {item.name for item in fields(Row)}
        assert row["median_ms"] > 0
    assert len(values["rows"]) == 2
    assert (folder / "out" / TABLE).read_text().strip() == str(result)
    drawing = (folder / "out" / PLOT).read_text()
    assert "top-1, %" in drawing and "onnx, fp32, 1 thread" in drawing


def test_new_weights_have_their_own_bound() -> None:
    pytest.importorskip("onnxscript")
    result = benchmark("mobilevit_xxs@32", runtime=["onnx"], runs=1, warmup=1)
    (row,) = result.rows
    assert row.why == "" and row.ratio == 1
    assert row.operations and row.file_bytes and row.writing_s
    assert row.placement is None and row.source == "new weights"
    assert row.agrees and row.difference is None
    assert row.deviation is not None and row.deviation < 1e-3


@pytest.mark.parametrize(("scale", "agrees"), [(1, True), (100, False)])
def test_quantized_files_have_the_bounds_of_export(scale: float, agrees: bool) -> None:
    """Logits that are too large have the same most probable class, and other probabilities."""
    (subject,) = find_subjects(["mobilevit_xxs:num_classes=5@32"], None)
    trained = replace(subject, config=replace(subject.config, source="a test"))
    images = input_images(trained, sample_images(), 1)
    with torch.inference_mode():
        outputs = scale * trained.network(torch.from_numpy(images))  # type: ignore[misc]
    row = Row(
        model=trained.name,
        task="classification",
        source="a test",
        end_to_end=False,
        runtime="onnx",
        precision="fp32",
        quantize="int8",
        size=32,
        batch=1,
        warmup=1,
    )
    vars(row).update(measure_agreement(row, trained, images, [outputs.numpy()]))
    assert row.same == 1 and row.agrees == agrees
    assert row.mean_difference is not None and (row.mean_difference > 0.1) != agrees
    assert ("DISAGREES with PyTorch (mean difference 0." in str(row.notes())) != agrees


def test_what_can_not_be_is_a_row_with_the_reason(report: tuple[Benchmark, Path]) -> None:
    _, folder = report
    result = benchmark(
        folder / "model.onnx",
        f"{folder / 'model'}@48",
        sizes=[64, 96],
        batch=[2],
        runtime=["torch"],
        quantize=["int8"],
        precision=["fp32"],
        runs=1,
        warmup=1,
    )
    reasons = [row.why for row in result.rows]
    assert "one image at a time" in reasons[0] and "64 px; export one for 96 px" in reasons[1]
    assert reasons[2] == "" and reasons[3] == "torch has no int8"
    assert [row.size for row in result.rows] == [64, 96, 48, 48]
    assert result.rows[2].batch == 2 and result.rows[2].agrees
    assert result.rows[2].accuracy is None  # it was measured at 64 px
    assert "onnx, fp32, 1 thread, batch 2: the file takes one image at a time" in str(result)
    assert result.exit_code == 0


def test_what_a_process_does_not_survive_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {"threads": 1, "timed": True, "label": "nothing", "runtime": "torch"}
    (found,) = measure([task], tmp_path, warmup=1, runs=1)
    assert found == {"why": "KeyError: 'output'"}
    killed = tmp_path / "killed.sh"
    killed.write_text("#!/bin/sh\nkill -KILL $$\n")
    killed.chmod(0o755)
    monkeypatch.setattr(bench_measure.sys, "executable", str(killed))
    assert Worker(task, tmp_path / "again").why == (
        "its process was ended by SIGKILL (out of memory?)"
    )


class Clock(Worker):
    """A worker whose runs take so long, which dies at the task's own `dies` of its turns."""

    asked: ClassVar[list[str]] = []

    def __init__(self, task: dict[str, Any], folder: Path) -> None:
        self.task, self.why, self.turns, self.facts = task, "", 0, {"version": "a clock"}
        self.rounds = {}

    def ask(self, *words: object) -> dict[str, Any]:
        if self.why or words[0] != "run":
            return {}
        self.asked.append(self.task["label"])
        self.turns += 1
        if self.turns == self.task.get("dies"):
            self.why = "it died"
            return {}
        times = [self.task["ms"]] * int(str(words[1]))
        return {"wall_ms": times, "cpu_ms": times}

    def close(self) -> None:
        pass


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_measure, "TOGETHER", 3)
    monkeypatch.setattr(bench_measure, "PAUSE", 0)
    monkeypatch.setattr(Clock, "asked", [])
    monkeypatch.setattr(bench_measure, "Worker", Clock)


@pytest.mark.usefixtures("clocks")
def test_networks_take_turns_in_groups_that_share_the_first(tmp_path: Path) -> None:
    tasks = [{"label": str(i), "ms": float(i + 1), "timed": i != 2} for i in range(6)]
    found = measure(tasks, tmp_path, warmup=1, runs=25)
    assert [one.get("runs") for one in found] == [50, 25, None, 25, 25, 25]
    assert [one.get("ratio") for one in found] == [1, 2, None, 4, 5, 6]
    assert found[1]["ratio_quartiles"] == [2, 2]
    assert found[1]["cpu_ratio"] == 2
    assert found[2]["version"] == "a clock" and "not timed" in found[2]["why"]
    orders = ["".join(Clock.asked[3 + 3 * i : 6 + 3 * i]) for i in range(10)]
    assert all(set(order) == set("013") for order in orders) and len(set(orders)) > 1


@pytest.mark.usefixtures("clocks")
@pytest.mark.parametrize(
    ("turn", "ratios"),
    [
        (1, [None, 1, 1.5, 2]),  # in the warm-up
        (6, [None, 1, 1.5, 2]),
        (16, [None, None, None, 1]),  # in the second group, which no other of the first was in
    ],
)
def test_ratios_are_to_the_next_network_if_the_first_fails(
    tmp_path: Path, turn: int, ratios: list[float | None]
) -> None:
    tasks = [{"label": str(i), "ms": float(i + 1), "timed": True} for i in range(4)]
    tasks[0]["dies"] = turn
    found = measure(tasks, tmp_path, warmup=1, runs=10)
    assert [one.get("ratio") for one in found] == ratios
    assert found[0] == {"version": "a clock", "why": "it died"}
    assert [one["median_ms"] for one in found[1:]] == [2, 3, 4]


def test_model_specs() -> None:
    assert ModelSpec.parse("mobilevit_xs") == ("mobilevit_xs", {}, None)
    spec = ModelSpec.parse("mobilevit_xs:patch_sizes=8,4,2:fusion=false@320")
    assert spec == ("mobilevit_xs", {"patch_sizes": [8, 4, 2], "fusion": False}, 320)
    assert ModelSpec.parse("owner/name@main") == ("owner/name@main", {}, None)
    assert ModelSpec.parse("https://host/a.pt") == ("https://host/a.pt", {}, None)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mobilevit_xx", "did you mean mobilevit_xxs"),
        ("mobilevit_xxs:patch_sizes", "written like mobilevit_xs:patch_sizes=8,4,2"),
        ("mobilevit_xxs:patches=2", "no option patches; did you mean patch_sizes"),
        ("mobilevit_xxs:patch_sizes=2", "mobilevit_xxs with patch_sizes=2: "),
        ("folder:patch_sizes=8,4,2", "known: mobilevit_xxs"),
        ("nowhere.onnx", "there is no file"),
        ("nowhere.pt", "there is no file"),
    ],
)
def test_unknown_names_help(name: str, message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        find_subjects([name], [64])


def test_networks_take_rgb_images() -> None:
    with pytest.raises(ValueError, match=r"cannot run at 64 px: images must be \[B, 1, H, W\]"):
        find_subjects([mobilevit.create_model("mobilevit_xxs", in_channels=1)], [64])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": ["tensorrt"]}, "runtime must be all or torch .*, not 'tensorrt'"),
        ({"precision": ["bf16"]}, "precision must be fp32 or fp16"),
        ({"precision": []}, "precision is empty"),
        ({"quantize": ["int1"]}, "quantize must be of int8"),
        ({"threads": [0]}, "threads must be at least 1"),
        ({"runs": 0}, "runs must be at least 1"),
        ({"accuracies": {"mobilevit_s": 0.7}}, "the models are mobilevit_xxs"),
    ],
)
def test_unknown_options_help(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        benchmark("mobilevit_xxs@32", **options)


def test_new_weights_are_the_same_each_time_and_of_ordinary_size() -> None:
    state = torch.random.get_rng_state()
    first, second = find_subjects(["mobilevitv2_050@64", "mobilevitv2_050@64"], None)
    assert first.weights == second.weights and first.is_new and first.network is not None
    assert torch.equal(state, torch.random.get_rng_state())
    variances = [
        module.running_var.mean().item()  # type: ignore[union-attr]
        for module in first.network.modules()
        if isinstance(module, nn.BatchNorm2d)
    ]
    assert any(abs(variance - 1) > 0.01 for variance in variances)
    assert all(
        module.momentum == 0.1
        for module in first.network.modules()
        if isinstance(module, nn.BatchNorm2d)
    )


def test_a_file_of_any_size_takes_any(report: tuple[Benchmark, Path]) -> None:
    _, folder = report
    (file,) = find_subjects([folder / "model.onnx"], None)
    assert file.file is not None and file.size == file.own_size == 64
    varying = replace(file, file=replace(file.file, dynamic="size"), size=96)
    assert varying.why_not(1) == "" and "one image" in varying.why_not(2)


def test_photos_of_any_shape_for_a_network_of_any_size() -> None:
    """They are resized to the size that the row names, where `predict` keeps their shape."""
    model: Any = mobilevit.create_model(
        "deeplabv3_mobilevitv2_050",
        classes=("sky", "sea"),
        preprocessing={"crop": 64, "resize": 64},
    )
    assert model.config.preprocessing.resize_mode == "shortest_edge"
    (subject,) = find_subjects([model], [96])
    temple = sample_images()[0]
    turned = [temple, temple.transpose(Image.Transpose.ROTATE_90)]
    assert input_images(subject, turned, 1).shape == (2, 3, 96, 96)
