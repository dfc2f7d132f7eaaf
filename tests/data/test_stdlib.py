"""The embedded corpus: all of the library's text, and a validation that many documents decide."""

import pytest

from dma_lab.data.build import prepare_data
from dma_lab.data.settings import DataSettings
from dma_lab.data.stdlib import StandardLibrary, cut_at_definitions
from dma_lab.messages import UserError

CONTEXT = 256  # of the rung that runs on a laptop


def _text(document):
    return "".join(document.chunks)


def test_what_is_scored_by_default_is_many_documents_of_which_none_outweighs_the_others():
    corpus = StandardLibrary(0.05)
    documents = [(_text(document), validates) for document, validates in corpus.documents()]
    sizes = [len(text.encode()) for text, validates in documents if validates]
    # 131,072 tokens of a vocabulary of 512 to 8,192 stand for 2 to 3.5 bytes each.
    for scored in (2 * 131_072, 3 * 131_072):
        held = []
        while sum(held) < scored:
            held.append(sizes[len(held)])
        assert len(held) >= 40
        assert sum(held) ** 2 / sum(size**2 for size in held) >= 30
        assert sorted(held)[len(held) // 2] > 4 * 2 * CONTEXT, "half of them are several contexts long"
    trained = sum(len(text.encode()) for text, validates in documents if not validates)
    whole = sum(path.stat().st_size for path in corpus.root.rglob("*.py") if "site-packages" not in path.parts)
    assert trained > 0.93 * whole
    assert corpus.identity == StandardLibrary(0.05).identity


def test_parts_are_the_text_and_begin_at_definitions():
    functions = [f"def f{n}():\n" + "    x = 1\n" * 40 + "\n\n" for n in range(30)]
    text = "".join(functions)
    parts = cut_at_definitions(text, 3000)
    assert "".join(parts) == text
    assert all(part.startswith("def ") for part in parts)
    equal = len(text) / len(parts)
    assert all(0.6 * equal < len(part) <= 4 / 3 * 3000 for part in parts)
    assert cut_at_definitions("x" * 3000, 3000) == ["x" * 3000]
    assert [len(part) for part in cut_at_definitions("x" * 9000, 3000)] == [3000] * 3


def _prepare(tmp_path):
    settings = DataSettings(
        name="stdlib", source="stdlib", vocab_size=300, validation_fraction=0.2, cache_dir=str(tmp_path / "cache")
    )
    return prepare_data(settings, 1)


def test_files_train_whole_or_validate_in_excerpts(tmp_path, decode_stream, small_library):
    made = _prepare(tmp_path)
    wanted = {n: f"# file {n}\nx = {n}\n" for n in range(80)}
    train, validation = decode_stream(made, "train"), decode_stream(made, "validation")
    assert sorted([*train, *validation]) == sorted(wanted.values())
    assert train != [text for text in wanted.values() if text in train], "neighbours in the stream are strangers"
    assert 5 <= len(validation) <= 30


def test_copies_never_stand_on_both_sides_and_no_file_fills_the_validation(tmp_path, decode_stream, small_library):
    held_out = decode_stream(_prepare(tmp_path), "validation")
    number = int(held_out[0].split()[2])
    # The file that validates grows; the others become copies of another one that does.
    definitions = "".join(f"def f{n}():\n" + "    return 1\n" * 20 + "\n\n" for n in range(1000))
    (small_library / f"package{number % 7}" / f"m{number}.py").write_text(definitions)
    trains = next(n for n in range(80) if f"# file {n}\nx = {n}\n" not in held_out)
    (small_library / f"package{trains % 7}" / f"m{trains}.py").write_text(held_out[1])
    made = _prepare(tmp_path)
    train, validation = decode_stream(made, "train"), decode_stream(made, "validation")
    assert not set(train) & set(validation)
    assert held_out[1] in validation
    assert len(train) == 80 - len(held_out) - 1
    assert len(validation) == len(held_out) - 1 + 8
    assert made.meta["counts"] == {"training documents that validate left out": 1}


def test_a_library_that_changes_while_it_is_read_is_said(small_library):
    corpus = StandardLibrary(0.2)
    (small_library / "package1" / "m1.py").write_text("new = True\n")
    (small_library / "package2" / "m2.py").write_text("new = True\n")
    with pytest.raises(UserError, match=r"m\d\.py changed while it was read"):
        list(corpus.documents())


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """A standard library of 80 modules among files that are none of its text."""
    root = tmp_path / "lib" / "python3"
    for n in range(80):
        (root / f"package{n % 7}").mkdir(parents=True, exist_ok=True)
        (root / f"package{n % 7}" / f"m{n}.py").write_text(f"# file {n}\nx = {n}\n")
    (root / "site-packages").mkdir()
    (root / "site-packages" / "other.py").write_text("installed = True\n")
    (root / "latin.py").write_bytes(b"# caf\xe9\n")
    (root / "empty.py").write_bytes(b"")
    (root / "notes.txt").write_text("not a module")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(root))
    return root
