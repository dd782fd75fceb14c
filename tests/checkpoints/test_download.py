"""Downloads from a server that these tests run, through every mishap that a network has."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants, file_download
from safetensors.torch import load_file, save

from mobilevit.checkpoints import pretrained, transformers
from mobilevit.checkpoints.create import create_model, load
from mobilevit.checkpoints.download import DownloadError, fetch, from_hub
from mobilevit.checkpoints.keymap import CheckpointError
from mobilevit.checkpoints.pretrained import BASE, MIRROR, PUBLISHED, find_weights
from mobilevit.checkpoints.write import write
from mobilevit.data.class_names import imagenet_classes
from tests.numerics import assert_close

CONTENT = os.urandom(100_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(file_download.time, "sleep", lambda _: None)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints" / "mobilevit"


@pytest.fixture
def url(server) -> str:
    server.files["/folder/weights.pt"] = CONTENT
    return f"{server.address}/folder/weights.pt"


def leftovers(cache: Path) -> list[str]:
    return sorted(
        path.name for path in cache.rglob("*") if path.is_file() if "lock" not in path.name
    )


def test_a_file_is_downloaded_once(server, url, cache, caplog):
    with caplog.at_level(logging.INFO):
        path = fetch(url, sha256=DIGEST)
    assert path.read_bytes() == CONTENT
    assert path.is_relative_to(cache)
    assert f"downloading {url}" in caplog.text
    server.files.clear()
    assert fetch(url) == fetch(url, sha256=DIGEST) == path
    assert len(server.requests) == 1
    assert leftovers(cache) == ["weights.pt"]


def test_files_with_one_name_at_two_urls_are_two(server, url):
    server.files["/other/weights.pt"] = b"others"
    assert fetch(url).read_bytes() == CONTENT
    assert fetch(f"{server.address}/other/weights.pt").read_bytes() == b"others"


def test_an_interrupted_download_goes_on_where_it_stopped(server, url, cache, monkeypatch):
    server.cut_after = 30_000
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    assert fetch(url, sha256=DIGEST).read_bytes() == CONTENT
    ranges = [header for _, _, header in server.requests]
    assert ranges == [None, "bytes=30000-", "bytes=60000-", "bytes=90000-"]
    assert leftovers(cache) == ["weights.pt"]


def test_a_file_with_another_digest_is_deleted(server, url, cache):
    wrong = "0" * 64
    with pytest.raises(DownloadError, match=f"its SHA-256 is {DIGEST}, not {wrong}"):
        fetch(url, sha256=wrong)
    assert leftovers(cache) == []


def test_a_damaged_cached_file_is_downloaded_again(server, url, caplog):
    path = fetch(url, sha256=DIGEST)
    path.write_bytes(CONTENT[:-1])
    assert fetch(url, sha256=DIGEST).read_bytes() == CONTENT
    assert "downloading it again" in caplog.text


def test_a_refusal_is_final_and_explained(server, url, cache):
    server.failures["/folder/weights.pt"] = [403]
    with pytest.raises(DownloadError, match=r"downloaded: 403\. .*save it as .*MOBILEVIT_MIRROR"):
        fetch(url)
    assert len(server.requests) == 1
    assert leftovers(cache) == []
    with pytest.raises(DownloadError, match="404"):
        fetch(f"{server.address}/nothing.pt")


def test_a_web_page_is_not_taken_as_weights(server, url, cache):
    server.files["/folder/weights.pt"] = b"<!doctype html><title>Please log in</title>"
    with pytest.raises(DownloadError, match="gave a web page"):
        fetch(url)
    assert leftovers(cache) == []


def test_a_full_disk_is_no_error_of_the_network(url, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(OSError, match="No space left") as caught:
        fetch(url)
    assert not isinstance(caught.value, DownloadError)


def test_a_busy_server_is_asked_again(server, url):
    server.failures["/folder/weights.pt"] = [429, 408]
    assert fetch(url).read_bytes() == CONTENT
    assert len(server.requests) == 3


def test_an_unreachable_server_is_an_error(server, url):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=r"could not be downloaded: .*refused"):
        fetch(url)


def xxs(tmp_path, to: str, out: str, num_classes: int = 1000) -> Path:
    torch.manual_seed(0)
    model = create_model("mobilevit_xxs", num_classes=num_classes)
    write(model, tmp_path / out, to=to)
    return tmp_path / out


def test_a_published_name_downloads_its_weights(server, tmp_path, monkeypatch, caplog):
    entry = PUBLISHED["mobilevit_xxs.apple_in1k"]
    content = xxs(tmp_path, "authors", "w.pt").read_bytes()
    server.files[f"/mirror/{entry.path}"] = content
    monkeypatch.setenv(MIRROR, f"{server.address}/mirror/")
    with caplog.at_level(logging.INFO):
        model = load(entry.name)
    assert "Apple sample code licence" in caplog.text
    assert model.config.classes == imagenet_classes()
    assert model.config.preprocessing.channel_order == "bgr"
    assert model.config.source == f"{entry.name}, {BASE}{entry.path}, Apple sample code licence"
    server.files.clear()  # works offline afterwards, without the mirror too
    monkeypatch.delenv(MIRROR)
    assert load(entry.name).config == model.config
    tuned = create_model("mobilevit_xxs", num_classes=3, weights=entry.name)
    assert torch.equal(tuned.backbone.stem.conv.weight, model.backbone.stem.conv.weight)


def test_the_file_of_another_network_is_refused(server, tmp_path, monkeypatch):
    entry = PUBLISHED["mobilevit_s.apple_in1k"]
    server.files[f"/{entry.path}"] = xxs(tmp_path, "authors", "w.pt").read_bytes()
    monkeypatch.setenv(MIRROR, server.address)
    with pytest.raises(CheckpointError, match=r"of mobilevit_s\.apple_in1k holds mobilevit_xxs"):
        load(entry.name)


def test_a_url_may_state_the_digest(server, tmp_path):
    content = xxs(tmp_path, "timm", "w.safetensors", 3).read_bytes()
    server.files["/w.safetensors"] = content
    address = f"{server.address}/w.safetensors"
    assert load(address, classes="abc").config.model == "mobilevit_xxs"
    digest = hashlib.sha256(content).hexdigest()
    assert load(f"{address}#sha256={digest}", classes="abc").config.num_classes == 3
    with pytest.raises(DownloadError, match="not the expected file"):
        load(f"{address}#sha256={digest[::-1]}")
    with pytest.raises(ValueError, match="64 digits"):
        load(f"{address}#md5=3")


@pytest.fixture
def hub(server, tmp_path, monkeypatch):
    """A Hub with one model in transformers' layout, and an empty cache."""
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    folder = xxs(tmp_path, "transformers", "theirs", 3)
    for path in folder.iterdir():
        server.files[f"/someone/flowers/resolve/main/{path.name}"] = path.read_bytes()
    return server


