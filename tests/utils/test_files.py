import errno
import os
import stat
import subprocess
import sys

import pytest

from mobilevit.utils.files import HOST, remove_leftovers, replace_file, replace_folder, write_file


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


KILLED = """
import os, signal, sys
from pathlib import Path
from mobilevit.utils import files

replace, how, target = os.replace, sys.argv[1], Path(sys.argv[2])
def kill(*paths):
    if paths and paths[0] == target:
        replace(*paths)  # the old folder is moved away, the new one is not there yet
    os.kill(os.getpid(), signal.SIGKILL)
with getattr(files, how)(target) as fresh:
    if how == "replace_folder":
        fresh.mkdir()
        (fresh / "content").write_text("new")
        os.replace = kill
    else:
        fresh.write_text("half")
        kill()
"""


@pytest.mark.parametrize("how", ["replace_file", "replace_folder"])
def test_what_a_killed_process_leaves_is_removed(tmp_path, how):
    target = tmp_path / "target"
    if how == "replace_folder":
        target.mkdir()
    subprocess.run([sys.executable, "-c", KILLED, how, target], check=False)
    (left,) = (path.name for path in tmp_path.iterdir() if path != target)
    assert left.startswith(".target.")
    with replace_file(tmp_path / "other") as fresh:
        (one,) = tmp_path.glob(".other.*")  # not this one, which is in use
        assert one == fresh
        remove_leftovers(tmp_path)
        fresh.write_text("complete")
    expected = ["other", "target"] if how == "replace_folder" else ["other"]
    assert sorted(os.listdir(tmp_path)) == expected
    if how == "replace_folder":
        assert (target / "content").read_text() == "new"


def test_what_another_machine_writes_stays(tmp_path):
    # Its processes, of a cluster that shares the folder, are unknown here.
    names = [f".target.{host}.999999999-0a1b2c3d" for host in (HOST, f"not-{HOST}")]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == names[1:]


def test_a_full_disk_is_reported_with_file_and_size(tmp_path):
    def fill(path, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tmp_path), "write_bytes", fill)
        with pytest.raises(OSError, match=r"device: 1,234 bytes are needed: '.*/target'"):
            write_file(tmp_path / "target", b"1" * 1234)
    full = pytest.raises(OSError, match=r"device: more than 3 bytes are needed: '.*/target'")
    with full, replace_folder(tmp_path / "target") as fresh:
        fresh.mkdir()
        (fresh / "part").write_text("abc")
        fill(fresh)
    assert not os.listdir(tmp_path)
