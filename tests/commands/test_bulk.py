"""`mobilevit predict --engine ray`: the same answers, in Parquet files, each image once."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.__main__ import main
from mobilevit.commands.bulk import BulkError
from mobilevit.commands.predict import predict
from mobilevit.data.errors import DataError
from mobilevit.exports.spec import ExportError
from mobilevit.utils.devices import available_cores

ray = pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

# What Ray and Ray Data use is deprecated by others and by themselves, and they leave sockets and
# logs to the interpreter to close.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning",
        "ignore::FutureWarning",
        "ignore::ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray that calls in this process use; it has a core more than one started by a call."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local",
        num_cpus=available_cores() + 1,
        include_dashboard=False,
        object_store_memory=2**28,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture
def small() -> Callable[[str], Any]:
    """Make a small network of four classes whose answers differ from image to image."""

    def make(name: str) -> Any:
        torch.manual_seed(0)
        frame = {"crop": 64, "resize": 64}
        model = mobilevit.create_model(
            name, classes=["red", "green", "blue", "grey"], preprocessing=frame
        )
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = None  # statistics of all batches, as of a trained network
            model.train()(torch.rand(8, 3, 64, 64))
        return model.eval()

    return make


def in_bulk(model: Any, *images: Any, out: Path, **options: Any) -> Any:
    """Predict in one actor: each takes seconds to start."""
    return predict(model, *images, out=str(out), engine="ray", **{"workers": 1, **options})


def table(out: Path) -> list[dict[str, Any]]:
    return list(parquet.read_table(out).to_pylist())


@pytest.fixture
def broken(images: Path) -> Path:
    file = images / "green" / "3b.jpg"
    file.write_text("no image")
    return file


def test_classes(
    cluster: None, small: Callable[[str], Any], images: Path, broken: Path, tmp_path: Path
) -> None:
    model, out = small("mobilevit_xxs"), tmp_path / "out"
    there, gone = str(images), str(tmp_path / "gone.jpg")
    local = predict(model, there, gone)
    bulk = in_bulk(model, there, gone, out=out, part_size=5, top=3, workers=2)
    assert [file.name for file in bulk.parts] == [f"part-{n:06d}.parquet" for n in range(5)]
    rows = table(out)
    assert [row["source"] for row in rows] == [item.source for item in local]
    assert [row["error"] for row in rows] == [item.error for item in local]
    assert [source for source, _ in bulk.failed] == [str(broken), gone]
    assert bulk.exit_code == 1 and "2 could not be read" in str(bulk)
    for row, item in zip(rows, local, strict=True):
        if item.error is not None:
            assert row["classes"] is None and row["class"] is None
            continue
        assert row["classes"] == [name for name, _ in item.top(3)]
        assert (row["class"], row["probability"]) == (row["classes"][0], row["probabilities"][0])
        expected = [share for _, share in item.top(3)]
        np.testing.assert_allclose(row["probabilities"], expected, rtol=0, atol=1e-5)
    about = json.loads(parquet.read_schema(bulk.parts[0]).metadata[b"mobilevit"])
    assert about == {"task": "classification", "classes": ["red", "green", "blue", "grey"]}


def test_boxes(
    cluster: None, small: Callable[[str], Any], images: Path, broken: Path, tmp_path: Path
) -> None:
    model, out = small("ssdlite_mobilevit_xxs"), tmp_path / "out"
    with torch.no_grad():
        for head in model.heads:
            head.predict.weight *= 0.3
    local = predict(model, images, score=0.05)
    in_bulk(model, images, out=out, score=0.05)
    rows = table(out)
    assert sum(len(row["boxes"] or ()) for row in rows) > len(rows)
    for row, item in zip(rows, local, strict=True):
        assert (row["source"], row["error"]) == (item.source, item.error)
        if item.error is not None:
            assert row["boxes"] is None
            continue
        assert (row["width"], row["height"]) == (50, 40)
        assert [box["class"] for box in row["boxes"]] == [box.name for box in item.boxes]
        found = [[box[key] for key in ("score", "x1", "y1", "x2", "y2")] for box in row["boxes"]]
        expected = [[box.score, *box.corners] for box in item.boxes]
        np.testing.assert_allclose(
            np.reshape(found, (-1, 5)), np.reshape(expected, (-1, 5)), rtol=0, atol=1e-3
        )


def test_masks(
    cluster: None, small: Callable[[str], Any], images: Path, broken: Path, tmp_path: Path
) -> None:
    model, out = small("deeplabv3_mobilevit_xxs"), tmp_path / "out"
    local = predict(model, images)
    in_bulk(model, images, out=out, part_size=20)
    rows = table(out)
    assert len({name for row in rows for name in row["classes"] or ()}) > 1
    for row, item in zip(rows, local, strict=True):
        assert (row["source"], row["error"]) == (item.source, item.error)
        if item.error is not None:
            assert row["mask"] is None
            continue
        with Image.open(io.BytesIO(row["mask"])) as mask:
            # A pixel on the border of two classes may fall to either, by the last digit.
            assert (np.asarray(mask) == item.mask).mean() > 0.995
        assert (row["width"], row["height"]) == (50, 40)
        assert dict(zip(row["classes"], row["shares"], strict=True)) == pytest.approx(
            {one.name: one.share for one in item.shares}, abs=0.005
        )


def test_an_exported_file_and_a_list_of_names(
    cluster: None,
    small: Callable[[str], Any],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(images)
    (tmp_path / "list.txt").write_text("red/0.png\n\nnone/0.png\nblue/6.png\n", "utf-8-sig")
    file, out = tmp_path / "small.onnx", tmp_path / "out"
    model = mobilevit.save(small("mobilevit_xxs"), tmp_path / "m")
    mobilevit.export(model, mobilevit.ExportOptions(out=str(file)))
    local = predict(file, "red/0.png", "blue/6.png", threads=1)
    in_bulk(file, str(tmp_path / "list.txt"), out=out)
    rows = table(out)
    assert [row["source"] for row in rows] == ["red/0.png", "none/0.png", "blue/6.png"]
    assert rows[1]["error"]
    for row, item in zip(rows[::2], local, strict=True):
        expected = [share for _, share in item.top(5)]
        np.testing.assert_allclose(row["probabilities"], expected, rtol=0, atol=1e-5)


def test_killed_and_run_again(cluster: None, colours: Path, images: Path, tmp_path: Path) -> None:
    files = sorted(images.rglob("*.png"))
    names = tmp_path / "list.txt"
    names.write_text("".join(f"{file}\n" for file in files * 12))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mobilevit", "predict", str(colours), str(names)]
    command += ["--out", str(out), "--engine", "ray", "--part_size", "7", "--workers", "1"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while len(list(out.glob("part-*"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline, (
                tmp_path / "log"
            ).read_text()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(2)  # Ray's own processes see that theirs is gone
    before = {file: file.stat().st_mtime_ns for file in out.glob("part-*")}
    assert 3 <= len(before) < 36
    (out / ".part-000035.parquet.torn").write_bytes(b"PAR1")
    torn = max(before)
    torn.write_bytes(torn.read_bytes()[:100])  # as a disk that lost power may leave it
    del before[torn]
    done = in_bulk(colours, names, out=out)
    assert f"252 images in 36 Parquet files in {out} ({len(before)} of them existed" in str(done)
    assert [row["source"] for row in table(out)] == [str(file) for file in files * 12]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert not list(out.glob(".part-*"))


def test_the_cluster_at_ray_address(
    cluster: None, colours: Path, images: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "mobilevit", "predict", str(colours), str(images / "red")]
    command += ["--engine", "ray", "--workers", "999", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    # A cluster that the call itself started would have a core less.
    assert f"room for {available_cores() + 1} workers of 1 threads, not 999" in done.stderr


def test_a_folder_of_another_run_is_refused(
    cluster: None, colours: Path, small: Callable[[str], Any], images: Path, tmp_path: Path
) -> None:
    out, red = tmp_path / "out", images / "red"
    in_bulk(colours, red, out=out)
    again = in_bulk(colours, red, out=out, part_size=3)  # the first size stays
    assert again.kept == len(again.parts) == 1
    with pytest.raises(BulkError, match="differs in: model, classes or preprocessing"):
        in_bulk(small("mobilevit_xxs"), red, out=out)
    with pytest.raises(BulkError, match="differs in: images"):
        in_bulk(colours, images / "blue", out=out)
    with pytest.raises(BulkError, match="differs in: top"):
        in_bulk(colours, red, out=out, top=2)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(BulkError, match=r"not empty \(letter\.txt\)"):
        in_bulk(colours, red, out=tmp_path / "mine")


def test_options_that_do_not_fit(
    cluster: None, colours: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    given: list[tuple[dict[str, Any], str]] = [
        ({}, "--out FOLDER"),
        ({"out": out, "device": "cuda"}, "on CPUs"),
        ({"out": out, "part_size": 0}, "at least 1"),
        (
            {"out": out, "workers": 999},
            f"{available_cores() + 1} workers of 1 threads, not 999",
        ),
        ({"out": out, "threads": 999}, "room for 0 workers of 999 threads"),
        ({"out": out, "html": "a.html"}, "leave html and format out"),
    ]
    for options, message in given:
        with pytest.raises(ValueError, match=message):
            predict(colours, images, engine="ray", **options)
    with pytest.raises(BulkError, match="not images in memory"):
        predict(colours, np.zeros((8, 8, 3), np.uint8), engine="ray", out=out)
    with pytest.raises(DataError, match="no such file"):
        predict(colours, tmp_path / "none.jpg", engine="ray", out=out)
    with pytest.raises(BulkError, match="cannot be read"):
        predict(colours, tmp_path / "none.txt", engine="ray", out=out)
    with pytest.raises(ExportError, match="there is no file"):
        predict(tmp_path / "none.onnx", images, engine="ray", out=out)
    with pytest.raises(ValueError, match="part_size is an option"):
        predict(colours, images, part_size=3)
    assert main(["predict", str(colours), str(images), "--engine", "ray"]) == 1
    assert "--out FOLDER" in capsys.readouterr().err


def test_a_worker_that_fails(
    cluster: None, small: Callable[[str], Any], images: Path, tmp_path: Path
) -> None:
    model = small("mobilevit_xxs")
    model.head = torch.nn.Linear(3, 4)
    with pytest.raises(BulkError, match=r"a worker failed: .*shapes"):
        in_bulk(model, images / "red", out=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.parquet"))
