"""Which files a setting names: files, folders and globs, every real file once, and what is passed over said."""

from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from dma_lab.data.readers import FORMATS, format_of
from dma_lab.messages import UserError, warn_once


def user_path(value: str | Path, setting: str) -> Path:
    """The path that a user wrote. Raises UserError if it begins with the home of a user there is not."""
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise UserError(f"{setting}={value} names no user's home here: give the path itself.") from error


def find_files(patterns: str | list[str], setting: str) -> tuple[list[Path], Counter[str]]:
    """The files that ``patterns`` name: files, folders (all in known formats below them) and globs, each sorted.

    Links are followed, each folder is entered once, and hidden entries are passed over unless named.

    Returns:
        The files; and by kind how many others the folders hold.

    Raises:
        UserError: nothing lies there, a named file is none or in no known format, or most files of a folder are.
        OSError: a folder cannot be listed.
    """
    found: dict[tuple[int, int], Path] = {}
    left: Counter[str] = Counter()
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = user_path(pattern, setting)
        if path.is_dir():
            files, others = _below(path)
            _judge(files, others, f"{setting}={pattern}")
            left += others
        else:
            files = (
                [path] if path.exists() else sorted(_matches(Path(path.anchor), path.relative_to(path.anchor).parts))
            )
        if not files:
            raise UserError(
                f"{setting}={pattern} leads to no file: give a file, a folder or a glob of {', '.join(FORMATS)}."
            )
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"{setting}: {file} is no regular file but a pipe, a device or a broken link: give one."
                )
            if format_of(file) is None:
                raise UserError(f"{setting}: {file} is in no known format; there are {', '.join(FORMATS)}.")
            state = file.stat()
            found.setdefault((state.st_dev, state.st_ino), file)
    return list(found.values()), left


def by_kind(kinds: Iterable[str]) -> str:
    """``3 .txt, 1 .md``: the most frequent first."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(kinds).most_common())


def _below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The files in known formats below ``folder``, and how many others of which kind."""
    files, others = [], Counter[str]()
    for place in _folders(folder, set()):
        for entry in _entries(place):
            if entry.is_dir():
                continue
            if not entry.is_file():
                others["broken link or special file"] += 1
            elif format_of(entry):
                files.append(entry)
            else:
                others[entry.suffix.lower() or "without suffix"] += 1
    return sorted(files), others


def _judge(files: list[Path], others: Counter[str], given: str) -> None:
    if not others:
        return
    taken = by_kind(format_of(file) or "" for file in files) or "none"
    if others.total() > len(files):
        raise UserError(
            f"{given} holds mostly files in no known format ({by_kind(others.elements())}) beside those in one "
            f"({taken}): give a glob of those that are meant, as …/**/*.txt, or convert the others; the formats are "
            f"{', '.join(FORMATS)}."
        )
    warn_once(f"{given}: taken are {taken}; left, in no known format, {by_kind(others.elements())}.")


def _folders(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path]:
    """``folder`` and those below it, each real one once, so that links in a circle come to an end."""
    state = folder.stat()
    if (state.st_dev, state.st_ino) not in entered:
        entered.add((state.st_dev, state.st_ino))
        yield folder
        for entry in _entries(folder):
            if entry.is_dir():
                yield from _folders(entry, entered)


def _matches(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    """What is no folder and matches the glob ``parts`` below ``folder``; ``**`` stands for any number of folders."""
    if not parts or not folder.is_dir():
        return
    name, *below = parts
    rest = tuple(below)
    if name == "**":
        for place in _folders(folder, set()):
            yield from _matches(place, rest or ("*",))
        return
    if has_magic(name):
        hidden = name.startswith(".")
        entries = [entry for entry in _entries(folder, hidden=hidden) if fnmatchcase(entry.name, name)]
    else:
        entries = [folder / name]
    for entry in entries:
        if rest:
            yield from _matches(entry, rest)
        elif not entry.is_dir() and (entry.exists() or entry.is_symlink()):
            yield entry


def _entries(folder: Path, *, hidden: bool = False) -> list[Path]:
    """Raises OSError where ``folder`` cannot be listed: what it holds would be missing without a word."""
    return sorted(entry for entry in folder.iterdir() if hidden or not entry.name.startswith("."))
