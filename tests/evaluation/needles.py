"""What the tests of needles ask for, and read texts with."""

import re

from dma_lab.evaluation.needle import NeedleTask

LENGTH = 1500
NEEDLE = ["suite.lengths=[700,900]", "suite.depths=[0.0,1.0]", "suite.samples=2"]
"""Of ``suite=needle``, small."""


def needles_in(text: str) -> list[tuple[str, str]]:
    return re.findall(r" One of the special magic \w+ for (\S+) is: (\S+)\.", text)


def said_of(task: NeedleTask, tokens: list[int]) -> str:
    """Without the EOT in front."""
    return task.tokenizer.decode(tokens[1:], skip_special_tokens=False)
