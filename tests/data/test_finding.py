"""Which files a folder or a glob means: every real one once, and none passed over without a word."""

import glob
import os
import tempfile
from pathlib import Path

import pytest

from dma_lab.data.build import prepare_data
from dma_lab.data.finding import find_files
from dma_lab.messages import UserError


def _tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def _found(pattern, root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_files(str(pattern), "data.path")[0]]


@pytest.mark.parametrize(
    "pattern",
    ["*.txt", "**/*.txt", "a/**/*.txt", "a/*/*.jsonl", "?/**/b/*.txt", "**/b/**/*", "[ab]/*.txt", "a/../*.txt"],
)
def test_globs_mean_what_they_mean_everywhere(tmp_path, pattern):
    _tree(tmp_path, "x.txt", "a/x.txt", "a/b/y.txt", "a/b/z.jsonl", "b/b/b/w.txt", "b/.c/v.txt", ".d/u.txt", "b/.t.txt")
    wanted = {
        os.path.normpath(found) for found in glob.glob(str(tmp_path / pattern), recursive=True) if Path(found).is_file()
    }
    assert {os.path.normpath(path) for path in find_files(str(tmp_path / pattern), "data.path")[0]} == wanted
    assert wanted


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "**"])
def test_links_in_circles_and_to_the_same_file_give_each_real_file_once(tmp_path, pattern):
    _tree(tmp_path / "t", "a.txt", "sub/b.txt")
    _tree(tmp_path / "elsewhere", "c.txt")
    for loop in ("loop", "again", "sub/up"):
        (tmp_path / "t" / loop).symlink_to(tmp_path / "t")
    (tmp_path / "t" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "t" / "sub" / "same.txt").symlink_to(tmp_path / "t" / "a.txt")
    os.link(tmp_path / "t" / "a.txt", tmp_path / "t" / "z.txt")
    found = find_files(str(tmp_path / "t" / pattern), "data.path")[0]
    assert sorted(path.read_text() for path in found) == ["a.txt", "c.txt", "sub/b.txt"]
    both = find_files([str(tmp_path / "t"), f"{tmp_path}/t/../t/*.txt"], "data.path")[0]
    assert len(both) == 3


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path):
    with tempfile.TemporaryDirectory() as place:  # where another user may look
        root = _tree(Path(place), "a.txt", "closed/b.txt")
        root.chmod(0o755)
        (root / "closed").chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            for pattern in (place, f"{place}/**/*.txt", f"{place}/*/*.txt"):
                with pytest.raises(PermissionError):
                    find_files(pattern, "data.path")
            assert _found(f"{place}/*.txt", root) == ["a.txt"], "nothing was asked of the closed one"
        finally:
            os.seteuid(user)
            (root / "closed").chmod(0o755)


def test_what_a_folder_holds_besides_is_counted_and_refused_where_it_is_the_most(tmp_path):
    root = _tree(
        tmp_path, "1.txt", "2.txt", "3.txt", "4.jsonl", "notes.rst", "Makefile", ".git/x", ".git/y", ".hidden.txt"
    )
    (root / "broken.txt").symlink_to(root / "nowhere")
    found, left = find_files(str(root), "data.path")
    assert [path.name for path in found] == ["1.txt", "2.txt", "3.txt", "4.jsonl"]
    unknown = {".rst: no known format": 1, "without suffix: no known format": 1}
    assert left == unknown | {"broken link or special file": 1, "hidden": 2}
    _tree(root, *(f"r/{n}.rst" for n in range(737)))
    with pytest.raises(
        UserError, match=r"mostly files in no known format \(738 \.rst, .*data\.pattern=\*\*/\*\.rst \("
    ):
        find_files(str(root), "data.path")
    assert len(find_files(f"{root}/?.txt", "data.path")[0]) == 3, "as the sentence says"


def test_what_is_no_regular_file_is_refused_before_it_is_opened(tmp_path, settings_of):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "broken.txt").symlink_to(tmp_path / "nowhere")
    for name in (tmp_path / "pipe.jsonl", "/dev/zero", "/dev/stdin", tmp_path / "*.jsonl", tmp_path / "*.txt"):
        with pytest.raises(UserError, match="is no regular file but a pipe, a device or a broken link"):
            prepare_data(settings_of(name), 1)
    for setting in (
        {},
        {"validation_path": "~no-such-user/x"},
        {"tokenizer": "~no-such-user/x"},
        {"cache_dir": "~no-such-user"},
    ):
        _tree(tmp_path, "a.txt")
        with pytest.raises(UserError, match=r"data\.\w+=~no-such-user\S* names no user's home here"):
            prepare_data(settings_of(tmp_path / "a.txt" if setting else "~no-such-user/x", **setting), 1)