def test_a_hub_id_downloads_its_weights(hub, monkeypatch):
    model = load("someone/flowers")
    assert model.config.model == "mobilevit_xxs"
    assert model.config.preprocessing.assumed == ()
    requests = len(hub.requests)
    assert load("someone/flowers").config == model.config
    assert len(hub.requests) == requests
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("someone/flowers").config == model.config
    with pytest.raises(DownloadError, match=r"not cached and the Hub is unreachable"):
        load("someone/trees")


def test_an_older_hub_model_without_a_processor_is_read(hub, tmp_path):
    base = "/someone/flowers/resolve/main"
    del hub.files[f"{base}/model.safetensors"], hub.files[f"{base}/preprocessor_config.json"]
    state = load(tmp_path / "theirs").state_dict()
    torch.save(transformers.V1.from_ours(state), tmp_path / "w.bin")
    hub.files[f"{base}/pytorch_model.bin"] = (tmp_path / "w.bin").read_bytes()
    model = load("someone/flowers")
    assert model.config.preprocessing.assumed != ()
    requests = len(hub.requests)
    assert load("someone/flowers").config == model.config
    assert len(hub.requests) == requests


def test_hub_weights_in_several_files_are_downloaded(hub, tmp_path):
    base = "/someone/flowers/resolve/main"
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    keys, weight_map = sorted(tensors), {}
    for name, part in (("a.safetensors", keys[:100]), ("b.safetensors", keys[100:])):
        weight_map |= dict.fromkeys(part, name)
        hub.files[f"{base}/{name}"] = save({key: tensors[key] for key in part})
    del hub.files[f"{base}/model.safetensors"]
    hub.files[f"{base}/model.safetensors.index.json"] = json.dumps(
        {"weight_map": weight_map}
    ).encode()
    expected = load(tmp_path / "theirs").state_dict()
    assert all(
        torch.equal(x, expected[key]) for key, x in load("someone/flowers").state_dict().items()
    )


