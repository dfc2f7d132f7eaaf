"""Settings of another source than the corpus has are said to change nothing."""

import pytest

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
