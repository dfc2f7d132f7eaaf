"""Token files are found again, whole, or made again; builds side by side and killed ones do no harm."""

import os
import pickle
import random
import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from dma_lab.data import digests, store
from dma_lab.data.build import prepare_data
from dma_lab.data.digests import DigestCache, mapped_digest
from dma_lab.data.store import TokenData

GARBAGE = {
    "half a meta": b'{"fingerprint": "ab',
    "no meta": b"",
    "another json": b"[1, 2]",
    "noise": bytes(range(256)),
    "deep": b"[" * 100_000,
}


def test_token_files_are_found_again_by_content_wherever_the_source_lies(
    settings_of, write, tmp_path, documents, builds
):
    path = write(tmp_path / "here" / "a.jsonl", documents)
    first = prepare_data(settings_of(path), 1)
    shutil.move(path, tmp_path / "renamed.jsonl")
    for again in (settings_of(tmp_path / "renamed.jsonl"), settings_of(str(tmp_path / "*.jsonl"), name="other")):
        assert prepare_data(again, 999).fingerprint == first.fingerprint
    assert len(builds) == 1
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.folder.name]


@pytest.mark.parametrize("change", ["text", "vocab_size", "validation_fraction", "order"])
def test_whatever_changes_the_tokens_changes_the_fingerprint(settings_of, write, tmp_path, documents, builds, change):
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    write(files[0], documents[:100])
    write(files[1], documents[100:])
    first = prepare_data(settings_of(list(map(str, files))), 1)
    changes = {"vocab_size": {"vocab_size": 301}, "validation_fraction": {"validation_fraction": 0.5}}.get(change, {})
    if change == "text":
        write(files[0], [documents[0] + "!", *documents[1:100]])
    if change == "order":
        files.reverse()
    second = prepare_data(settings_of(list(map(str, files)), **changes), 1)
    assert second.fingerprint != first.fingerprint
    assert len(builds) == 2


def test_masking_and_repeating_do_not_touch_the_token_files(settings_of, write, tmp_path, documents, builds):
    path = write(tmp_path / "a.jsonl", documents)
    folders = {prepare_data(settings_of(path, mask_documents=m, allow_repeat=m), 1).folder for m in (True, False)}
    assert len(folders) == len(builds) == 1


@pytest.mark.parametrize("damage", ["truncated", "missing", "a file", *GARBAGE])
def test_a_torn_cache_is_said_and_built_again(settings_of, write, tmp_path, documents, capsys, damage):
    settings = settings_of(write(tmp_path / "a.jsonl", documents))
    whole = prepare_data(settings, 1)
    tokens = np.array(whole.train_tokens)
    if damage == "truncated":
        os.truncate(whole.folder / "train.tokens", 100)
    elif damage == "missing":
        (whole.folder / "validation.starts").unlink()
    elif damage == "a file":
        shutil.rmtree(whole.folder)
        whole.folder.write_text("")
    else:
        (whole.folder / "meta.json").write_bytes(GARBAGE[damage])
    capsys.readouterr()
    again = prepare_data(settings, 1)
    assert "are damaged" in capsys.readouterr().err
    assert np.array_equal(again.train_tokens, tokens)
    assert again.fingerprint == whole.fingerprint
    prepare_data(settings, 1)
    assert capsys.readouterr().err == ""
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [whole.folder.name]


def test_no_flipped_bit_of_any_file_goes_unnoticed(settings_of, write, tmp_path, documents, data, capsys):
    settings = settings_of(write(tmp_path / "a.jsonl", documents), tokenizer=str(data.tokenizer_file))
    folder = prepare_data(settings, 1).folder
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert len(whole) == 7
    draw = random.Random(0)
    for name, content in whole.items():
        # Of meta.json only what it says counts: blanks between its words may change.
        words = [at for at, byte in enumerate(content) if name != "meta.json" or byte not in b" \n"]
        for _ in range(6):
            spoilt, at = bytearray(content), draw.choice(words)
            spoilt[at] ^= 1 << draw.randrange(8)
            (folder / name).write_bytes(spoilt)
            os.utime(folder / name, ns=(0, 0))  # nor does the clock tell
            prepare_data(settings, 1)
            assert "are damaged" in capsys.readouterr().err, (name, at)
            assert {file.name: file.read_bytes() for file in folder.iterdir()} == whole


