"""What validates where nobody set it apart: always something, by documents or by stretches, and never what trains."""

import itertools
import random

import pytest

from dma_lab.data import splits
from dma_lab.data.build import prepare_data
from dma_lab.data.digests import text_digest
from dma_lab.data.readers import whole_document
from dma_lab.data.splits import choose_split, parts_of, stretches


def _play(lines: int, seed: int = 0) -> str:
    """Verse as of a play: names, lines, and an empty line after each speech."""
    draw = random.Random(seed)
    words = [f"{a}{b}{c}" for a in ("th", "wh", "br", "st") for b in "aeiou" for c in ("n", "ll", "rd", "me")]
    text = []
    for _ in range(lines):
        text.append(" ".join(draw.choices(words, k=draw.randint(3, 11))) + draw.choice([",", ".", "!", ":"]))
        if draw.random() < 0.2:
            text.append("")
    return "\n".join(text) + "\n"


def _effective(texts: list[str]) -> float:
    sizes = [len(text.encode()) for text in texts]
    return sum(sizes) ** 2 / sum(size**2 for size in sizes)


def test_one_text_alone_is_split_in_stretches_enough_for_an_interval(settings_of, tmp_path, decode_stream, capsys):
    play = _play(8000)
    (tmp_path / "play.txt").write_text(play)
    made = prepare_data(settings_of(tmp_path / "play.txt", validation_fraction=0.01), 1)
    train, validation = decode_stream(made, "train"), decode_stream(made, "validation")
    assert _effective(validation) >= 20
    held_out = sum(map(len, validation))
    assert 0.01 * len(play) <= held_out <= 0.2 * len(play)
    assert all(text.endswith("\n") for text in validation), "cut where lines end"
    assert not any(text in part for text in validation for part in train)
    # Every character is there once, in its order: what trains is the play without what validates.
    assert _without(play, validation) == "".join(train)
    assert made.meta["split"]["by"] == "stretches"
    assert made.meta["validation"]["effective_documents"] == pytest.approx(_effective_tokens(made), rel=1e-12)
    told = capsys.readouterr().err
    assert f"1 document is too few to hold some out: {len(validation)} stretches validate" in told


def _without(text: str, parts: list[str]) -> str:
    left, at = "", 0
    for part in parts:
        found = text.index(part, at)
        left += text[at:found]
        at = found + len(part)
    return left + text[at:]


def _effective_tokens(data) -> float:
    starts = [*data.validation_document_starts.tolist(), len(data.validation_tokens)]
    lengths = [b - a for a, b in itertools.pairwise(starts)]
    return sum(lengths) ** 2 / sum(length**2 for length in lengths)


def test_165_texts_always_validate_whatever_their_hashes(settings_of, tmp_path, decode_stream):
    texts = [_play(40, seed) for seed in range(165)]
    for number, text in enumerate(texts):
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{number}.txt").write_text(text)
    made = prepare_data(settings_of(tmp_path / "texts", validation_fraction=0.01), 1)
    train, validation = decode_stream(made, "train"), decode_stream(made, "validation")
    assert _effective(validation) >= 20
    assert not set(train) & set(validation)
    assert sum(map(len, train + validation)) == sum(map(len, texts))
    assert all(any(part in text for text in texts) for part in train + validation)


@pytest.mark.parametrize(
    ("documents", "fraction", "by"),
    [(60, 0.01, "stretches"), (800, 0.01, "documents"), (60, 0.6, "documents"), (5000, 0.02, "documents")],
)
def test_documents_validate_where_a_tenth_or_what_is_asked_for_holds_enough(documents, fraction, by):
    made = [whole_document(f"{n} " + "words " * 150, "") for n in range(documents)]
    split = choose_split(lambda: iter(made), fraction)
    assert split.by == by
    if by == "documents":
        chosen = sum(split.validates(document.digest) for document in made)
        assert chosen >= 24
        assert split.threshold / 2**64 >= fraction
        if documents == 5000:  # enough as it is: the share that was asked for, to the digest
            assert split.threshold == int(fraction * 2**64)


