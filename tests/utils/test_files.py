import os
import stat

import pytest

from mobilevit.utils.files import replace_file, replace_folder, write_file


def test_a_writer_that_fails_leaves_the_old_file(tmp_path):
    target = tmp_path / "file"
    write_file(target, "old")
    with pytest.raises(ZeroDivisionError), replace_file(target) as fresh:  # noqa: PT012
        fresh.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    write_file(target, b"new")
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]


def test_a_replaced_file_has_the_permissions_of_any_new_one(tmp_path):
    (tmp_path / "usual").touch()
    with replace_file(tmp_path / "file") as fresh:
        fresh.unlink()
        os.close(os.open(fresh, os.O_CREAT, 0o600))  # as a writer with a temporary file does
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("usual", "file")]
    assert modes[0] == modes[1]


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("a", "b"):
        with replace_folder(tmp_path / "folder") as fresh:
            fresh.mkdir()
            write_file(fresh / content, content)
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(tmp_path / "folder") == ["b"]
