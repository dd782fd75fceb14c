"""LiteRT files: right, in few operations, all of them XNNPACK's, and refused where they are not."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import mobilevit
from mobilevit.checkpoints.folder import digest
from mobilevit.commands.export import export
from mobilevit.exports.backends.base import FileSummary
from mobilevit.exports.backends.litert.quantize import belongs_to, rounding
from mobilevit.exports.backends.litert.rewrite import GatedConv, RootMeanSquare, litert_graph
from mobilevit.exports.backends.registry import BACKENDS, open_exported
from mobilevit.exports.options import ExportOptions
from mobilevit.exports.quantize import EqualizedConv
from mobilevit.exports.rewrite import inference_graph
from mobilevit.exports.spec import ExportError, ExportSpec, Quantization
from mobilevit.exports.verify import verify
from mobilevit.models.layers import ConvNormAct
from mobilevit.models.registry import build
from tests.numerics import assert_close, assert_probabilities_close

pytest.importorskip("litert_torch")

# litert-torch and jax use what their own dependencies deprecate.
pytestmark = pytest.mark.filterwarnings("ignore")

LITERT = BACKENDS["litert"]
ODD: dict[str, Any] = {"channel_order": "bgr", "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25)}
"""Values of a kind that a forgotten step would show in."""


@pytest.fixture(scope="module")
def ants(network: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, FileSummary]:
    """A classifier, and its file."""
    model = network("mobilevit_xxs", **ODD)
    path = tmp_path_factory.mktemp("litert") / "ants.tflite"
    return model, LITERT.write(model, ExportSpec(), path)


def test_photo_in_probabilities_out(
    ants: tuple[Any, FileSummary], photos: list[Image.Image], capfd: pytest.CaptureFixture[str]
) -> None:
    model, written = ants
    assert written.inputs == ("image: uint8 [1, 64, 64, 3]",)
    assert written.outputs == ("probabilities: float32 [1, 5]",)
    found, expected = (
        [item.probabilities for item in mobilevit.predict(one, *photos)]
        for one in (str(written.path), model)
    )
    assert_probabilities_close(found, expected)
    assert np.ptp(np.array(found), axis=0).max() > 0.01  # the photos are told apart
    assert capfd.readouterr().err == ""  # the runtime's own talk is kept off the screen


def test_xnnpack_runs_all_of_it(ants: tuple[Any, FileSummary]) -> None:
    _, written = ants
    nodes = written.operations
    assert written.placement == f"XNNPACK runs {nodes} of {nodes} operations, in 1 part"
    # As it comes from torch's own norms and attention it is 649.
    assert nodes < 500


def test_facts_are_inside(ants: tuple[Any, FileSummary]) -> None:
    model, written = ants
    run = open_exported(written.path)
    assert run.metadata.config == model.config
    assert run.metadata.weights == digest(model.state_dict())
    with zipfile.ZipFile(written.path) as files:  # as Android's metadata library does
        assert files.read("labels.txt").decode().splitlines() == list(model.config.classes)
        assert json.loads(files.read("mobilevit.json"))["model"] == "mobilevit_xxs"
    for place in (Path(mobilevit.__file__).parent, Path(sys.prefix)):
        assert str(place).encode() not in written.path.read_bytes()


def test_the_runtime_knows_the_names(ants: tuple[Any, FileSummary]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(ants[1].path))
    (signature,) = interpreter.get_signature_list().values()
    assert signature == {"inputs": ["image"], "outputs": ["probabilities"]}
    assert interpreter.get_input_details()[0]["name"] == "image"


def test_two_files_are_the_same(ants: tuple[Any, FileSummary], tmp_path: Path) -> None:
    again = LITERT.write(ants[0], ExportSpec(), tmp_path / "again.tflite")
    assert again.path.read_bytes() == ants[1].path.read_bytes()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 64, 64, 3), np.uint8),
        np.zeros((1, 64, 65, 3), np.uint8),
        np.zeros((1, 64, 64, 3), np.float32),
    ],
)
def test_other_images_are_refused(ants: tuple[Any, FileSummary], images: np.ndarray) -> None:
    with pytest.raises(ExportError, match=r"takes image: uint8 \[1, 64, 64, 3\], not"):
        open_exported(ants[1].path)(images)


@pytest.mark.parametrize(
    ("name", "size"),
    # Of 128 pixels there are more anchors than suppression looks at.
    [("ssdlite_mobilevit_xxs", 128), ("deeplabv3_mobilevitv2_050", 64)],
)
def test_boxes_and_masks(
    network: Any, name: str, size: int, tmp_path: Path, photos: list[Image.Image]
) -> None:
    model = network(name, size=size, **ODD)
    written = LITERT.write(model, ExportSpec(), tmp_path / "ants.tflite")
    verification = verify(open_exported(written.path), model, photos, name="ants")
    assert verification.difference < 1e-3 and verification.agreement > 0.999


def test_half_precision_and_int8_are_smaller(
    ants: tuple[Any, FileSummary], tmp_path: Path, photos: list[Image.Image]
) -> None:
    model, whole = ants
    size = whole.path.stat().st_size
    half = LITERT.write(model, ExportSpec(precision="fp16"), tmp_path / "half.tflite")
    assert half.path.stat().st_size < 0.58 * size
    verification = verify(open_exported(half.path), model, photos, name="half")
    assert verification.tolerance == 1e-2 and verification.agreement == 1

    kept = "network.backbone.stages.2.1.layers.0.attention.qkv"
    files = {}
    for kind in ("int8", "int8-weights"):
        asked = Quantization(mode=kind, images=tuple(photos), float_layers=frozenset({kept}))
        files[kind] = LITERT.write(model, ExportSpec(quantize=asked), tmp_path / f"{kind}.tflite")
        run = open_exported(files[kind].path)
        assert files[kind].path.stat().st_size < 0.35 * size
        assert "of " in files[kind].placement and "left" not in files[kind].placement
        # A new network's answers hang by a thread; trained ones are tested apart.
        least = 0.5 if kind == "int8" else 1
        assert verify(run, model, photos, name=kind, min_agreement=least).agreement >= least
    assert files["int8"].types["int8"] > files["int8"].types["float32"] > 0
    assert "int8" not in files["int8-weights"].types  # they compute as floats


def test_what_is_kept_stays_in_float(
    ants: tuple[Any, FileSummary], tmp_path: Path, photos: list[Image.Image]
) -> None:
    """A file with everything in float but one layer is that of the network, nearly."""
    model, whole = ants
    layers = [
        name
        for name, one in LITERT.prepare(model, ExportSpec()).module.named_modules()
        if isinstance(one, nn.Conv2d | nn.Linear)
    ]
    asked = Quantization(mode="int8-weights", float_layers=frozenset(layers[:-1]))
    path = tmp_path / "kept.tflite"
    LITERT.write(model, ExportSpec(quantize=asked), path)
    assert 0.95 < path.stat().st_size / whole.path.stat().st_size < 1
    assert verify(open_exported(path), model, photos, name="ants").difference < 0.05


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (ExportSpec(dynamic="batch"), "takes one image of one size.*and run it once for each"),
        (ExportSpec(dynamic="size"), "one file for each size"),
        (
            ExportSpec(precision="fp16", quantize=Quantization(mode="int8-weights")),
            "leave precision fp16 out",
        ),
        (ExportSpec(quantize=Quantization(mode="palette4")), "cannot be quantised as 'palette4'"),
        (
            ExportSpec(
                quantize=Quantization(mode="int8-weights", float_layers=frozenset({"nose"}))
            ),
            "there are no layers nose",
        ),
    ],
)
def test_refusals_help(network: Any, request_: ExportSpec, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        LITERT.write(network("mobilevit_xxs"), request_, Path("never.tflite"))


def test_raw_tensors_stay_floats(network: Any, tmp_path: Path, photos: list[Image.Image]) -> None:
    asked = ExportSpec(raw=True, quantize=Quantization(mode="int8", images=tuple(photos)))
    with pytest.raises(ExportError, match="leave raw out, or keep the weights alone"):
        LITERT.write(network("mobilevit_xxs"), asked, tmp_path / "ants.tflite")


@pytest.mark.parametrize("content", [b"", b"PNG" * 400])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ants.tflite"
    path.write_bytes(content)
    with pytest.raises(ExportError, match=r"ants\.tflite is damaged, or no file of `mobilevit"):
        open_exported(path)


def test_a_file_cut_short_is_refused(ants: tuple[Any, FileSummary], tmp_path: Path) -> None:
    path = tmp_path / "ants.tflite"
    content = ants[1].path.read_bytes()
    path.write_bytes(b"\0" * 64 + content[64:])  # the archive at its end is still whole
    with pytest.raises(ExportError, match=r"damaged, or no file that LiteRT"):
        open_exported(path)


def test_a_single_photo_is_a_name(network: Any, tmp_path: Path, photos: list[Image.Image]) -> None:
    photos[0].save(tmp_path / "one.png")
    exported = export(
        network("mobilevit_xxs"),
        ExportOptions(out=str(tmp_path / "a.tflite"), images=str(tmp_path / "one.png")),
    )
    assert exported.verification.images == 1


def busy(name: str) -> nn.Module:
    """A network in the form for export, in which every parameter matters."""
    torch.manual_seed(0)
    model = build(name, num_classes=7).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
            if isinstance(getattr(module, "bias", None), Tensor):
                module.bias.normal_(0, 0.1)
    return inference_graph(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mobilevit_xxs", "mobilevitv2_050"])
def test_the_form_says_the_same(name: str) -> None:
    form = busy(name)
    before = {key: tensor.clone() for key, tensor in form.state_dict().items()}
    changed = litert_graph(form)
    x = torch.rand(2, 3, 72, 104)
    with torch.inference_mode():
        assert_close(changed(x), form(x))
    assert all(torch.equal(form.state_dict()[key], before[key]) for key in before)
    assert not any(isinstance(module, nn.LayerNorm) for module in changed.modules())
    norms = sum(isinstance(module, RootMeanSquare) for module in changed.modules())
    assert norms == (21 if name == "mobilevit_xxs" else 0)


def test_gates_are_the_scales() -> None:
    torch.manual_seed(0)
    layer = ConvNormAct(3, 5)
    layer.conv = nn.Conv2d(3, 5, 1)  # as `fuse` leaves it
    evened = EqualizedConv(layer, torch.tensor([0.5, 1, 2, 8, 40]))
    holder = nn.Sequential(evened).eval()
    x = torch.randn(2, 3, 6, 7)
    changed = litert_graph(holder)
    assert isinstance(changed[0], GatedConv)  # type: ignore[index]
    with torch.inference_mode():
        torch.testing.assert_close(changed(x), holder(x))


def test_rounding_is_within_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(6, 4, 3, 3) * torch.tensor([1e-3, 0.1, 1, 5, 50, 100]).view(-1, 1, 1, 1)
    error = rounding(weight)
    steps = weight.flatten(1).abs().amax(1) / 127
    assert (error.flatten(1).abs().amax(1) <= steps.clamp(min=2.0**-12) / 2 * 1.001).all()


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.qkv", True),
        ("a.qkv.query", True),
        ("b.expand.conv", True),
        ("b.expand.gate", True),
        ("a.qkvs", False),
        ("b.expand", False),
    ],
)
def test_parts_belong_to_their_layer(name: str, found: bool) -> None:
    assert belongs_to(name, {"a.qkv", "b.expand.conv"}) is found