def test_a_few_long_documents_among_many_do_not_make_the_validation():
    lengths = [20] * 600 + [40_000] * 30
    made = [whole_document(f"{n} " + "word " * length, "") for n, length in enumerate(lengths)]
    split = choose_split(lambda: iter(made), 0.05)
    assert split.by == "stretches"
    chosen = {p.digest: p.size for d in made for p, validates in parts_of(d, split) if validates}
    assert sum(chosen.values()) ** 2 / sum(size**2 for size in chosen.values()) >= 20


def test_neither_order_nor_files_nor_chunks_change_what_validates():
    texts = [_play(300, seed) for seed in range(7)]

    def held_out(texts, size):
        made = [
            whole_document(text, "")._replace(chunks=[text[i : i + size] for i in range(0, len(text), size)])
            for text in texts
        ]
        split = choose_split(lambda: iter(made), 0.02)
        return sorted("".join(p.chunks) for d in made for p, validates in parts_of(d, split) if validates)

    first = held_out(texts, 10**6)
    assert first
    assert held_out(texts[::-1], 17) == first
    assert held_out(texts, 911) == first


def test_copies_of_a_stretch_validate_once_and_never_train(settings_of, write, tmp_path, decode_stream):
    play = _play(3000)
    path = write(tmp_path / "a.jsonl", [play, "\n" + _play(50, 1), play, play])
    made = prepare_data(settings_of(path, validation_fraction=0.01), 1)
    train, validation = decode_stream(made, "train"), decode_stream(made, "validation")
    assert len(validation) == len(set(validation))
    assert not any(text in part for text in validation for part in train)
    left = made.meta["counts"]["stretches that repeat one that validates left out"]
    of_the_play = [text for text in validation if text in play]
    assert left == 2 * len(of_the_play)
    whole = 3 * len(play) + 1 + len(_play(50, 1))
    assert sum(map(len, train + validation)) + 2 * sum(map(len, of_the_play)) == whole


def test_empty_documents_are_counted_where_stretches_validate_too(settings_of, write, tmp_path):
    path = write(tmp_path / "a.jsonl", ["", _play(400), "", ""])
    made = prepare_data(settings_of(path), 1)
    assert made.meta["split"]["by"] == "stretches"
    assert made.meta["counts"] == {"empty documents left out": 3}


def test_stretches_are_the_text_and_end_where_paragraphs_lines_sentences_words_do():
    for text, mark in (
        ("a line\nand one more\n\n" * 900, "\n\n"),
        ("a line of it\n" * 900, "\n"),
        ("One says so. " * 900, ". "),
        ("x " * 9000, " "),
    ):
        cut = list(stretches([text], 600))
        assert "".join(cut) == text
        assert all(part.endswith(mark) for part in cut[:-1])
        assert all(400 <= len(part) <= 800 for part in cut[:-1])
    assert [len(part) for part in stretches(["z" * 2000], 600)] == [800, 800, 400]
    assert list(stretches(["z" * 800], 600)) == ["z" * 800]


def test_the_smallest_digests_are_kept_and_no_more(monkeypatch):
    monkeypatch.setattr(splits, "_KEPT", 300)
    made = [whole_document(f"{n} " + "words " * 150, "") for n in range(3000)]
    bounded = choose_split(lambda: iter(made), 0.001)
    monkeypatch.undo()
    assert bounded == choose_split(lambda: iter(made), 0.001)
    assert 24 <= sum(bounded.validates(text_digest("".join(d.chunks).encode())) for d in made) <= 30


def test_the_choice_is_in_the_fingerprint_of_what_is_cut(settings_of, tmp_path, monkeypatch, data):
    (tmp_path / "play.txt").write_text(_play(2000))
    settings = settings_of(tmp_path / "play.txt", tokenizer=str(data.tokenizer_file))
    first = prepare_data(settings, 1)
    real = splits.Split.recorded
    monkeypatch.setattr(splits.Split, "recorded", lambda split: real(split) | {"by": "stretches", "documents": 2})
    other = prepare_data(
        settings_of(tmp_path / "play.txt", tokenizer=settings.tokenizer, cache_dir=str(tmp_path / "d")), 1
    )
    assert other.fingerprint != first.fingerprint
