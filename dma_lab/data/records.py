"""The text of a record (a JSON object, a table's row): one field, one within another, or several joined."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from dma_lab.messages import UserError

JOINT = "\n\n"
"""Between the texts of several fields."""
_MOST_SHOWN = 20


def field_text(row: object, fields: Sequence[str], where: str) -> str | None:
    """The text of a record's ``fields``, those that are neither null nor empty, joined; None if all of them are null.

    Args:
        fields: a key each, or keys within one another with dots between (``meta.text``).

    Raises:
        UserError: at ``where`` there is no such field, or none that holds text.
    """
    if not isinstance(row, dict):
        raise UserError(f"{where} is a {type(row).__name__}, not an object with the key {_setting(fields)}.")
    texts = [text for field in fields if (text := _text(row, field, fields, where)) is not None]
    return JOINT.join(filter(None, texts)) if texts else None


def no_field(field: str, fields: Sequence[str], known: Iterable[str], where: str) -> UserError:
    """What is said where a record, or a table, lacks ``field`` and has the ``known`` ones."""
    names = list(known)
    by_last = {name.rpartition(".")[2]: name for name in names} | {name: name for name in names}
    near = [by_last[name] for name in difflib.get_close_matches(field, by_last, n=1)]
    more = f", … ({len(names):,} in all)" if len(names) > _MOST_SHOWN else ""
    has = f"it has: {', '.join(names[:_MOST_SHOWN])}{more}" if names else "it is empty"
    hint = f" (did you mean {near[0]}?)" if near else ""
    also = f" of {_setting(fields)}" if len(fields) > 1 else ""
    return UserError(f"{where} has no data.text_field={field}{also}; {has}{hint}.")


def names_within(row: dict[Any, Any], prefix: str = "") -> list[str]:
    """The fields of a record, those of records in it with dots."""
    names = []
    for key, value in row.items():
        names += names_within(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [f"{prefix}{key}"]
    return names


def _text(row: dict[Any, Any], field: str, fields: Sequence[str], where: str) -> str | None:
    value: Any = row
    if field in row:
        value = row[field]
    else:
        for key in field.split("."):
            if value is None:  # a null record has null fields
                return None
            if not isinstance(value, dict) or key not in value:
                raise no_field(field, fields, names_within(row), where)
            value = value[key]
    if value is not None and not isinstance(value, str):
        kind = type(value).__name__
        article = "an" if kind == "int" else "a"
        inner = f"; within it are {', '.join(names_within(value, f'{field}.'))}" if isinstance(value, dict) else ""
        raise UserError(f"{where}: data.text_field={field} holds {article} {kind}, not text{inner}.")
    return value


def _setting(fields: Sequence[str]) -> str:
    return f"data.text_field={fields[0] if len(fields) == 1 else '[' + ','.join(fields) + ']'}"
