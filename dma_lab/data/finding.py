"""Which files a setting names: files, folders and globs, every real file once, and what is passed over counted."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from glob import has_magic
from pathlib import Path

from dma_lab.data.formats import FORMATS, format_of
from dma_lab.messages import UserError

HIDDEN = "hidden"
NO_FILE = "broken link or special file"
OUTSIDE = "not of data.pattern"
NOTES = "of a saved data set, not its rows"

_DESCRIPTION = "state.json"
"""Beside the rows of a folder that ``datasets.save_to_disk`` wrote; it names their files."""
_DESCRIPTIONS = {_DESCRIPTION, "dataset_info.json", "dataset_dict.json"}


def user_path(value: str | Path, setting: str) -> Path:
    """The path that a user wrote. Raises UserError if it begins with the home of a user there is not."""
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise UserError(f"{setting}={value} names no user's home here: give the path itself.") from error


def find_files(patterns: str | list[str], setting: str, pattern: str | None = None) -> tuple[list[Path], Counter[str]]:
    """The files that ``patterns`` name: files, folders (all in known formats below them) and globs, each sorted.

    Links are followed, each folder is entered once, and hidden entries are passed over unless named.

    Args:
        pattern: a glob; only files below the folders that match are taken, in a known format or not.

    Returns:
        The files; and why how many others in the folders are left.

    Raises:
        UserError: nothing lies there, a named file is none or in no known format, or most files of a folder are.
        OSError: a folder cannot be listed.
    """
    found: dict[tuple[int, int], Path] = {}
    left: Counter[str] = Counter()
    for given in [patterns] if isinstance(patterns, str) else patterns:
        if re.match(r"[a-z][a-z0-9+.-]+://", given):
            raise UserError(
                f"{setting}={given} is a URL: fetch it and give the file, or give a hub data set's data.hub_name."
            )
        path = user_path(given, setting)
        if path.is_dir():
            files, others = _below(path)
            if pattern is None:
                _judge(files, others, f"{setting}={given}")
            else:
                files, others = _matching(path, pattern, files, others)
            left += others
        else:
            files = (
                [path] if path.exists() else sorted(_matches(Path(path.anchor), path.relative_to(path.anchor).parts))
            )
        if not files:
            raise UserError(_nothing(f"{setting}={given}", path, pattern))
        for file in files:
            if not file.is_file():
                raise UserError(
                    f"{setting}: {file} is no regular file but a pipe, a device or a broken link: give one."
                )
            if pattern is None and format_of(file) is None:
                raise UserError(
                    f"{setting}: {file} is in no known format; there are {FORMATS}; data.pattern=*{file.suffix} reads "
                    "it as plain text."
                )
            state = file.stat()
            found.setdefault((state.st_dev, state.st_ino), file)
    return list(found.values()), left


def by_kind(kinds: Iterable[str]) -> str:
    """``3 .txt, 1 .md``: the most frequent first."""
    return ", ".join(f"{count:,} {kind}" for kind, count in Counter(kinds).most_common())


def _nothing(given: str, path: Path, pattern: str | None) -> str:
    if pattern is not None and path.is_dir():
        return f"data.pattern={pattern} matches no file below {given}: give a glob such as **/*.txt."
    if path.is_dir():
        return f"{given} leads to no file: it is empty, or holds none of {FORMATS}; data.pattern takes other texts."
    looks_like_a_hub_name = re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not path.suffix
    hub = "; a data set of the hub is data.source=hub data.hub_name=owner/name" if looks_like_a_hub_name else ""
    return f"{given} leads to no file: give a file, a folder or a glob of {FORMATS}{hub}."


def _matching(folder: Path, pattern: str, files: list[Path], others: Counter[str]) -> tuple[list[Path], Counter[str]]:
    """The files below ``folder`` that ``pattern`` matches; and how many it does not, or nobody asked for."""
    parts = Path(pattern).parts
    if Path(pattern).is_absolute() or ".." in parts:
        raise UserError(f"data.pattern={pattern} must stay below data.path: give a glob such as **/*.rst.")
    matching = sorted({file for file in _matches(folder, parts) if file.is_file()})
    every = len(files) + sum(count for why, count in others.items() if why not in (HIDDEN, NO_FILE))
    left = Counter({why: count for why, count in others.items() if why in (HIDDEN, NO_FILE)})
    left[OUTSIDE] = max(0, every - len(matching))
    return matching, +left


def _below(folder: Path) -> tuple[list[Path], Counter[str]]:
    """The files in known formats below ``folder``; and why how many others are left."""
    files, others = [], Counter[str]()
    for place in _folders(folder, set()):
        entries = _entries(place)
        others[HIDDEN] += len(list(place.iterdir())) - len(entries)
        rows = _rows_of_saved(place)
        for entry in entries:
            if entry.is_dir():
                continue
            if not entry.is_file():
                others[NO_FILE] += 1
            elif entry.name in _DESCRIPTIONS or (rows is not None and entry.name not in rows):
                others[NOTES] += 1
            elif format_of(entry):
                files.append(entry)
            else:
                others[f"{entry.suffix.lower() or 'without suffix'}: no known format"] += 1
    return sorted(files), +others


def _rows_of_saved(folder: Path) -> set[str] | None:
    """The files of rows of a folder that ``datasets.save_to_disk`` wrote; None of another folder."""
    try:
        description = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
        return {str(file["filename"]) for file in description["_data_files"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _judge(files: list[Path], others: Counter[str], given: str) -> None:
    unknown = Counter({why: count for why, count in others.items() if why not in (HIDDEN, NOTES)})
    if unknown.total() > len(files) and (files or not unknown.keys() <= {NO_FILE}):
        taken = by_kind(format_of(file) or "" for file in files) or "none"
        kinds = by_kind(why.partition(":")[0] for why in unknown.elements())
        (likely, _), *_ = Counter(why.partition(":")[0] for why in unknown.elements()).most_common()
        raise UserError(
            f"{given} holds mostly files in no known format ({kinds}) beside those in one ({taken}): say which are "
            f"meant, as data.pattern=**/*{likely if likely.startswith('.') else '.txt'} (of any kind that is text), or "
            f"convert the others; the formats are {FORMATS}."
        )


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
