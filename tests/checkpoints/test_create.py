"""Networks with weights of model folders and of other layouts."""

import logging
from dataclasses import replace

import pytest
import torch

from mobilevit.checkpoints import authors, timm, transformers
from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.folder import save
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.checkpoints.write import write
from mobilevit.data.class_names import VOC_CLASSES
from mobilevit.models.registry import build
from tests.checkpoints.networks import equal
from tests.numerics import assert_close, tensors_of


@pytest.fixture(scope="module")
def xxs():
    torch.manual_seed(0)
    return build("mobilevit_xxs", num_classes=10).state_dict()


@pytest.fixture
def authors_file(xxs, tmp_path):
    torch.save(authors.V1.from_ours(xxs), tmp_path / "mobilevit_xxs.pt")
    return tmp_path / "mobilevit_xxs.pt"


@pytest.mark.parametrize(
    ("name", "layout", "order", "assumed"),
    [
        ("mobilevit_xxs", authors.V1, "bgr", ("channel_order",)),
        ("mobilevit_s", timm.V1, "rgb", ("resize", "crop", "interpolation")),
        ("mobilevitv2_050", authors.V2, "rgb", ("channel_order",)),
        ("mobilevitv2_075", timm.V2, "rgb", ("channel_order", "resize", "crop", "interpolation")),
    ],
)
def test_variant_layout_and_preprocessing_are_read_from_the_tensors(
    name, layout, order, assumed, tmp_path
):
    model = build(name, num_classes=3)
    torch.save(layout.from_ours(model.state_dict()), tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth", classes=["a", "b", "c"])
    assert loaded.config.model == loaded.name == name
    assert loaded.config.preprocessing.channel_order == order
    assert loaded.config.preprocessing.assumed == assumed
    assert layout.name in loaded.config.source
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


def test_stated_preprocessing_is_not_assumed(tmp_path):
    state = build("mobilevitv2_050", num_classes=3).state_dict()
    torch.save(authors.V2.from_ours(state), tmp_path / "v2.pt")
    config = load(tmp_path / "v2.pt", preprocessing={"channel_order": "bgr"}).config
    assert config.preprocessing.channel_order == "bgr"
    assert config.preprocessing.assumed == ()
    assert config.classes is None
    with pytest.raises(ValueError, match=r"no chanel_order; it has channel_order"):
        load(tmp_path / "v2.pt", preprocessing={"chanel_order": "bgr"})


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
def test_wrapped_state_dicts_are_unwrapped(xxs, tmp_path, wrapper):
    torch.save({wrapper: timm.V1.from_ours(xxs), "epoch": 3}, tmp_path / "wrapped.pt")
    assert torch.equal(load(tmp_path / "wrapped.pt").head.bias, xxs["head.bias"])


def test_other_classes_give_a_new_head_with_a_warning(authors_file, xxs, caplog):  # A13
    with caplog.at_level(logging.WARNING):
        model = create_model("mobilevit_xxs", num_classes=7, weights=authors_file)
    assert "head.weight, head.bias" in caplog.text
    state = model.state_dict()
    changed = [key for key in state if not torch.equal(state[key], xxs.get(key, torch.empty(0)))]
    assert changed == ["head.weight", "head.bias"]
    assert state["head.weight"].shape[0] == 7
    assert model.config.preprocessing.channel_order == "bgr"


def test_naming_unnamed_classes_keeps_the_head_with_a_warning(authors_file, xxs, caplog):
    names = [f"class {number}" for number in range(10)]
    with caplog.at_level(logging.WARNING):
        model = create_model("mobilevit_xxs", classes=names, weights=authors_file)
    assert torch.equal(model.head.weight, xxs["head.weight"])
    assert "does not name its 10 classes" in caplog.text and "class 0, class 1" in caplog.text


def test_other_classes_are_an_error_without_a_new_head(authors_file):  # A13, A14
    with pytest.raises(CheckpointError, match=r"head\.weight and head\.bias are for 10 .* not 7"):
        create_model("mobilevit_xxs", num_classes=7, weights=authors_file, new_head=False)
    with pytest.raises(CheckpointError, match=r"10 classes, not 9.*background"):
        create_model("mobilevit_xxs", num_classes=9, weights=authors_file, new_head=False)


def test_other_names_give_a_new_head(xxs, tmp_path, caplog):
    model = create_model("mobilevit_xxs", classes=["a", "b"])
    save(model, tmp_path)
    again = create_model("mobilevit_xxs", classes=["a", "b"], weights=tmp_path)
    assert torch.equal(again.head.weight, model.head.weight)
    assert create_model("mobilevit_xxs", weights=tmp_path).config.classes == ("a", "b")
    assert not caplog.text
    other = create_model("mobilevit_xxs", classes=["b", "a"], weights=tmp_path)
    assert "head.weight" in caplog.text
    assert not torch.equal(other.head.weight, model.head.weight)


def test_a_backbone_file_needs_a_new_classifier(xxs, tmp_path, caplog):
    path = tmp_path / "backbone.pt"
    tensors = {key: value for key, value in xxs.items() if not key.startswith(("head", "expand"))}
    torch.save(timm.V1.from_ours(tensors), path)
    with pytest.raises(CheckpointError, match="without a head; create_model"):
        load(path)
    model = create_model("mobilevit_xxs", num_classes=4, weights=path)
    assert "expand.conv.weight" in caplog.text and "head.bias" in caplog.text
    assert torch.equal(model.backbone.stem.conv.weight, xxs["backbone.stem.conv.weight"])
    with pytest.raises(CheckpointError, match="lacks expand"):
        create_model("mobilevit_xxs", num_classes=4, weights=path, new_head=False)


def test_a_backbone_alone_takes_a_classifiers_weights(authors_file, xxs, caplog):
    backbone = create_model("mobilevit_xxs", weights=authors_file, features_only=True)
    assert not caplog.text
    assert len(backbone.eval()(torch.rand(1, 3, 64, 64))) == 5
    for key, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, xxs[f"backbone.{key}"]), key


