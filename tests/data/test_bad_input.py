import gzip
import json
import lzma
import os

import pyarrow
import pyarrow.parquet
import pytest

from dma_lab.data.build import prepare_data
from dma_lab.messages import UserError

_LINES = [json.dumps({"text": f"line {n} " + "words " * 50}).encode() + b"\n" for n in range(300)]
_NOISE = [json.dumps({"text": os.urandom(400).hex()}).encode() + b"\n" for _ in range(300)]


def _with(number: int, line: bytes) -> bytes:
    return b"".join([*_LINES[: number - 1], line, *_LINES[number:]])


def _zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


def _arrow() -> bytes:
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": ["x", "y"]})
    with pyarrow.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        (
            "a.jsonl.xz",
            lzma.compress(b"".join(_NOISE))[:-9000],
            r"a\.jsonl\.xz is damaged or ends early, after line \d",
        ),
        (
            "a.jsonl.gz",
            gzip.compress(b"".join(_NOISE))[:-9000],
            r"a\.jsonl\.gz is damaged or ends early, after line \d",
        ),
        ("a.jsonl.zst", _zstd(b"".join(_NOISE))[:-9000], r"a\.jsonl\.zst is damaged or ends early, after line \d"),
        ("a.jsonl.xz", b"not xz at all", r"a\.jsonl\.xz is damaged or ends early, after line 0"),
        ("a.jsonl", _with(7, b'{"text": "broken\n'), r"a\.jsonl, line 7 is not valid JSON"),
        ("a.jsonl", b"".join(_LINES)[:-30], r"a\.jsonl, line 300 is not valid JSON"),
        ("a.jsonl", _with(9, b'{"text": "caf\xe9"}\n'), r"a\.jsonl, line 9 is not UTF-8 text \(byte 0xe9"),
        ("a.jsonl", _with(3, b'{"body": "x", "id": 1}\n'), r"line 3 has no data\.text_field=text; it has: body, id"),
        ("a.jsonl", _with(3, b'{"text": 7}\n'), r"line 3: data\.text_field=text holds an int, not text"),
        ("a.jsonl", _with(3, b'{"txt": "x", "id": 1}\n'), r"it has: txt, id \(did you mean txt\?\)"),
        (
            "a.jsonl",
            _with(3, b'{"meta": {"text": "x", "n": 1}}\n'),
            r"meta\.text, meta\.n \(did you mean meta\.text\?\)",
        ),
        ("a.jsonl", _with(3, b'["x"]\n'), r"line 3 is a list, not an object"),
        ("a.jsonl", _with(3, b'{"text": "\\ud800"}\n'), r"line 3 holds '\\ud800', half a surrogate pair"),
        ("a.jsonl", b"", r"data=local has no text at all"),
        ("a.jsonl", b'{"text": ""}\n', r"data=local has no text at all"),
        (
            "a.jsonl",
            b'{"text": "one document alone"}\n',
            r"18 bytes of text are too little to validate on a part of them: give more, or give data\.validation_path",
        ),
        ("a.txt", b"fine\nfine\nnot \xff fine\n", r"a\.txt, line 3 is not UTF-8 text \(byte 0xff"),
        ("a.txt", b"fine\ncut \xe6\x97", r"a\.txt, line 2 is not UTF-8 text"),
        ("a.parquet", b"PAR1 but not really PAR1", r"a\.parquet is damaged or ends early, after row 0"),
        ("a.csv", b"body,n\nx,1\n", r"a\.csv has no data\.text_field=text; it has: body, n"),
        ("a.csv", b"text,n\nx,1\ny\n", r"a\.csv, row 2 \(line 3\) has 1 cells where the header has 2"),
        ("a.csv", b'text,n\nx,1\n"open,2\n', r"a\.csv is no valid csv after row 1 \(unexpected end of data\)"),
        ("a.csv", b"text,text\nx,y\n", r"a\.csv has 2 columns data\.text_field=text"),
        ("a.csv", b"text\ncaf\xe9\n", r"a\.csv is not UTF-8 text after row \d+ \(byte 0xe9"),
        ("a.json", b'[{"text": "x"}, {"text": "y"', r"a\.json is not valid JSON"),
        ("a.json", b'[{"text": "x"}, 3]', r"a\.json, record 2 is a int, not an object"),
        ("a.arrow", _arrow()[:-8], r"a\.arrow is damaged or ends early, after row 0: the mark of its end is missing"),
        ("a.arrow", b"nothing of the kind", r"a\.arrow is damaged or ends early"),
        ("a.txt", bytes(range(256)) * 9, r"a\.txt is a binary file, no text: leave it out, as with data\.pattern"),
        ("a.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00\xff", r"a\.jsonl is a binary file"),
        ("a.rst", b"text\n", r"a\.rst is in no known format; there are txt, jsonl.*data\.pattern=\*\.rst reads it"),
    ],
)
def test_a_bad_file_is_named_with_the_line_and_leaves_nothing(
    settings_of, tmp_path, small_tokenizer, name, content, complaint
):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=complaint):
        prepare_data(settings_of(tmp_path / name, tokenizer=small_tokenizer), 1)
    if any(
        words in complaint for words in ("is damaged", ", line ", "no text")
    ):  # also when the training of a tokenizer meets it first
        with pytest.raises(UserError, match=complaint):
            prepare_data(settings_of(tmp_path / name), 1)
    assert not [path for path in (tmp_path / "cache").glob("*") if path.is_dir()]


