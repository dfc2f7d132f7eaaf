"""What is said once is said once, also out of a compiled graph."""

import torch

from dma_lab.messages import print_once, warn_once


def test_a_compiled_function_warns_once_and_without_a_graph_break(capsys):
    def warning(x: torch.Tensor) -> torch.Tensor:
        warn_once("slow here")
        return x + 1

    print_once.cache_clear()
    for _ in range(2):
        torch.compiler.reset()
        compiled = torch.compile(warning, fullgraph=True, backend="eager")
        assert torch.equal(compiled(torch.ones(2)), torch.full((2,), 2.0))
    warning(torch.ones(2))
    assert capsys.readouterr().err == "dma_lab: slow here\n"
