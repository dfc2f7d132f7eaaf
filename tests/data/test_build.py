"""Documents that validate do not train, wherever they stand; files are read whole, or it is said."""

import json
import lzma
import re

import pytest

from dma_lab.data import build
from dma_lab.data.build import prepare_data
from dma_lab.messages import UserError


def test_a_file_that_validates_is_not_trained_on(settings_of, write, tmp_path, documents, capsys, decode_stream):
    write(tmp_path / "c" / "a.jsonl", documents[:150])
    held_out = write(tmp_path / "c" / "v.jsonl.xz", documents[150:])
    made = prepare_data(settings_of(tmp_path / "c", validation_path=str(held_out)), 1)
    assert decode_stream(made, "train") == documents[:150]
    assert decode_stream(made, "validation") == documents[150:]
    told = capsys.readouterr().err
    assert re.search(r"training documents that validate left out +│ +│ +50 │", told)
    assert "validation: 50 documents validate, " in told
    assert " effective ones, those of data.validation_path." in told
    assert made.meta["counts"] == {"training documents that validate left out": 50}
    sizes = [sum(len(text.encode()) for text in part) for part in (documents[:150], documents[150:])]
    assert made.meta["taken"] == {
        ".jsonl": {"files": 1, "documents": 150, "bytes": sizes[0]},
        ".jsonl.xz": {"files": 2, "documents": 100, "bytes": 2 * sizes[1]},
    }
    assert made.meta["left"] == {}


@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_documents_that_validate_do_not_train_wherever_they_stand(
    settings_of, write, tmp_path, documents, capsys, decode_stream, kind
):
    held_out = documents[20:60]
    path = write(tmp_path / f"a.{kind}", [*documents, documents[30], documents[0], "zebraquagga " * 40])
    validation = write(tmp_path / "v.parquet", [*held_out, documents[25], "zebraquagga " * 40, ""])
    made = prepare_data(settings_of(path, validation_path=str(validation)), 1)
    assert sorted(decode_stream(made, "train")) == sorted([*documents[:20], *documents[60:], documents[0]])
    assert decode_stream(made, "validation") == [*held_out, documents[25], "zebraquagga " * 40]
    counts = {
        "training documents that validate left out": 42,
        "validation documents repeat another": 1,
        "empty documents left out": 1,
    }
    assert made.meta["counts"] == counts
    told = capsys.readouterr().err
    assert all(re.search(rf"{what} +│ +│ +{count} │", told) for what, count in counts.items())
    assert not any("zebra" in token for token in made.load_tokenizer().get_vocab()), "nor does the tokenizer see them"


def test_reading_ends_soon_after_max_tokens(settings_of, write, tmp_path, documents):
    """And not after batches that hold a small corpus whole."""
    texts = [f"{number} {text}" for number in range(20) for text in documents]
    path = write(tmp_path / "c" / "a.jsonl", texts)
    held_out = write(tmp_path / "v.jsonl", documents)
    whole = prepare_data(settings_of(path, validation_path=str(held_out)), 1).meta["train"]["tokens"]
    limit = whole // 4
    made = prepare_data(settings_of(path, validation_path=str(held_out), max_tokens=limit), 1)
    assert limit <= made.meta["train"]["tokens"] < 1.25 * limit


def test_copies_fall_on_one_side_of_a_split_by_share(settings_of, write, tmp_path, documents, decode_stream):
    write(tmp_path / "c" / "a.jsonl.gz", documents)
    write(tmp_path / "c" / "b.parquet", documents)
    write(tmp_path / "c" / "t.txt", documents)
    made = prepare_data(settings_of(tmp_path / "c"), 1)
    train, validation = decode_stream(made, "train"), decode_stream(made, "validation")
    assert sorted([*train, *validation]) == sorted(documents * 3)
    assert not set(train) & set(validation)


def test_a_file_that_changes_while_it_is_read_is_said_and_not_kept(
    settings_of, write, tmp_path, documents, data, builds
):
    path = write(tmp_path / "a.jsonl", documents)
    settings = settings_of(path, tokenizer=str(data.tokenizer_file))
    cached = tmp_path / "cache"
    real = build.Packer.pack

    def pack(packer, stream):
        with open(path, "ab") as file:  # another process appends a document while this one reads
            file.write(b'{"text": "new"}\n')
        return real(packer, stream)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build.Packer, "pack", pack)
        with pytest.raises(UserError, match=r"a\.jsonl changed while it was read: start again"):
            prepare_data(settings, 1)
    assert not list(cached.iterdir())
    assert len(prepare_data(settings, 1).meta["recipe"]["corpus"]["train"]) == 1


def test_streams_of_several_xz_blocks_and_blank_lines_are_read_whole(settings_of, tmp_path, documents, decode_stream):
    halves = documents[:90], documents[90:]
    packed = [
        lzma.compress("\n\n".join(json.dumps({"text": text}) for text in half).encode() + b"\n") for half in halves
    ]
    (tmp_path / "a.jsonl.xz").write_bytes(b"".join(packed))
    made = prepare_data(settings_of(tmp_path / "a.jsonl.xz"), 1)
    assert sorted(decode_stream(made, "train") + decode_stream(made, "validation")) == sorted(documents)
