"""Any text can be the haystack."""

import numpy as np
import pytest

from dma_lab.evaluation.haystack import Haystack
from dma_lab.messages import UserError


def test_a_haystack_has_no_eot_and_is_repeated_when_too_short(make_task, run):
    haystack = make_task().haystack
    assert not (haystack.tokens == run.data.eot_id).any()
    first = run.data.validation_tokens[1 : run.data.validation_document_starts[1]]
    np.testing.assert_array_equal(haystack.tokens[: len(first)], first)
    long = haystack.excerpt(5, 2 * len(haystack.tokens))
    np.testing.assert_array_equal(long[: len(haystack.tokens)], long[len(haystack.tokens) :])


def test_any_text_can_be_the_haystack_and_what_is_no_text_is_refused(run, tmp_path):
    tokenizer = run.data.load_tokenizer()
    text = tmp_path / "text.txt"
    text.write_text("Grüße aus dem Heu. " * 50, encoding="utf-8")
    assert tokenizer.decode(Haystack.of_file(text, tokenizer).tokens.tolist()) == text.read_text(encoding="utf-8")
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "eins."}\n{"text": "zwei."}\n')
    assert tokenizer.decode(Haystack.of_file(lines, tokenizer).tokens.tolist()) == "eins.\n\nzwei."
    text.write_bytes("Gr\xfc\xdfe".encode("latin-1"))
    with pytest.raises(UserError, match=r"text.txt, line 1 is not UTF-8"):
        Haystack.of_file(text, tokenizer)
    text.write_text("")
    with pytest.raises(UserError, match="has no text"):
        Haystack.of_file(text, tokenizer)
    with pytest.raises(UserError, match="is not a file that can be read as text"):
        Haystack.of_file(tmp_path / "none.txt", tokenizer)
