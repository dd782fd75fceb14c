"""Quantised files on labelled images: what they may cost, and the smallest that costs no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.__main__ import main
from mobilevit.commands.export import export
from mobilevit.data.options import DataOptions
from mobilevit.exports.backends.registry import BACKENDS
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.spec import ExportSpec
from mobilevit.exports.verify import DisagreementError, verify

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# torch's exporter and onnxscript use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::PendingDeprecationWarning"
)


@pytest.fixture(scope="module")
def model(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mobilevit.save(network("mobilevit_xxs"), tmp_path_factory.mktemp("ants") / "model")


@pytest.fixture(scope="module")
def data(model: Path, tmp_path_factory: pytest.TempPathFactory) -> DataOptions:
    """Images in folders of the classes that the model sees in them."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    images = []
    for _ in range(120):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), np.uint8))
        images.append(coarse.resize((72, 64), Image.Resampling.BICUBIC))
    for number, item in enumerate(mobilevit.predict(model, *images)):
        label = root / item.top(1)[0].name
        label.mkdir(exist_ok=True)
        images[number].save(label / f"{number}.png")
    return DataOptions(root=str(root), workers=0)


def test_auto_keeps_the_accuracy(model: Path, data: DataOptions, tmp_path: Path) -> None:
    out = tmp_path / "ants.onnx"
    whole = export(model, ExportOptions(out=str(out), quantize="int8", data=data, max_drop=99.0))
    assert whole.accuracy is not None and whole.fp32_size is not None
    assert whole.accuracy.pytorch == 1.0 and whole.accuracy.images == 90
    text = str(whole)
    assert f"{whole.int8_share:.0%} of the operations compute in int8" in text
    assert f"{whole.size / whole.fp32_size:.2f} of the fp32 file's" in text
    assert 0.3 < whole.int8_share < 1 and whole.size < 0.5 * whole.fp32_size
    bound = 0.9 * whole.accuracy.drop
    assert bound > 0  # or there is nothing to look for
    found = export(model, ExportOptions(out=str(out), quantize="auto", data=data, max_drop=bound))
    assert found.accuracy is not None and found.accuracy.drop <= bound
    assert found.float_layers and found.quantize == "int8" and found.size == out.stat().st_size
    assert found.trials[0].drop == pytest.approx(whole.accuracy.drop)
    assert len(found.float_layers) in [
        trial.float_layers for trial in found.trials if trial.drop <= bound
    ]
    assert f"in float: {found.float_layers[0]}" in str(found) and "tried: 0 in float" in str(found)
    assert [path.name for path in tmp_path.iterdir()] == ["ants.onnx"]
    metrics = mobilevit.evaluate(out, data=data).metrics
    wrong = round((1 - metrics.top1) * metrics.images)
    assert wrong >= round(found.accuracy.drop * 0.9)  # 90 of these 120 were evaluated


def test_a_file_that_loses_too_much_is_not_left(
    model: Path, data: DataOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "ants.onnx"
    words = ["export", str(model), "--out", str(out), "--quantize", "int8", "--max_drop", "0"]
    assert main([*words, "--data.root", data.root, "--data.workers", "0"]) == 1
    error = capsys.readouterr().err
    assert "more than 0 (max_drop): top-1 100.0% in PyTorch" in error
    assert "quantize auto leaves the worst layers in float" in error
    assert list(out.parent.iterdir()) == []


def test_without_data_answers_must_agree(model: Path, data: DataOptions, tmp_path: Path) -> None:
    out = tmp_path / "ants.onnx"
    options: dict[str, Any] = {"quantize": "int8", "images": [data.root], "least_agreement": 1.0}
    with pytest.raises(DisagreementError, match=r"30 images: .*minimum 100%") as caught:
        export(model, ExportOptions(out=str(out), **options))
    assert str(caught.value).startswith(f"{out} does not agree with PyTorch")
    assert list(tmp_path.iterdir()) == []


def test_without_data_probabilities_must_be_close(
    model: Path, data: DataOptions, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ants.onnx"
    words = ["export", str(model), "--out", str(out), "--quantize", "int8", "--images", data.root]
    words += ["--least_agreement", "0"]
    assert main([*words, "--max_mean_difference", "0.0001"]) == 1
    error = capsys.readouterr().err
    assert "30 images: largest difference" in error and "(maximum 0.0001)" in error
    assert list(tmp_path.iterdir()) == []
    assert main(words) == 0
    assert "(maximum 0.1)" in capsys.readouterr().out


def test_a_file_of_the_same_classes_but_other_probabilities_is_refused(model: Path) -> None:
    """Of int8 files, by default, at a mean difference of more than 0.1."""
    network = mobilevit.load(model).eval()
    images = [Image.effect_noise((64, 64), sigma).convert("RGB") for sigma in (20, 90)]
    spec = ExportSpec(quantize="int8", calibration=tuple(images))
    prepared = BACKENDS["onnx"].prepare(network, spec)

    class Milder:
        metadata, runtime = prepared.metadata, "none"

        def __init__(self, share: float) -> None:
            self.share = share

        def __call__(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
            with torch.inference_mode():
                found = prepared.module(torch.from_numpy(pixels)).numpy()
            return (found * (1 - self.share) + self.share / found.shape[1],)

    assert verify(Milder(0.02), network, images, name="ants").agreement == 1
    with pytest.raises(DisagreementError, match=r"ants .* mean 0\.\d+ \(maximum 0\.1\)"):
        verify(Milder(0.9), network, images, name="ants")
