"""A CSV of anyone's points: its law, and one sentence for what is wrong with it."""

import csv
import re

import numpy as np
import pytest

from dma_lab.messages import UserError
from dma_lab.report.write import write_laws


@pytest.fixture
def table(tmp_path):
    """Two backends' exact points but for a noise of a thousandth, as text of a CSV."""
    path, noise = tmp_path / "runs.csv", np.random.default_rng(0)
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("loss", "tokens", "backend", "parameters"))  # any order
        for backend, scale in (("mha", 1.0), ("mine", 0.9)):
            for params in np.geomspace(1e6, 1e8, 5):
                for tokens in np.geomspace(1e8, 1e10, 4):
                    loss = 1.8 + scale * 30 * params**-0.3 + 90 * tokens**-0.3 + 0.001 * noise.normal()
                    writer.writerow((loss, tokens, backend, params))
    return path


def test_a_file_gives_laws_that_hold_what_made_it(table, tmp_path):
    page = write_laws(str(table), tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert page.exists()
    assert (tmp_path / "report" / "figures" / "loss.svg").exists()
    assert "40 points of mha, mine." in text
    for backend, scale in (("mha", 1.0), ("mine", 0.9)):
        (row,) = re.findall(rf"\| {backend} \| least squares \| (.*?) \|\n", text)
        for cell, right in zip(row.split(" | "), (1.8, scale * 30, 90, 0.3, 0.3), strict=False):
            _, low, high = map(float, re.findall(r"[\d.]+(?:e[+-]\d+)?", cell))
            assert low <= right <= high, (backend, cell)
            assert f"| {backend} | Huber, log |" in text
        assert re.search(r"\| 20 \| 0\.00(0[7-9]|1[0-4])", row), row


def test_rows_of_one_training_are_one(table, tmp_path):
    rows = table.read_text().splitlines()
    rows = [f"{rows[0]},training", *(f"{row},{row.split(',')[3]}" for row in rows[1:])]
    table.write_text("\n".join(rows))
    write_laws(str(table), tmp_path / "report")
    assert re.search(r"\| least squares \|.*\| 5 \| [\d.]+ \+ [\d.]+ \|", (tmp_path / "report/report.md").read_text())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parameters,tokens\n1,2\n", "has no column loss"),
        ("parameters,tokens,loss\n", "has no row"),
        ("parameters,tokens,loss\n1e6,1e8,3\n1e6,1e8,nan\n", "line 3 has loss = 'nan'"),
        ("parameters,tokens,loss\n1e6,,3\n", "line 2 has tokens = ''"),
        ("parameters,tokens,loss\n1e6\n", "line 2 has tokens = None"),
        ("parameters,tokens,loss\n\n1e6,1e8,-3\n", "line 3 has loss = '-3'"),
        ("parameters,tokens,loss\n1e206,1e8,3\n", "line 2 has parameters = '1e206'"),
        ("parameters,tokens,loss\n1000000,100000000,3,45\n", "line 2 has more cells than the first line"),
        (
            "parameters,tokens,loss,training\n1e6,1e8,3,0\n1e6,2e8,2.9,0\n1e6,2e8,2.9,1\n2e6,1e8,2.8,0\n",
            "line 5 has training = '0' with 2e.06 parameters, which stands above with 1e.06",
        ),
        ("parameters,tokens,loss,loss\n1e6,1e8,3,7\n", "more than one column loss"),
        (
            "parameters;tokens;loss\n1e6;1e8;3\n",
            "has no column parameters, tokens, loss .it has: parameters;tokens;loss",
        ),
    ],
)
def test_what_is_no_table_of_points_is_refused(tmp_path, text, said):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        write_laws(str(path), tmp_path / "report")
    with pytest.raises(UserError, match="cannot be read"):
        write_laws(str(tmp_path / "none.csv"), tmp_path / "report")


def test_what_a_spreadsheet_writes_is_the_same_table_and_rows_given_twice_are_said(table, tmp_path):
    write_laws(str(table), tmp_path / "plain")
    plain = (tmp_path / "plain" / "report.md").read_text()
    table.write_text("\ufeff" + table.read_text().replace(",", ", "))
    write_laws(str(table), tmp_path / "spaced")
    assert (tmp_path / "spaced" / "report.md").read_text() == plain
    assert "Equal rows" not in plain
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1]]))
    write_laws(str(table), tmp_path / "twice")
    said = (tmp_path / "twice" / "report.md").read_text()
    assert "if they are copies, the intervals below are too narrow" in said
    assert "> - line 42 is line 2\n" in said


def test_points_that_fix_no_law_are_shown_and_said(tmp_path):
    path = tmp_path / "line.csv"
    rows = "".join(f"{n},{20 * n},{3 - 0.01 * i}\n" for i, n in enumerate((1e6, 2e6, 4e6, 8e6, 16e6)))
    path.write_text("parameters,tokens,loss\n" + rows)
    write_laws(str(path), tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text()
    assert "> - points: the runs lie on one line, D = 20 N" in text
    assert "least squares" not in text
