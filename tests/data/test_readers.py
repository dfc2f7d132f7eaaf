"""What a file holds is read whole, whatever legal form its bytes have; what is no text is named."""

import contextlib
import gzip
import itertools
import json
import lzma
import random
import shutil
import subprocess

import pyarrow
import pytest

from dma_lab.data.formats import format_of
from dma_lab.data.readers import read_documents
from dma_lab.messages import UserError

_ROWS = [json.dumps({"text": f"document {n}"}).encode() + b"\n" for n in range(2000)]


def _texts(path):
    return ["".join(document.chunks) for document in read_documents(path, format_of(path) or "")]


def _zstd(content):
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as out:
        out.write(content)
    return sink.getvalue().to_pybytes()


_SKIPPABLE = b"\x50\x2a\x4d\x18" + (8).to_bytes(4, "little") + b"comments"
_PACKED = {
    "jsonl.xz": (lzma.compress, [b"", b"\0" * 4, b"\0" * 4096, lzma.compress(b"")]),
    "jsonl.gz": (gzip.compress, [b"", b"\0" * 512, gzip.compress(b"")]),
    "jsonl.zst": (_zstd, [b"", _SKIPPABLE, _zstd(b"")]),
}


@pytest.mark.parametrize(
    ("kind", "between"), [(kind, between) for kind, (_, many) in _PACKED.items() for between in range(len(many))]
)
def test_files_of_several_streams_are_read_to_the_end(tmp_path, kind, between):
    compress, paddings = _PACKED[kind]
    cuts = [0, 700, 701, 2000]
    members = [compress(b"".join(_ROWS[a:b])) for a, b in itertools.pairwise(cuts)]
    path = tmp_path / f"a.{kind}"
    path.write_bytes(paddings[between].join([*members, b""]))
    assert _texts(path) == [f"document {n}" for n in range(2000)]
    if kind == "jsonl.xz" and shutil.which("xz"):
        told = subprocess.run(["xz", "-dc", path], capture_output=True, check=True).stdout
        assert told == b"".join(_ROWS)


@pytest.mark.parametrize("kind", _PACKED)
@pytest.mark.parametrize("tail", [b"junk that is no stream", b"\0\0\0", b"half"])
def test_what_follows_a_stream_and_is_none_is_said(tmp_path, kind, tail):
    compress, _ = _PACKED[kind]
    second = compress(b"".join(_ROWS[1000:]))
    path = tmp_path / f"a.{kind}"
    path.write_bytes(compress(b"".join(_ROWS[:1000])) + (second[:-7] if tail == b"half" else tail + second))
    if (kind, tail) == ("jsonl.gz", b"\0\0\0"):
        assert len(_texts(path)) == 2000  # gzip takes any number of zeros for padding
        return
    with pytest.raises(UserError, match=rf"a\.{kind} is damaged or ends early, after line \d+"):
        _texts(path)


def test_a_flipped_bit_in_a_compressed_file_gives_the_same_rows_or_a_sentence(tmp_path):
    draw = random.Random(0)
    for kind, (compress, _) in _PACKED.items():
        whole = compress(b"".join(_ROWS[:50])) + compress(b"".join(_ROWS[50:100]))
        for _ in range(60):
            spoilt = bytearray(whole)
            spoilt[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            path = tmp_path / f"a.{kind}"
            path.write_bytes(spoilt)
            with contextlib.suppress(UserError):
                assert len(_texts(path)) == 100, (kind, "rows vanished")


def test_a_byte_order_mark_is_no_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9 \xef\xbb\xbf\r\n")
    assert _texts(tmp_path / "a.txt") == ["café \ufeff\r\n"], "but within the text it is a character"
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"".join(_ROWS[:2]) + b"\r\n")
    assert _texts(tmp_path / "a.jsonl") == ["document 0", "document 1"]
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf")
    assert _texts(tmp_path / "b.jsonl") == []


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32"])
def test_utf_16_is_no_text_with_nuls(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes("plain words\n".encode(encoding))
    with pytest.raises(UserError, match=r"a\.txt(, line 1)? (looks like UTF-16|is not UTF-8)"):
        _texts(tmp_path / "a.txt")
