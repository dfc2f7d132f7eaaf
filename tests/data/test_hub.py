import http.server
import json
import threading
from pathlib import Path
from typing import ClassVar

import pytest

from dma_lab.data.digests import share_below, text_digest
from dma_lab.data.settings import DataSettings
from dma_lab.data.store import TokenData

_COMMIT = "a" * 40
_ROWS = {
    "train": [f"row {n} of the hub: {n * n}" for n in range(600)],
    "validation": [f"held out {n}" for n in range(9)],
}


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as serves the data set ``owner/corpus`` and the model ``owner/model``."""

    protocol_version = "HTTP/1.1"
    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self):
        path, (api, at) = self.path.split("?")[0], ("/api/", f"/resolve/{_COMMIT}/")
        name = path.partition(at)[2]
        if name in self.files and path.startswith(("/datasets/owner/corpus", "/owner/model")):
            return self._answer(self.files[name])
        entries = [
            {"type": "file", "path": n, "rfilename": n, "size": len(c), "oid": "b"} for n, c in self.files.items()
        ]
        if path == f"{api}datasets/owner/corpus/tree/{_COMMIT}":
            return self._answer(json.dumps(entries).encode())
        for kind, known in (("datasets", "owner/corpus"), ("models", "owner/model")):
            if path in (f"{api}{kind}/{known}", f"{api}{kind}/{known}/revision/{_COMMIT}"):
                return self._answer(json.dumps({"id": known, "sha": _COMMIT, "siblings": entries}).encode())
        return self._answer(b"", 404)

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, body, status=200):
        length = len(body)
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            body, status = body[int(first) : int(last or length) + 1], 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(body) - 1}/{length}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"etag"')
        self.send_header("X-Repo-Commit", _COMMIT)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(tmp_path, data):
    """The environment in which a hub of ours is the hub; its ``stop`` ends it."""
    _Hub.files = {
        f"{split}.jsonl": "".join(json.dumps({"text": row}) + "\n" for row in rows).encode()
        for split, rows in _ROWS.items()
    }
    _Hub.files["tokenizer.json"] = data.tokenizer_file.read_bytes()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    server.shutdown()
    server.server_close()


def _settings(tmp_path, **changes) -> DataSettings:
    chosen = {
        "name": "corpus",
        "source": "hub",
        "hub_name": "owner/corpus",
        "hub_split": "train",
        "validation_fraction": 0.1,
        "vocab_size": 280,
        "max_tokens": 10**6,
        "cache_dir": str(tmp_path / "cache"),
    } | changes
    return DataSettings(**chosen)


def _prepared(result) -> TokenData:
    assert result.returncode == 0, result.stdout + result.stderr
    return TokenData(Path(result.stdout.strip()))


def test_a_hub_data_set_is_streamed_and_found_again_without_network(tmp_path, hub, in_a_process, decode_stream):
    settings = _settings(tmp_path, hub_validation_split="validation")
    made = _prepared(in_a_process(settings, environment=hub))
    assert decode_stream(made, "train") == _ROWS["train"]
    assert decode_stream(made, "validation") == _ROWS["validation"]
    offline = in_a_process(settings, environment=hub | {"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert _prepared(offline).folder == made.folder
    assert f"taking owner/corpus as last seen (revision {_COMMIT})" in offline.stderr


def test_a_share_of_a_split_validates_and_a_tokenizer_comes_from_the_hub(
    tmp_path, hub, in_a_process, data, decode_stream
):
    made = _prepared(in_a_process(_settings(tmp_path, tokenizer="owner/model"), environment=hub))
    assert made.vocab_size == data.vocab_size
    held_out = [row for row in _ROWS["train"] if share_below(text_digest(row.encode()), 0.1)]
    assert decode_stream(made, "validation") == held_out
    assert decode_stream(made, "train") == [row for row in _ROWS["train"] if row not in held_out]


WRONG = [
    ({"hub_name": "owner/nothing"}, "data.hub_name=owner/nothing cannot be read from the hub"),
    ({"hub_split": "tests"}, "split tests) cannot be opened"),
    ({"hub_config": "english"}, "data.hub_config=english, split train) cannot be opened"),
    ({"text_field": "body"}, "has no data.text_field=body; it has: text"),
    ({"tokenizer": "owner/nothing"}, "data.tokenizer=owner/nothing is neither a file or folder here nor"),
]


def test_what_the_hub_does_not_have_is_named(tmp_path, hub, in_a_process):
    result = in_a_process(*(_settings(tmp_path, **changes) for changes, _ in WRONG), environment=hub)
    assert result.returncode == 2, result.stderr
    for said, (_, complaint) in zip(result.stdout.splitlines(), WRONG, strict=True):
        assert complaint in said