def test_options_of_a_model_folder_hold_unless_overridden(tmp_path):
    save(create_model("mobilevit_xxs", num_classes=2, patch_sizes=(8, 4, 2)), tmp_path)
    same = create_model("mobilevit_xxs", weights=tmp_path)
    assert same.config.options == {"patch_sizes": [8, 4, 2]} == same.config.options
    other = create_model("mobilevit_xxs", weights=tmp_path, patch_sizes=(2, 2, 2), dropout=0.0)
    assert other.config.options == {"dropout": 0.0}


def test_errors_name_the_tensors(authors_file, xxs, tmp_path):
    with pytest.raises(CheckpointError, match="holds mobilevit_xxs, not mobilevit_xs"):
        create_model("mobilevit_xs", weights=authors_file)
    with pytest.raises(CheckpointError, match=r"local_conv\.conv\.weight: .* 3, 3\].* 5, 5"):
        create_model("mobilevit_xxs", weights=authors_file, kernel_size=5)
    theirs = timm.V1.from_ours(xxs)
    torch.save({**theirs, "stages.1.0.se.weight": torch.ones(1)}, tmp_path / "more.pt")
    with pytest.raises(CheckpointError, match=r"no place .*stages\.1\.0\.se\.weight"):
        load(tmp_path / "more.pt")
    del theirs["stages.3.1.norm.bias"]
    torch.save(theirs, tmp_path / "less.pt")
    with pytest.raises(CheckpointError, match=r"less\.pt lacks backbone\.stage4\.1\.norm\.bias"):
        load(tmp_path / "less.pt")
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "resnet.pt")
    with pytest.raises(CheckpointError, match=r"of no known layout.*conv1\.weight"):
        load(tmp_path / "resnet.pt")


def test_classes_and_their_number_must_agree(authors_file):
    with pytest.raises(ValueError, match="2 class names for 3 outputs"):
        create_model("mobilevit_xxs", num_classes=3, classes=["a", "b"])
    with pytest.raises(ValueError, match="2 class names for 10 outputs"):
        load(authors_file, classes=["a", "b"])
    with pytest.raises(TypeError, match="colour"):
        create_model("mobilevit_xxs", colour="red")


def test_a_published_backbone_becomes_a_classifier(shared, caplog):
    path = shared / "data" / "weights" / "timm_mobilevit_xxs_backbone.pth"
    model = create_model("mobilevit_xxs", num_classes=5, weights=path)
    assert "new tensors" in caplog.text
    assert caplog.text.rstrip().endswith("head.weight, head.bias")
    assert model.config.preprocessing.channel_order == "rgb"


def test_a_classifiers_weights_become_the_backbone(tmp_path, caplog):
    classifier = create_model(
        "mobilevit_xxs", num_classes=9, output_stride=8, patch_sizes=(4, 4, 2)
    )
    save(classifier, tmp_path)
    with caplog.at_level(logging.WARNING):
        model = create_model("deeplabv3_mobilevit_xxs", num_classes=4, weights=tmp_path)
    assert model.config.options == {"patch_sizes": [4, 4, 2]}  # strides belong to the task
    assert "all of context, predict" in caplog.text
    assert model.config.preprocessing.resize_mode == "shortest_edge"
    for key, tensor in classifier.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[key], tensor), key
    caplog.clear()
    create_model("deeplabv3_mobilevit_xxs", classes=VOC_CLASSES, weights=tmp_path)
    assert "does not name its" not in caplog.text  # a file without that head has no such outputs
    back = tmp_path / "back"
    save(create_model("deeplabv3_mobilevit_xxs", num_classes=4, channels=64, aux=True), back)
    again = create_model("mobilevit_xxs", num_classes=3, weights=back)
    assert again.config.options == {}
    other = create_model("pspnet_mobilevit_xxs", num_classes=4, weights=back)
    assert other.config.options == {}


