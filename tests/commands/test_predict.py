"""`mobilevit predict`."""

import csv
import http.server
import io
import json
import os
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mobilevit
from mobilevit.__main__ import main
from mobilevit.checkpoints.create import load
from mobilevit.commands.predict import predict
from mobilevit.data.errors import DataError
from mobilevit.data.images import ImageError, open_image
from mobilevit.data.preprocessing import preprocess
from mobilevit.data.sources import ImageInputs


def by_hand(model, file):
    """Class names by probability, of one image alone."""
    with torch.inference_mode():
        logits = model(preprocess(open_image(file), model.config.preprocessing)[None])[0]
    order = logits.argsort(descending=True).tolist()
    return [(model.config.classes[index], float(logits.softmax(0)[index])) for index in order]


def test_a_folder_gives_each_image_its_own_answer(colours, images):
    model = load(colours)
    found = predict(colours, images, batch_size=4, workers=2)
    files = sorted(images.rglob("*.png"))
    assert [item.source for item in found] == [str(file) for file in files]
    for item, file in zip(found, files, strict=True):
        for answer, (name, probability) in zip(
            item.top(len(item.classes)), by_hand(model, file), strict=True
        ):
            assert answer.name == name
            assert answer.probability == pytest.approx(probability, abs=1e-5)


def test_one_image_in_python(colours, images):
    model = load(colours)
    file = images / "red" / "0.png"
    top = mobilevit.predict(model, file).top(2)
    assert [name for name, _ in top] == [name for name, _ in by_hand(model, file)][:2]
    with Image.open(file) as image:
        pixels = np.array(image)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for form in (file.read_bytes(), Image.fromarray(pixels), pixels, tensor):
        assert mobilevit.predict(model, form).top(2) == top
    with pytest.raises(ValueError, match="2 images"):
        mobilevit.predict(model, file, file).top(1)


@pytest.fixture
def broken(images):
    file = images / "red" / "3b.jpg"
    file.write_text("no image")
    return file


def test_a_bad_file_is_reported_and_the_others_are_done(colours, images, broken, capsys):
    found = predict(colours, images / "red")
    assert [item.source for item in found.failed] == [str(broken)]
    assert [item.error is None for item in found] == [True] * 4 + [False] + [True] * 3
    with pytest.raises(ImageError, match=r"3b\.jpg"):
        found.failed[0].top(1)
    assert main(["predict", str(colours), str(images / "red")]) == 1
    assert "not an image" in capsys.readouterr().out


