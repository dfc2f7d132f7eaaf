"""Every kind of file that people have gives the same documents: what was written, or what ``datasets`` reads."""

import csv
import gzip
import io
import json
import lzma
from collections import Counter
from pathlib import Path

import datasets
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest

from dma_lab.data.build import prepare_data
from dma_lab.data.formats import format_of
from dma_lab.data.readers import NULL, read_documents
from dma_lab.messages import UserError

TEXTS = [
    "plain words",
    'said "so", and\nanother line;\twith a tab',
    "007",
    "NA",
    "null",
    " spaces kept ",
    "naïve 東京 🦉",
    "a\r\nb",
    "\ufeffwithin",
    "true",
    "1e5",
]


def _read(path: Path, **how) -> list[str]:
    return ["".join(document.chunks) for document in read_documents(path, format_of(path) or "", **how)]


def _csv(delimiter: str, texts: list[str]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerows([["id", "text"], *([n, text] for n, text in enumerate(texts))])
    return out.getvalue().encode()


_LINES = "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in TEXTS).encode()
_LIST = json.dumps([{"id": 1, "text": text} for text in TEXTS], indent=2).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", _csv(",", TEXTS)),
        ("semicolons.csv", _csv(";", TEXTS)),
        ("a.tsv", _csv("\t", TEXTS)),
        ("a.TSV", b"\xef\xbb\xbf" + _csv("\t", TEXTS)),
        ("a.json", _LIST),
        ("marked.json", b"\xef\xbb\xbf \n" + _LIST),
        ("lines.json", _LINES),
        ("marked.jsonl", b"\xef\xbb\xbf" + _LINES),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz", ".xz", ".zst"])
def test_records_are_read_as_they_are_however_they_are_written(tmp_path, name, content, packed):
    path = tmp_path / f"{name}{packed}"
    if packed == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as out:
            out.write(content)
    else:
        path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(packed, bytes)(content))
    assert _read(path) == TEXTS


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-32", "shift_jis", "koi8-r"])
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.jsonl", "a.csv", "a.json"])
def test_other_encodings_are_read_where_they_are_named(tmp_path, encoding, name):
    letters = {"shift_jis": "日本語 テキスト", "koi8-r": "Привет, мир"}.get(encoding, "déjà vu, ça và")
    texts = [letters * 3, letters + "\n" + letters]
    content = {
        "a.txt": texts[0],
        "a.txt.gz": texts[0],
        "a.jsonl": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts),
        "a.csv": _csv(",", texts).decode(),
        "a.json": json.dumps([{"text": text} for text in texts], ensure_ascii=False),
    }[name]
    encoded = content.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(encoded) if name.endswith(".gz") else encoded)
    assert _read(tmp_path / name, encoding=encoding) == (texts[:1] if ".txt" in name else texts)
    if encoding not in ("utf-32", "koi8-r"):
        with pytest.raises(UserError, match=r"give (the files' |its )?data\.encoding"):
            _read(tmp_path / name)


def test_a_text_in_another_encoding_than_named_is_said(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"plain\x81\xff")
    with pytest.raises(UserError, match=r"a\.txt is not text in data\.encoding=cp1252 \(character maps to"):
        _read(tmp_path / "a.txt", encoding="cp1252")


def test_equal_texts_have_equal_digests_whatever_their_files(tmp_path):
    text = "déjà vu\n" * 100
    (tmp_path / "a.txt").write_bytes(text.encode())
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": text}))
    (tmp_path / "latin.txt").write_bytes(text.encode("latin-1"))
    found = {
        (document.digest, document.size)
        for path in tmp_path.iterdir()
        for document in read_documents(
            path, format_of(path) or "", encoding="latin-1" if path.name == "latin.txt" else "utf-8"
        )
    }
    assert len(found) == 1
    assert {size for _, size in found} == {len(text.encode())}


