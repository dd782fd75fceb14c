"""`mobilevit shard`, and training and evaluating from what it writes, as a user does it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from mobilevit.__main__ import main
from mobilevit.checkpoints.create import load
from mobilevit.checkpoints.folder import digest
from mobilevit.commands.check import check
from mobilevit.commands.evaluate import evaluate
from mobilevit.commands.shard import shard
from mobilevit.data.options import DataOptions
from mobilevit.data.validate import Report
from tests.training import runs
from tests.training.runs import interrupted_at


def words(*arguments: object) -> list[str]:
    return [str(argument) for argument in arguments]


def test_a_folder_becomes_shards_that_are_evaluated_alike(
    images: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    assert main(words("shard", images, out, "--shards", 4)) == 0
    output = capsys.readouterr().out
    assert f"--data.root {out} trains on it" in output
    assert {path.name for path in out.iterdir()} >= {"index.json", "train-000003.tar", "val.npy"}
    assert main(words("shard", images, out, "--shards", 4)) == 1
    assert "holds shards already" in capsys.readouterr().err
    written = shard(str(images), str(tmp_path / "again"), shards=4)
    assert [sum(len(shard.rows) for shard in part) for part in written.index.splits.values()] == [
        18,
        3,
    ]
    # Of a folder without splits all is evaluated, of shards what they hold out.
    held = evaluate(str(colours), data=DataOptions(root=str(out), workers=0))
    assert held.by_size[32].images == 3
    pipe = f"pipe:cat {out}/train-{{000000..000003}}.tar"
    rest = evaluate(str(colours), data=DataOptions(root=pipe, index=str(out), workers=1))
    everything = evaluate(str(colours), data=DataOptions(root=str(images), workers=0))
    confusion = held.by_size[32].confusion + rest.by_size[32].confusion
    assert confusion.equal(everything.by_size[32].confusion)


def test_shards_are_checked(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    shard(str(images), str(out), shards=2)
    report = check(out)
    assert isinstance(report, Report) and report.exit_code == 0
    assert "21 images, every image decoded" in str(report)
    assert report.splits["train"].classes == {"blue": 6, "green": 6, "red": 6}
    file = out / "train-000001.tar"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # a byte of an image, or of a header
    file.write_bytes(content)
    report = check(out, quick=True)
    assert report.exit_code == 1
    assert "train-000001.tar: differs from" in str(report)
    file.unlink()
    assert "train-000001.tar: cannot be read" in str(check(out))


def test_bad_files_are_refused_or_left_out(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "red" / "cut.jpg").write_bytes((images / "red" / "1.png").read_bytes()[:900])
    (images / "red" / "none.jpg").write_text("no image")
    out = tmp_path / "shards"
    assert main(words("shard", images, out)) == 1
    output = capsys.readouterr().err
    assert (
        "images that cannot be read: 2" in output and "cut.jpg" in output and "none.jpg" in output
    )
    assert not out.exists()
    assert main(words("shard", images, out, "--on_bad", "skip")) == 0
    assert (
        main(words("train", "--data.root", out, "--data.on_bad", "skip", "--out", out / "x")) == 1
    )
    assert "`mobilevit shard --on_bad skip`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "out"], "nowhere: no such file or folder"),
        (["IMAGES", "out", "--size", "0"], "size must be above 0, not 0.0"),
        (["IMAGES", "out", "--shards", "0"], "shards must be at least 1"),
        (["IMAGES", "out", "--classes", "a,b"], "for existing shards"),
        (["IMAGES", "IMAGES/out"], "whose images are to be written to it"),
        (["a-{0..3}.tar", "out", "--shards", "3"], "for a folder of images"),
        (["a-{0..3}.tar", "out"], ".tar: cannot be read"),
        (["a-{0..3.tar", "out"], "Unbalanced braces"),
    ],
)
def test_wrong_arguments_are_reported(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["shard", *(word.replace("IMAGES", str(images)) for word in arguments)]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shards_of_others_get_an_index(
    images: Path, colours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = shard(str(images), str(tmp_path / "shards"), shards=3)
    for part in written.index.splits.values():
        assert part
    pattern = f"{tmp_path}/shards/train-{{000000..000002}}.tar"
    index = tmp_path / "index"
    value = ("--val", f"{tmp_path}/shards/val-000000.tar", "--classes", "blue,green,red")
    assert main(words("shard", pattern, index, *value)) == 0
    assert f"--data.index {index}" in capsys.readouterr().out
    both = f"{tmp_path}/shards/{{train-{{000000..000002}},val-000000}}.tar"
    result = evaluate(str(colours), data=DataOptions(root=both, index=str(index), workers=0))
    assert result.by_size[32].images == 3


def small(root: Path | str, out: Path, **options: Any) -> Any:
    """A run of seconds over two epochs."""
    data = DataOptions(root=str(root), pool=8, **options.pop("data", {}))
    return runs.small(root, out, data=data, batch_size=3, **options)


@pytest.mark.parametrize("stop_at", [4, 11])
def test_a_run_over_shards_resumes_to_the_same_end(
    images: Path, tmp_path: Path, stop_at: int
) -> None:
    """Begun on files, interrupted in the first or second epoch, ended on a pipe and two workers."""
    out = tmp_path / "shards"
    shard(str(images), str(out), shards=4)
    uninterrupted = tmp_path / "uninterrupted"
    small(out, uninterrupted, data={"workers": 0})
    run = tmp_path / "run"
    with interrupted_at(stop_at):
        small(out, run, data={"workers": 1})
    pipe = f"pipe:cat {out}/{{train-{{000000..000003}},val-000000}}.tar"
    small(pipe, run, data={"index": str(out), "workers": 2}, resume=True)
    assert (run / "steps.csv").read_text() == (uninterrupted / "steps.csv").read_text()
    with (run / "steps.csv").open() as file:
        steps = list(csv.DictReader(file))
    assert sum(int(row["batch"]) for row in steps) == 2 * 18
    for name in ("model", "model_last"):
        ours, theirs = load(run / name), load(uninterrupted / name)
        assert digest(ours.state_dict()) == digest(theirs.state_dict())
