"""`benchmarks/speed.py` with the options for a GPU, on the CPU."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("timm")
pytest.importorskip("transformers")


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("speed")


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "networks"), [("mobilevit_xxs", 16), ("mobilevitv2_050", 14)])
def test_all_networks_run_in_mixed_precision(
    speed: ModuleType, tmp_path: Path, variant: str, networks: int
) -> None:
    words = ["--precision", "bf16", "--setting", variant, "64", "2", "--rounds", "2"]
    speed.main([*words, "--json", str(tmp_path / "speed.json")])
    rows = json.loads((tmp_path / "speed.json").read_text())
    found = [row["network"] for row in rows if "auto" not in row["network"]]  # by processor
    assert len(found) == networks
    assert all(row["milliseconds"] > 0 and row["precision"] == "bf16" for row in rows)
    assert [row["ratio"] for row in rows if row["network"] == "ours, fused, memory kept"] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda"], "PyTorch finds no cuda device"),
        (["--cuda_graphs"], "--cuda_graphs needs --device cuda"),
    ],
)
def test_what_needs_a_gpu_reports_that_there_is_none(
    speed: ModuleType,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        speed.parse(options)
    assert message in capsys.readouterr().err