def test_what_datasets_saved_is_what_it_loads(tmp_path, settings_of, data, decode_stream, capsys):
    rows = {
        split: [f"{split} {n}: " + "words and more " * 20 for n in range(120)]
        for split in ("train", "validation", "test")
    }
    made = datasets.DatasetDict(
        {
            split: datasets.Dataset.from_dict({"text": texts, "meta": [{"n": 1}] * len(texts)})
            for split, texts in rows.items()
        }
    )
    made["train"] = made["train"].select(range(119, -1, -1))
    made.save_to_disk(str(tmp_path / "saved"), num_shards={"train": 3, "validation": 1, "test": 1})
    capsys.readouterr()
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))["train"]["text"][:]
    tokenizer = str(data.tokenizer_file)
    whole = prepare_data(settings_of(tmp_path / "saved", tokenizer=tokenizer), 1)
    assert decode_stream(whole, "train") == loaded == rows["train"][::-1]
    assert decode_stream(whole, "validation") == rows["validation"]
    told = capsys.readouterr().err
    assert "holds the splits test, train, validation: train trains, validation validates, test is left." in told
    assert whole.meta["split"] == {"by": "data.validation_path"}
    assert whole.meta["left"] == {"of a saved data set, not its rows": 4}
    one = prepare_data(settings_of(tmp_path / "saved" / "train", tokenizer=tokenizer), 1)
    assert sorted(decode_stream(one, "train") + decode_stream(one, "validation")) == sorted(loaded)
    (tmp_path / "saved" / "train").rename(tmp_path / "saved" / "training")
    with pytest.raises(UserError, match=r"holds the splits test, training, validation and none called train"):
        prepare_data(settings_of(tmp_path / "saved"), 1)


