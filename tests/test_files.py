"""Files appear whole, on the disk before they have their name, with the umask's permissions."""

import os
import resource
import stat

import pytest

from dma_lab.files import copy_whole, make_directory, remove_partials, whole, write_whole


@pytest.fixture
def disk(monkeypatch):
    """What was asked of the disk, in order: ("sync", what) and ("replace", what), by inode."""
    asked = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (asked.append(("sync", os.fstat(fd).st_ino)), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (asked.append(("replace", os.stat(a).st_ino)), replace(a, b)))
    return asked


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_after(tmp_path, disk):
    source = tmp_path / "source"
    source.write_bytes(b"\x00\xff" * 1_000_000)
    for path, write in (
        (tmp_path / "text", lambda p: write_whole(p, "é\n")),
        (tmp_path / "copy", lambda p: copy_whole(source, p)),
    ):
        disk.clear()
        write(path)
        file, folder = path.stat().st_ino, tmp_path.stat().st_ino
        assert disk == [("sync", file), ("replace", file), ("sync", folder)]
    assert (tmp_path / "text").read_bytes() == "é\n".encode()
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()


def test_an_error_leaves_what_was_there(tmp_path):
    file = tmp_path / "file"
    write_whole(file, "old")

    def fail():
        with whole(file) as stream:
            stream.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_write_names_its_file(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as failure:
            write_whole(tmp_path / "file", "x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failure.value.filename == str(tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_permissions_are_the_umasks(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_each_new_directory_is_made_for_good(tmp_path, disk):
    make_directory(tmp_path / "a" / "b")
    assert disk == [("sync", tmp_path.stat().st_ino), ("sync", (tmp_path / "a").stat().st_ino)]
    make_directory(tmp_path / "a" / "b")
    assert len(disk) == 2


def test_what_a_kill_left_is_removed_and_nothing_else(tmp_path):
    for name in ("last.ckpt", "last.ckpt.partial-77", "last.partial", "summary.json"):
        (tmp_path / name).touch()
    remove_partials(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.ckpt", "summary.json"]