def test_a_damaged_hub_file_is_deleted(hub):
    path = from_hub("someone/flowers") / "model.safetensors"
    blob = path.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"?")
    with pytest.raises(DownloadError, match="was damaged"):
        from_hub("someone/flowers")
    assert load("someone/flowers").config.num_classes == 3


def test_hub_errors_name_the_repository(hub):
    with pytest.raises(DownloadError, match=r"neither model\.safetensors nor"):
        load("someone/trees")
    hub.failures["/someone/flowers/resolve/main/config.json"] = [403]
    with pytest.raises(DownloadError, match=r"no file or folder someone/flowers, and.*403"):
        load("someone/flowers")


def test_likely_typos_do_not_go_to_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "from_hub", lambda *_, **__: pytest.fail("asked the Hub"))
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("runs/photos", "weights/mobilevit_s.pt", "./runs/photos", "mobilevit_s", "a/b/c"):
        with pytest.raises(FileNotFoundError, match="there is no file or folder"):
            find_weights(name)
    with pytest.raises(FileNotFoundError):
        find_weights(Path("someone/flowers"))
    with pytest.raises(FileNotFoundError, match=r"did you mean .*mobilevit_s\.apple_in1k"):
        find_weights("mobilevit_s.aple_in1k")
    with pytest.raises(FileNotFoundError, match=r"did you mean timm/mobilevit_s\.cvnets_in1k"):
        find_weights("mobilevit_s.cvnets_in1k")


def test_published_networks_that_this_library_lacks_are_an_error():
    with pytest.raises(CheckpointError, match="no such network"):
        find_weights("maskrcnn_mobilevit_s.apple_coco")


@pytest.mark.skipif(
    "MOBILEVIT_TEST_DOWNLOADS" not in os.environ,
    reason="downloads 22 MB of published weights; MOBILEVIT_TEST_DOWNLOADS=1 allows it",
)
@pytest.mark.parametrize("name", ["mobilevit_s", "mobilevit_xxs"])
def test_published_weights_of_three_sources_agree(name, monkeypatch):  # A10, A11
    monkeypatch.undo()  # the usual cache
    hub = {"mobilevit_s": "apple/mobilevit-small", "mobilevit_xxs": "apple/mobilevit-xx-small"}
    authors, theirs = load(f"{name}.apple_in1k"), load(hub[name])
    timm = load(f"timm/{name}.cvnets_in1k")
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        expected = authors(images)
        assert_close(theirs(images), expected)
        assert_close(timm(images.flip(1)), expected)
    stem = authors.backbone.stem.conv.weight
    assert torch.equal(timm.backbone.stem.conv.weight.flip(1), stem)
    orders = [model.config.preprocessing.channel_order for model in (authors, theirs, timm)]
    assert orders == ["bgr", "bgr", "rgb"]