@pytest.fixture(scope="session")
def small_tokenizer(data):
    return str(data.tokenizer_file)


def test_a_table_without_the_column_or_with_other_than_text_in_it_is_named(settings_of, tmp_path, small_tokenizer):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["x"], "meta": [{"texts": "x"}]}), path)
    with pytest.raises(
        UserError, match=r"a\.parquet has no data\.text_field=text; it has: body, meta\.texts \(did you mean meta"
    ):
        prepare_data(settings_of(path, tokenizer=small_tokenizer), 1)
    pyarrow.parquet.write_table(pyarrow.table({"text": [[1], None]}), path)
    with pytest.raises(UserError, match=r"a\.parquet, row 1: data\.text_field=text holds a list, not text"):
        prepare_data(settings_of(path, tokenizer=small_tokenizer), 1)
    invalid = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"text": invalid}), path)
    with pytest.raises(UserError, match=r"a\.parquet is damaged .*after row 0.*[Ii]nvalid UTF"):
        prepare_data(settings_of(path, tokenizer=small_tokenizer), 1)


def test_paths_that_lead_nowhere_are_named(settings_of, tmp_path):
    for missing in (tmp_path / "none.jsonl", tmp_path / "*.parquet", tmp_path):
        with pytest.raises(UserError, match=r"data\.path=\S+ leads to no file"):
            prepare_data(settings_of(missing), 1)


def test_a_cache_that_cannot_be_is_named(settings_of, write, tmp_path, documents):
    path = write(tmp_path / "a.jsonl", documents)
    for place in (path, path / "below"):
        with pytest.raises(
            UserError, match=rf"a\.jsonl\S* cannot be read or written .* data\.cache_dir={place} places"
        ):
            prepare_data(settings_of(path, cache_dir=str(place)), 1)


def test_an_empty_validation_file_is_refused(settings_of, write, tmp_path, documents):
    (tmp_path / "v.jsonl").write_bytes(b"")
    settings = settings_of(write(tmp_path / "a.jsonl", documents), validation_path=str(tmp_path / "v.jsonl"))
    with pytest.raises(UserError, match="200 documents and none for validation"):
        prepare_data(settings, 1)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"source": "web"}, "data.source=web is unknown: choose one of stdlib, local, hub"),
        ({"path": None}, "data=local needs data.path"),
        ({"source": "hub", "path": None}, "needs data.hub_name"),
        ({"source": "stdlib"}, "belong to data=local"),
        ({"validation_fraction": 0.0}, "data.validation_fraction=0.0 must lie between 0 and 1"),
        ({"max_tokens": 0}, "data.max_tokens=0 must be at least 1"),
        ({"encoding": "latin-99"}, "data.encoding=latin-99 is no encoding of text; give one such as utf-8, latin-1"),
        ({"encoding": "\U00091255"}, r"data.encoding='\\U00091255' is no encoding of text"),
        ({"encoding": "zlib"}, "data.encoding=zlib is no encoding of text"),
        ({"text_field": []}, r"data.text_field=\[\] names nothing"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings_of, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        settings_of("a.jsonl", **changes)


@pytest.mark.parametrize("largest", [1000, 40_000])
def test_a_full_disk_is_said_and_leaves_nothing_half_written(
    settings_of, write, tmp_path, documents, in_a_process, largest
):
    # The system refuses to let a file grow beyond the limit, as a full disk refuses to hold it.
    settings = settings_of(write(tmp_path / "a.jsonl", documents))
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({largest}, {largest}))"
    result = in_a_process(settings, before=limit)
    assert result.returncode == 2, result.stderr
    assert f"No room left for token files under data.cache_dir={tmp_path}/cache" in result.stdout
    assert not list((tmp_path / "cache").iterdir())


def test_no_network_for_a_hub_name_is_said_at_once(settings_of, write, tmp_path, documents, in_a_process):
    file = write(tmp_path / "a.jsonl", documents)
    corpus = settings_of(file, source="hub", path=None, hub_name="owner/name", hub_split="train")
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    result = in_a_process(corpus, settings_of(file, tokenizer="owner/name"), environment=nowhere)
    assert result.returncode == 2, result.stderr
    of_corpus, of_tokenizer = result.stdout.splitlines()
    assert "data.hub_name=owner/name" in of_corpus
    assert "data.tokenizer=owner/name is neither a file or folder here nor" in of_tokenizer
    assert "the network" in of_corpus
    assert "the network" in of_tokenizer


def test_a_corpus_that_validates_as_a_whole_is_not_called_empty(settings_of, write, tmp_path):
    path = write(tmp_path / "a.jsonl", ["one", "two", "one"])
    with pytest.raises(UserError, match="nothing to train on: all its 3 training documents are among those that valid"):
        prepare_data(settings_of(path, validation_path=str(path)), 1)
