"""An evaluation that is killed between two of its cells, and its command given again."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from dma_lab.seals import sealed, unsealed
from tests.scripts import KILLED, Scripts


def kill_and_continue(
    scripts: Scripts, command: list[str], file: Path, count: int, score: str
) -> tuple[list[Any], subprocess.CompletedProcess[str]]:
    """The cells of ``file`` when it was killed, fewer than its ``count``, and how the command ended that went on.

    The first cell's ``score`` is made 1234.5 in between: what is kept is not computed again.
    """
    process = scripts.start("evaluate.py", command)
    deadline = time.monotonic() + 120
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.ended().returncode == KILLED
    kept = unsealed(file.read_text())
    assert 1 <= len(kept["cells"]) < count, "the signal came in the middle"
    kept["cells"][0]["scores"][score] = 1234.5
    file.write_text(sealed(kept))
    done = scripts.run("evaluate.py", command)
    assert done.returncode == 0, done.stderr
    return kept["cells"], done