def test_token_files_are_verified_once_a_process_and_again_when_they_changed(
    settings_of, write, tmp_path, documents, monkeypatch
):
    folder = prepare_data(settings_of(write(tmp_path / "a.jsonl", documents)), 1).folder
    read = []
    monkeypatch.setattr(store, "mapped_digest", lambda path: read.append(path.name) or mapped_digest(path))
    sent = pickle.dumps(TokenData(folder))
    assert read == []
    os.utime(folder / "token_bytes", ns=(5, 5))
    pickle.loads(sent)  # as a loader's worker opens it
    assert read == []
    TokenData(folder)
    assert read == ["token_bytes"]


def test_a_large_file_is_digested_once(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "_SETTLED_SECONDS", 0.2)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * (9 << 20))

    def digest() -> tuple[str, list[int]]:
        """The digest, and the bytes of every piece that was read for it."""
        read: list[int] = []
        cache = DigestCache(tmp_path / "cache")
        found = cache.file_digest(path, read.append)
        cache.save()
        return found, read

    first, pieces = digest()
    assert len(pieces) == 3
    assert len(digest()[1]) == 3, "a file changed just now is not trusted to have settled"
    time.sleep(0.3)
    digest()
    assert digest() == (first, [9 << 20])
    # A change is seen, even one that sets the clock back; so is one of the remembered digests.
    state = path.stat()
    path.write_bytes(b"y" * (9 << 20))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = digest()[0]
    assert second != first
    time.sleep(0.3)
    digest()
    remembered = tmp_path / "cache" / "digests.json"
    whole = remembered.read_text()
    for spoilt in (whole.replace(second, first), "{", "[]", '{"digest": 1}'):
        remembered.write_text(spoilt)
        assert len(digest()[1]) == 3
        assert digest()[0] == second


def test_two_processes_that_build_the_same_both_succeed(settings_of, write, tmp_path, make_documents):
    settings = settings_of(write(tmp_path / "a.jsonl.xz", make_documents(800)))
    program = (
        "import sys\nfrom dma_lab.data.build import prepare_data\nfrom dma_lab.data.settings import DataSettings\n"
        f"print('ready', flush=True); sys.stdin.readline()\nprint(prepare_data({settings!r}, 1).fingerprint)"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen([sys.executable, "-c", program], **pipes) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    results = []
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        results.append(out.strip())
    assert len(set(results)) == 1
    folders = list((tmp_path / "cache").iterdir())
    assert len(folders) == 1
    assert prepare_data(settings, 1).fingerprint == results[0]


def test_what_killed_builds_left_is_removed_and_nothing_of_the_living(settings_of, write, tmp_path, documents):
    settings = settings_of(write(tmp_path / "a.jsonl", documents))
    folder = prepare_data(settings, 1).folder
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    alive, here = os.getpid(), socket.gethostname()
    owners = {  # who began it, how many seconds ago, and whether it stays
        f"{here}-{dead.pid}": (0, False),
        f"{here}-{alive}": (7200, True),
        f"else-where.org-{alive}": (7200, False),
        f"else-where.org-{dead.pid}": (0, True),
        f"{alive}": (7200, True),
        f"{dead.pid}": (7200, False),
        f"{dead.pid + 1}": (0, True),
    }
    for owner, (age, _) in owners.items():
        left = tmp_path / "cache" / f"{'ab' * 16}.partial-{owner}"
        left.mkdir()
        (left / "train.tokens").write_bytes(b"half")
        for path in (left / "train.tokens", left):
            os.utime(path, (time.time() - age,) * 2)
    (tmp_path / "cache" / f"digests.partial-{here}-{dead.pid}").write_bytes(b"{")
    assert prepare_data(settings, 1).folder == folder, "also where nothing is to be built"
    left = {path.name.partition(".partial-")[2] for path in (tmp_path / "cache").glob("*.partial-*")}
    assert left == {owner for owner, (_, stays) in owners.items() if stays}


def test_prepared_files_are_for_whom_the_umask_says(settings_of, write, tmp_path, documents):
    before = os.umask(0o022)
    try:
        folder = prepare_data(settings_of(write(tmp_path / "a.jsonl", documents)), 1).folder
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o755
