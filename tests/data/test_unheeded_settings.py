"""Settings of another source than the corpus has are said to change nothing."""

import pytest

from dma_lab.data.digests import DigestCache
from dma_lab.data.local import open_local
from dma_lab.data.settings import DataSettings
from dma_lab.messages import print_once

OWN = {"stdlib": {}, "local": {"path": "text"}, "hub": {"hub_name": "owner/name"}}
GIVEN = {"encoding": "latin-1", "text_field": "body", "hub_config": "en", "hub_split": "train", "max_tokens": 9}


@pytest.mark.parametrize(
    ("source", "unheeded"),
    [
        ("stdlib", ["encoding", "text_field", "hub_config", "hub_split"]),
        ("local", ["hub_config", "hub_split"]),
        ("hub", ["encoding"]),
    ],
)
def test_settings_that_the_source_does_not_take_are_said(source, unheeded, capsys):
    print_once.cache_clear()
    DataSettings("mine", source, **OWN[source])
    assert not capsys.readouterr().err
    DataSettings("mine", source, **OWN[source] | GIVEN)
    said = capsys.readouterr().err.splitlines()
    expected = {f"dma_lab: data.{name}={GIVEN[name]} changes nothing: data=mine does not take it." for name in unheeded}
    assert (set(said), len(said)) == (expected, len(expected))


@pytest.mark.parametrize(
    ("given", "pattern_said", "field_said"),
    [
        ({"path": "a.txt"}, True, True),
        ({"path": "*.txt"}, True, True),
        ({"path": ["a.txt", "c.jsonl"]}, True, False),
        ({"path": "a.txt", "validation_path": "c.jsonl"}, True, False),
        ({"path": "b.rst"}, False, True),
        ({"path": ["a.txt", "b.rst"]}, False, True),
        ({"path": "."}, False, False),
        ({"path": "sub"}, False, True),
        ({"path": "a.txt", "validation_path": "sub"}, False, True),
        ({"path": ["a.txt", "sub"]}, False, True),
    ],
    ids=str,
)
def test_settings_that_local_files_do_not_take_are_said(given, pattern_said, field_said, tmp_path, monkeypatch, capsys):
    """And where it is said the same is read without them; no pattern reads .rst."""
    (tmp_path / "sub").mkdir()
    for name in ("a.txt", "b.rst", "c.jsonl", "sub/d.txt"):
        (tmp_path / name).write_text('{"body": "text", "text": "more"}\n')
    monkeypatch.chdir(tmp_path)

    def read(**more):
        print_once.cache_clear()
        corpus = open_local(DataSettings("mine", "local", **given, **more), DigestCache(tmp_path / "cache"))
        texts = ["".join(document.chunks) for document in corpus._documents(corpus.train + corpus.validation)]
        return texts, capsys.readouterr().err.count("changes nothing")

    pattern = {"pattern": "**/[bcd]*"}
    texts, said = read(**pattern)
    assert said == pattern_said
    if pattern_said:
        assert texts == read()[0]
    texts, said = read(**pattern, text_field="body")
    assert said == pattern_said + field_said
    assert field_said == (texts == read(**pattern)[0])