def test_other_classes_give_new_classifiers_of_positions(tmp_path, caplog):
    model = create_model("pspnet_mobilevitv2_050", num_classes=21)
    save(model, tmp_path)
    again = create_model("pspnet_mobilevitv2_050", num_classes=3, weights=tmp_path)
    changed = [
        key
        for key, tensor in again.state_dict().items()
        if not torch.equal(tensor, model.state_dict()[key])
    ]
    assert changed == ["predict.weight", "predict.bias", "aux.predict.weight", "aux.predict.bias"]
    assert all(key in caplog.text for key in changed)
    with pytest.raises(CheckpointError, match=r"predict.* are for 21 classes, not 20; is one of"):
        create_model("pspnet_mobilevitv2_050", num_classes=20, weights=tmp_path, new_head=False)
    assert create_model("pspnet_mobilevitv2_050").config.num_classes == 21


def test_an_auxiliary_head_can_be_left_out_and_added(tmp_path, caplog):
    model = create_model("deeplabv3_mobilevitv2_050", num_classes=3)
    save(model, tmp_path / "with")
    without = create_model("deeplabv3_mobilevitv2_050", weights=tmp_path / "with", aux=False)
    assert not caplog.text
    assert without.config.options == {"aux": False}
    assert torch.equal(without.predict.weight, model.predict.weight)
    save(without, tmp_path / "without")
    assert load(tmp_path / "without").aux is None
    added = create_model("deeplabv3_mobilevitv2_050", weights=tmp_path / "without", aux=True)
    assert "aux.conv.conv.weight" in caplog.text and "predict.weight" in caplog.text
    assert torch.equal(added.predict.weight, model.predict.weight)