def test_table_json_lines_and_csv(colours, images, broken, capsys):
    names = [str(images / "red" / "0.png"), str(broken)]
    answers = by_hand(load(colours), names[0])
    main(["predict", str(colours), *names, "--format", "jsonl", "--top", "2"])
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["file"] == names[0]
    assert [answer["class"] for answer in first["predictions"]] == [name for name, _ in answers[:2]]
    assert second["file"] == names[1] and "not an image" in second["error"]
    main(["predict", str(colours), *names, "--format", "csv", "--top", "1"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert list(rows[0]) == ["file", "error", "class_1", "probability_1"]
    assert rows[0]["class_1"] == answers[0][0]
    assert float(rows[0]["probability_1"]) == pytest.approx(answers[0][1], abs=1e-5)
    assert rows[1]["error"] and not rows[1]["class_1"]
    main(["predict", str(colours), *names])
    table = capsys.readouterr().out
    assert answers[0][0] in table and f"{answers[0][1]:.1%}" in table


def test_answers_are_drawn(colours, images, broken, tmp_path):
    found = predict(colours, images / "red", out=str(tmp_path / "out"))
    drawn = sorted(file.name for file in (tmp_path / "out").glob("*.jpg"))
    assert drawn == [f"{number}-{name}.jpg" for number, name in
                     ((1, 0), (2, 1), (3, 2), (4, 3), (6, 4), (7, 5), (8, 6))]  # fmt: skip
    with Image.open(tmp_path / "out" / drawn[0]) as image:
        assert image.width >= 320
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(found) == 8


def test_patterns_are_expanded(colours, images):
    assert len(predict(colours, str(images / "*" / "[12].png"))) == 6
    assert len(predict(colours, str(images / "**" / "*.png"))) == 21


def test_names_that_stand_for_nothing_are_errors(colours, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for name in ("none.jpg", "*.jpg", "empty"):
        with pytest.raises(DataError, match="no "):
            predict(colours, str(tmp_path / name))
    assert main(["predict", str(colours), str(tmp_path / "none.jpg")]) == 1
    assert "none.jpg: no such file" in capsys.readouterr().err


def test_a_mistyped_name_does_not_stop_the_others(colours, images, tmp_path, capsys):
    good, bad = str(images / "red" / "0.png"), str(tmp_path / "none.jpg")
    found = predict(colours, bad, good, out=str(tmp_path / "out"))
    assert [item.source for item in found] == [bad, good]
    assert "no such file" in found[0].error and found[1].error is None
    assert main(["predict", str(colours), bad, good, "--format", "csv"]) == 1
    assert "no such file" in capsys.readouterr().out


def test_folders_and_patterns_give_images_alone(colours, images):
    folder = images / "red"
    expected = sorted(str(file) for file in folder.glob("*.png"))
    (folder / ".hidden.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "notes.txt").write_text("no image")
    (folder / "album.png").mkdir()
    for name in (folder, folder / "*"):
        assert [item.source for item in predict(colours, str(name))] == expected


def test_every_file_of_a_folder_is_read_refused_or_counted(colours, images, tmp_path, caplog):
    content = (images / "red" / "0.png").read_bytes()
    folder = tmp_path / "wild"
    folder.mkdir()
    for name in ("a.png", "without", "odd.image"):
        (folder / name).write_bytes(content)
    (folder / "phone.heic").write_bytes(b"\x00\x00\x00\x18ftypheic" + bytes(32))
    (folder / "cut").write_bytes(content[:20])
    (folder / "notes.txt").write_text("no image")
    (folder / "README").write_text("no image")
    os.mkfifo(folder / "pipe.png")
    for given in (folder, folder / "*"):
        caplog.clear()
        found = {Path(item.source).name: item.error for item in predict(colours, str(given))}
        assert [name for name, error in found.items() if error is None] == [
            *("a.png", "odd.image", "without")
        ]
        assert "HEIC is not read" in found.pop("phone.heic")
        assert "damaged" in found.pop("cut")
        assert len(found) == 3
        assert "3 files are no images" in caplog.text
        assert all(f"1 {ending}" in caplog.text for ending in (".txt", ".png", "without an ending"))


def test_an_input_that_cannot_be_looked_at_does_not_end_the_others(colours, images, tmp_path):
    (tmp_path / "deep").mkdir()
    here = os.open(tmp_path / "deep", os.O_RDONLY)
    for _ in range(17):  # a path that is too long for the system
        os.mkdir("d" * 250, dir_fd=here)
        above, here = here, os.open("d" * 250, os.O_RDONLY, dir_fd=here)
        os.close(above)
    os.close(here)
    (tmp_path / "locked").mkdir(mode=0)
    expected = {"deep": "too long", "x" * 300: "too long"}
    if os.geteuid():  # root reads all
        expected["locked"] = "cannot be listed"
    inputs = [images / "red" / "0.png", *(tmp_path / name for name in expected)]
    good, *bad = predict(colours, *inputs)
    assert good.error is None
    for item, path, reason in zip(bad, inputs[1:], expected.values(), strict=True):
        assert item.source == str(path) and reason in item.error and str(path) in item.error
    shutil.rmtree(tmp_path / "deep")


def test_all_classes_stay_at_hand(colours, images):
    found = predict(colours, images / "red" / "0.png", top=1)[0]
    assert len(found.top(4)) == len(found.classes) == len(found.top(9)) == 4
    assert sum(answer.probability for answer in found.top(4)) == pytest.approx(1, abs=1e-5)


def test_at_least_one_class_is_listed(colours, images):
    with pytest.raises(ValueError, match="top must be at least 1"):
        predict(colours, images, top=0)


@pytest.fixture
def server(images):
    """Address of a server of the images, and the requests that reach it."""
    requests = []

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(images))

        def log_message(self, *_):
            pass

        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}", requests
        running.shutdown()


def test_addresses_are_fetched(colours, images, server, tmp_path):
    server, requests = server
    address = f"{server}/red/0.png?a=%2F" + "x" * 300
    found = predict(colours, address, f"{server}/red/none.png", out=str(tmp_path / "o"))
    assert len(requests) == 2  # once each
    assert found[0].top(1)[0].name == by_hand(load(colours), images / "red" / "0.png")[0][0]
    assert "404" in found[1].error
    assert (tmp_path / "o" / "1-0.jpg").exists()


def test_a_dying_worker_is_a_message(colours, images, monkeypatch, capsys):
    def die(self, index):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ImageInputs, "__getitem__", die)
    assert main(["predict", str(colours), str(images), "--workers", "1"]) == 1
    assert "short of memory (fewer --workers need less)" in capsys.readouterr().err
