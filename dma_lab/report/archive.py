"""Runs as one file, without their weights: all that the report is made of, small enough to lie beside it.

Sums of losses and metrics are thinned (dma_lab/report/thinned.py), so a report that is to lie beside an archive is to
be made of it. A run's summary vouches for its files there as for the original ones.
"""

import io
import json
import lzma
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from dma_lab.files import whole
from dma_lab.messages import UserError
from dma_lab.report.collect import Run, read_runs
from dma_lab.report.thinned import thinned_metrics, thinned_sums
from dma_lab.run_summary import BESIDE, LIFETIMES, SUMMARY, Summary

SUFFIX = ".tar.xz"
_EVALUATION = "evaluation"


def write_archive(roots: Sequence[Path], file: Path) -> int:
    """Write the finished runs under ``roots`` to ``file``, the same bytes whenever they are the same runs.

    Returns:
        How many there are.

    Raises:
        UserError: there is none, or ``file`` is not called as an archive is.
    """
    if not file.name.endswith(SUFFIX):
        raise UserError(f"archive={file}: runs are packed as {SUFFIX}; name it so.")
    runs = sorted((run for run in read_runs(*roots)[0] if run.finished), key=lambda run: run.name)
    if not runs:
        raise UserError(f"runs={','.join(map(str, roots))} holds no finished run, so there is nothing to pack.")
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, whole(file) as stream:
        packed = {name: path for run in runs for name, path in _copied(run, Path(folder)).items()}
        with (
            lzma.open(stream, "wb", preset=9 | lzma.PRESET_EXTREME) as compressed,
            tarfile.open(fileobj=compressed, mode="w") as archive,
        ):
            # Alike beside alike, which compresses well.
            for name in sorted(packed, key=lambda name: (Path(name).name, name)):
                entry = tarfile.TarInfo(name)
                content = packed[name].read_bytes()
                entry.size, entry.mode = len(content), 0o644
                archive.addfile(entry, io.BytesIO(content))
    return len(runs)


def _copied(run: Run, folder: Path) -> dict[str, Path]:
    """The run's files as the archive has them, by their names in it."""
    own = folder / run.name
    own.mkdir(parents=True)
    for name in BESIDE:
        source = run.path / name
        if name == "validation.npz" and run.scores is not None:
            np.savez(own / name, **thinned_sums(run.scores))  # type: ignore[arg-type]
        elif name == "metrics.jsonl":
            (own / name).write_text("".join(json.dumps(line) + "\n" for line in thinned_metrics(run.metrics)))
        elif name != "speed.jsonl" and source.exists():  # how fast each step was: the summary has the median
            shutil.copyfile(source, own / name)
    if (run.path / LIFETIMES).exists():
        with np.load(run.path / LIFETIMES) as arrays:
            np.savez(own / LIFETIMES, **arrays)  # as they are, for the archive to compress
    Summary.read(run.path).write(own)
    if (run.path / _EVALUATION).is_dir():
        shutil.copytree(run.path / _EVALUATION, own / _EVALUATION, ignore=shutil.ignore_patterns("*.lock", "*.npz"))
    files = [path for path in own.rglob("*") if path.is_file()]
    assert own / SUMMARY in files
    return {str(path.relative_to(folder)): path for path in files}


@contextmanager
def unpacked(roots: Sequence[Path]) -> Iterator[list[Path]]:
    """``roots``, in place of each archive among them a folder with its runs, which the context's end removes.

    Raises:
        UserError: an archive cannot be read.
    """
    with ExitStack() as stack:
        folders = []
        for root in roots:
            if not root.name.endswith(SUFFIX):
                folders.append(root)
                continue
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / root.name.removesuffix(SUFFIX)
            try:
                with tarfile.open(root) as archive:
                    archive.extractall(folder, filter="data")
            except (OSError, tarfile.TarError, lzma.LZMAError, EOFError) as error:
                reason = getattr(error, "strerror", None) or error
                raise UserError(f"runs={root} cannot be unpacked ({reason}); name an archive of runs.") from None
            folders.append(folder)
        yield folders