@pytest.mark.parametrize("prefix", ["", "module.", "student._orig_mod."])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mobilevit_xxs", {"fusion": False, "kernel_size": 5, "in_channels": 4}),
        ("mobilevitv2_050", {}),
        ("ssdlite_mobilevitv2_050", {}),
        ("deeplabv3_mobilevit_xxs", {"channels": 64, "aux": True}),
        ("pspnet_mobilevitv2_050", {"aux": False}),
    ],
)
def test_a_saved_state_dict_is_read_back(name, options, prefix, tmp_path, caplog):
    model = create_model(name, num_classes=3, **options)
    state = {f"{prefix}{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({**state, "loss.centre": torch.zeros(2)}, tmp_path / "w.pt")
    again = create_model(name, weights=tmp_path / "w.pt")
    assert again.config.options == model.config.options
    assert "left out 1 tensors" in caplog.text and "loss.centre" in caplog.text
    assert "new tensors" not in caplog.text
    assert equal(again.state_dict(), model.state_dict())
    loaded = load(tmp_path / "w.pt")
    assert equal(loaded.state_dict(), model.state_dict())
    assert loaded.config.preprocessing == replace(
        model.config.preprocessing, assumed=loaded.config.preprocessing.assumed
    )
    assert {"channel_order", "resize", "mean"} <= {*loaded.config.preprocessing.assumed}
    assert (f"without the prefix {prefix}" in loaded.config.source) == bool(prefix)


def test_a_backbones_state_dict_is_read_back(tmp_path):
    backbone = create_model("mobilevitv2_050", features_only=True)
    torch.save(backbone.state_dict(), tmp_path / "w.pt")
    again = create_model("mobilevitv2_050", weights=tmp_path / "w.pt", features_only=True)
    assert equal(again.state_dict(), backbone.state_dict())
    with pytest.raises(CheckpointError, match="a backbone without a head"):
        load(tmp_path / "w.pt")


@pytest.mark.parametrize("layout", [authors.V1, timm.V1, transformers.V1])
def test_any_prefix_before_a_layout_is_removed(layout, xxs, tmp_path, caplog):
    theirs = {f"net.student.{key}": tensor for key, tensor in layout.from_ours(xxs).items()}
    torch.save({**theirs, "net.queue": torch.ones(2)}, tmp_path / "w.pt")
    assert equal(load(tmp_path / "w.pt").state_dict(), xxs)
    assert "net.queue" in caplog.text
    teacher = {key.replace("student", "teacher"): tensor for key, tensor in theirs.items()}
    torch.save(theirs | teacher, tmp_path / "two.pt")
    with pytest.raises(CheckpointError, match=r"below net\.student\. and net\.teacher\.: save"):
        load(tmp_path / "two.pt")


@pytest.mark.parametrize("layout", [authors.V1, timm.V1, transformers.V1])
def test_counters_of_batches_may_be_missing(layout, xxs, tmp_path, caplog):
    theirs = layout.from_ours(xxs)
    kept = {key: tensor for key, tensor in theirs.items() if "num_batches_tracked" not in key}
    assert len(kept) < len(theirs)
    torch.save(kept, tmp_path / "w.pt")
    for model in (
        load(tmp_path / "w.pt"),
        create_model("mobilevit_xxs", weights=tmp_path / "w.pt"),
    ):
        assert equal(model.state_dict(), xxs)
    assert not caplog.text


@pytest.mark.parametrize("name", ["mobilevit_xxs", "ssdlite_mobilevitv2_050"])
@pytest.mark.parametrize(("given", "wanted"), [(3, 1), (3, 2), (3, 4), (3, 7), (1, 3), (4, 3)])
def test_the_stem_is_adapted_to_other_channels(name, given, wanted, tmp_path, caplog):
    torch.manual_seed(0)
    model = create_model(name, num_classes=4, in_channels=given).eval()
    save(model, tmp_path)
    other = create_model(name, weights=tmp_path, in_channels=wanted).eval()
    assert f"for images of {given} channels" in caplog.text and f"to {wanted}" in caplog.text
    assert other.config.options == ({} if wanted == 3 else {"in_channels": wanted})
    grey = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        outputs = [
            network(grey.expand(-1, n, -1, -1)) for network, n in ((model, given), (other, wanted))
        ]
    for a, b in zip(*map(tensors_of, outputs), strict=True):
        assert_close(a, b, 1e-5)
    features = create_model(name, weights=tmp_path, in_channels=wanted, features_only=True)
    assert torch.equal(features.stem.conv.weight, other.backbone.stem.conv.weight)


def test_files_for_other_channels_load_as_they_are(tmp_path):
    model = create_model("mobilevit_xxs", num_classes=3, in_channels=1)
    torch.save(timm.V1.from_ours(model.state_dict()), tmp_path / "w.pt")
    assert load(tmp_path / "w.pt").config.options == {"in_channels": 1}
    write(model, tmp_path / "out", to="transformers")
    assert load(tmp_path / "out").config.options == {"in_channels": 1}


@pytest.mark.parametrize(("order", "tag"), [("bgr", None), ("rgb", "neural_augmentor.noise._low")])
@pytest.mark.parametrize(
    "name", ["mobilevit_xxs", "ssdlite_mobilevit_xxs", "deeplabv3_mobilevit_xxs"]
)
def test_the_channel_order_of_the_authors_v1_is_assumed(name, order, tag, tmp_path):
    write(create_model(name, num_classes=3), tmp_path / "w.pt", to="authors")
    tensors = torch.load(tmp_path / "w.pt", weights_only=True)
    torch.save(tensors | ({tag: torch.zeros(())} if tag else {}), tmp_path / "w.pt")
    preprocessing = load(tmp_path / "w.pt").config.preprocessing
    assert preprocessing.channel_order == order
    assert preprocessing.assumed == (() if tag else ("channel_order",))
    stated = load(tmp_path / "w.pt", preprocessing={"channel_order": order})
    assert stated.config.preprocessing.assumed == ()


def test_weights_leave_the_random_numbers_as_they_are(authors_file, tmp_path):
    save(create_model("mobilevit_xxs", num_classes=10), tmp_path)
    state = torch.get_rng_state()
    for weights in (authors_file, tmp_path):
        load(weights)
        create_model("mobilevit_xxs", weights=weights)
        create_model("mobilevit_xxs", weights=weights, features_only=True)
        assert torch.equal(torch.get_rng_state(), state)
    create_model("mobilevit_xxs", weights=tmp_path, num_classes=3)  # draws a new head
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("option", "hint"),
    [
        ({"pretrained": True}, "pretrained; did you mean weights="),
        ({"in_chans": 1}, "in_chans; did you mean in_channels"),
        ({"drop_rate": 0.1}, "drop_rate; did you mean classifier_dropout"),
        ({"kernel_sizes": 5}, "kernel_sizes; did you mean kernel_size"),
        ({"colour": "red"}, "colour; it has patch_sizes, heads"),
    ],
)
def test_options_of_other_libraries_are_named_as_ours(option, hint):
    with pytest.raises(TypeError, match=f"create_model has no option {hint}"):
        create_model("mobilevit_xxs", **option)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("mobilevit_s.cvnets_in1k", "timm/mobilevit_s.cvnets_in1k"),
        ("timm/mobilevitv2_050.cvnets_in1k", "timm/mobilevitv2_050.cvnets_in1k"),
        ("ssdlite_mobilevit_s.apple_coco", "ssdlite_mobilevit_s.apple_coco"),
    ],
)
def test_names_of_weights_are_no_models(name, weights):
    with pytest.raises(ValueError, match=f"is no model but weights: .* with weights='{weights}'"):
        create_model(name)
