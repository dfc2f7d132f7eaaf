"""How every entry point reads its settings: once, from the composed config to a frozen dataclass, or one sentence.

The types here say what a setting may be at all, so that nothing behind it meets a number that no machine holds,
text that no file system takes, or an infinity.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from dma_lab.messages import UserError

Settings = TypeVar("Settings")

CONFIG_DIR = Path(__file__).resolve().parent / "conf"
"""conf/, as a wheel has it too; in a checkout it is a link to the one at the top."""
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
LARGEST_COUNT = 2**31 - 1
_OTHERS = ("unexpected_keyword_argument", "extra_forbidden")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("printable", "it holds characters that cannot be printed; leave them out")
    return text


Count = Annotated[int, Field(gt=0, le=LARGEST_COUNT)]
CountOrNone = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]
"""A count that may be 0."""
Tokens = Annotated[int, Field(gt=0, le=10**18)]
Width = Annotated[int, Field(gt=0, le=2**24)]
"""Of a layer, a vocabulary, …: the product of two of them and the bytes of a number still fit 64 bits."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_printable)]
"""Also a path: any that a shell can show."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=-]{0,63}$")]
"""Part of a run directory's name."""


def read_settings(kind: type[Settings], config: DictConfig) -> Settings:
    """The settings of a composed config as a ``kind``, a dataclass whose ``__pydantic_config__`` is ``STRICT``.

    Raises:
        UserError: naming the first setting whose type or value cannot be.
    """
    values = _plain(config)
    for setting, text in _texts(values, ()):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{setting} holds text that is not UTF-8 (half a surrogate pair): repair it.")
    try:
        # As JSON, whose objects strict validation takes for dataclasses while it still takes no "3" for a 3.
        return TypeAdapter(kind).validate_json(json.dumps(values))
    except ValidationError as error:
        raise UserError(_sentence(error.errors()[0], values)) from error


def shown(value: object, most: int = 80) -> str:
    """``value`` as a sentence can hold it: on one line, printable, of at most so many characters."""
    text = str(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _plain(config: DictConfig) -> Any:
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = shown(error.full_key)
        choices = ", ".join(sorted(file.stem for file in (CONFIG_DIR / key).glob("*.yaml")))
        which = f"choose one of: {choices}" if choices else "see conf/ for what it is"
        raise UserError(f"{key} must be given, as {key}=…; {which}.") from error
    except OmegaConfBaseException as error:
        reason = shown(str(error).partition("\n")[0], most=200)
        key = shown(error.full_key or "a setting")
        raise UserError(f"{key}={_as_written(config, key)} cannot be worked out: {reason}.") from error
    except RecursionError as error:
        raise UserError("a setting refers to itself or nests too deep; give a plain value.") from error


def _as_written(config: DictConfig, key: str) -> str:
    """The value of ``key`` before interpolations are resolved."""
    node: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return shown(node)


def _texts(node: Any, path: tuple[object, ...]) -> Iterator[tuple[str, str]]:
    """Every text below ``node``, keys too, and the setting that holds it."""
    if isinstance(node, str):
        yield shown(".".join(map(str, path))), node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        if isinstance(key, str):
            yield shown(".".join(map(str, path)) or "a setting"), key
        yield from _texts(value, (*path, key))


def _sentence(error: Any, values: Any) -> str:
    path = _path(error, values)
    setting, message = shown(path), error["msg"].rstrip(".")
    if error["type"] in _OTHERS:
        return f"{setting} is no setting here; see conf/ for those there are."
    if error["type"] == "missing":
        return f"{setting} is missing; give it, as in conf/{setting.rpartition('.')[0]}."
    if error["type"] == "string_pattern_mismatch":
        message = "it names the run's directory; give at most 64 letters, digits and . _ + = -, a letter or digit first"
    return f"{setting}={shown(error['input'])}: {message[0].lower()}{message[1:]}."


def _path(error: Any, values: Any) -> str:
    """The setting that an error is about: of its location the part that leads through ``values``.

    The rest names members of a union, which says nothing to a user.
    """
    path, node = [], values
    for number, part in enumerate(error["loc"], 1):
        if (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int)):
            node = node[part]
            path.append(str(part))
        elif number == len(error["loc"]) and error["type"] == "missing":
            path.append(str(part))
    return ".".join(path) or "the config"
