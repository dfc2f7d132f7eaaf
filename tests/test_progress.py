"""What long work says of itself where stderr is no terminal."""

from dma_lab import progress as module


def test_more_than_asked_for_is_all_and_nothing_is_left_to_do(monkeypatch, capfd):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_LINES", 0.0)
    with module.WorkProgress("tokenizing") as progress:
        progress.update(0.5, "5 MB of text")
        progress.update(19.8, "198 MB of text")
    half, whole = capfd.readouterr().err.splitlines()
    assert half.startswith("dma_lab: tokenizing 50%, 5 MB of text, ")
    assert whole == "dma_lab: tokenizing 100%, 198 MB of text, 0 s to go"