def test_an_arrow_stream_cut_between_its_batches_is_refused_and_a_feather_file_read(tmp_path):
    table = pyarrow.table({"text": [f"row {n}" for n in range(5000)], "n": range(5000)})
    sink = pyarrow.BufferOutputStream()
    ends = []
    with pyarrow.ipc.new_stream(sink, table.schema) as out:
        for batch in table.to_batches(max_chunksize=1000):
            out.write_batch(batch)
            ends.append(sink.tell())
    content = sink.getvalue().to_pybytes()
    (tmp_path / "a.arrow").write_bytes(content)
    assert _read(tmp_path / "a.arrow") == [f"row {n}" for n in range(5000)]
    (tmp_path / "a.arrow").write_bytes(content[: ends[2]])
    assert len(pyarrow.ipc.open_stream(content[: ends[2]]).read_all()) == 3000, "pyarrow alone does not notice"
    with pytest.raises(UserError, match=r"a\.arrow is damaged or ends early"):
        _read(tmp_path / "a.arrow")
    pyarrow.feather.write_feather(table, tmp_path / "b.arrow", compression="uncompressed")
    assert _read(tmp_path / "b.arrow") == [f"row {n}" for n in range(5000)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.arrow"])
def test_fields_within_fields_and_several_joined_and_null_ones_counted(tmp_path, name):
    rows = [
        {"title": "T1", "meta": {"text": "one", "n": 1}},
        {"title": None, "meta": {"text": "two", "n": 1}},
        {"title": "", "meta": {"text": "three", "n": 1}},
        {"title": "T4", "meta": {"text": None, "n": 1}},
        {"title": None, "meta": {"text": None, "n": 1}},
        {"title": None, "meta": None},
    ]
    path = tmp_path / name
    if name == "a.jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif name == "a.json":
        path.write_text(json.dumps(rows))
    elif name == "a.parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        pyarrow.feather.write_feather(pyarrow.Table.from_pylist(rows), path, compression="uncompressed")
    left: Counter[str] = Counter()
    assert _read(path, fields=("meta.text",), left=left) == ["one", "two", "three"]
    assert left == {NULL: 3}
    left.clear()
    joined = _read(path, fields=("title", "meta.text"), left=left)
    assert joined == ["T1\n\none", "two", "three", "T4"]
    assert left == {NULL: 2}


def test_a_name_with_a_dot_is_itself_before_it_is_a_name_within_another(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"meta.text": "itself", "meta": {"text": "within"}}\n')
    assert _read(tmp_path / "a.jsonl", fields=("meta.text",)) == ["itself"]


def test_a_pattern_takes_any_kind_and_the_rest_is_counted(tmp_path, settings_of, decode_stream, data, capsys):
    for n in range(60):
        (tmp_path / "docs" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "docs" / "deep" / f"{n}.rst").write_text("".join(f"line {i} of {n}\n" for i in range(40)))
        (tmp_path / "docs" / f"{n}.py").write_text("print()")
    (tmp_path / "docs" / ".git").mkdir()
    tokenizer = str(data.tokenizer_file)
    with pytest.raises(UserError, match=r"mostly files in no known format .*60 \.rst.*data\.pattern=\*\*/\*\.py \("):
        prepare_data(settings_of(tmp_path / "docs"), 1)
    made = prepare_data(settings_of(tmp_path / "docs", pattern="**/*.rst", tokenizer=tokenizer), 1)
    texts = [file.read_text() for file in (tmp_path / "docs" / "deep").iterdir()]
    assert sum(map(len, decode_stream(made, "train") + decode_stream(made, "validation"))) == sum(map(len, texts))
    assert made.meta["taken"] == {".rst": {"files": 60, "documents": 60, "bytes": sum(map(len, texts))}}
    assert made.meta["left"] == {"not of data.pattern": 60, "hidden": 1}
    table = capsys.readouterr().err.splitlines()
    assert [line.strip("│ ").split() for line in table if "taken: .rst" in line or "hidden" in line] == [
        ["taken:", ".rst", "│", "60", "│", "60", "│", f"{sum(map(len, texts)):,}"],
        ["left:", "hidden", "│", "1"],
    ]
    for name in ("README", "a.RST.gz", "b.x[red]\x1b[31m", "c.txt"):
        text = name.encode() * 999
        (tmp_path / "docs" / "deep" / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    every = prepare_data(settings_of(tmp_path / "docs", pattern="deep/*", tokenizer=tokenizer), 1)
    taken = {kind: part["documents"] for kind, part in every.meta["taken"].items()}
    assert taken == {".rst": 60, "without suffix": 1, ".rst.gz": 1, ".x[red]\x1b[31m": 1, ".txt": 1}
    assert r"│ 'taken: .x[red]\x1b[31m'" in capsys.readouterr().err
    named = prepare_data(settings_of(tmp_path / "docs" / "deep" / "1.rst", pattern="*.rst", tokenizer=tokenizer), 1)
    assert named.meta["split"]["documents"] == 1
    for pattern, said in (("*.md", "matches no file below"), ("../*.py", "must stay below data.path")):
        with pytest.raises(UserError, match=said):
            prepare_data(settings_of(tmp_path / "docs", pattern=pattern), 1)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("https://example.org/a.txt", r"is a URL: fetch it and give the file, or .*data\.hub_name"),
        ("hf://datasets/owner/name", "is a URL"),
        ("owner/corpus", r"leads to no file.*a data set of the hub is data\.source=hub data\.hub_name=owner/name"),
    ],
)
def test_what_is_no_file_here_says_what_would_do(settings_of, path, said):
    with pytest.raises(UserError, match=said):
        prepare_data(settings_of(path), 1)


def test_null_rows_are_left_out_and_counted_where_the_data_is_prepared(tmp_path, settings_of, data):
    texts = [f"row {n} " + "words " * 60 if n % 3 else None for n in range(300)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    made = prepare_data(settings_of(tmp_path / "a.parquet", tokenizer=str(data.tokenizer_file)), 1)
    assert made.meta["counts"] == {NULL: 100}
    assert made.meta["train"]["documents"] + made.meta["validation"]["documents"] == 200


def test_kinds_are_told_by_names():
    told = {"a.TXT": ".txt", "a.b.jsonl.GZ": ".jsonl.gz", "a.parquet.gz": None, "a.rst": None, "gz": None, "a.gz": None}
    assert {name: format_of(Path(name)) for name in told} == told
    assert format_of(Path("a.rst.xz"), else_text=True) == ".txt.xz"
