"""A config's ``attention`` node, read once: the name of a backend and its options, each of the type it declares."""

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from dma_lab.attention.base import AttentionBackend, AttentionOptions, AttentionShape
from dma_lab.attention.controls import label
from dma_lab.attention.plugins import backend_names, find_backend
from dma_lab.messages import UserError, warn_once
from dma_lab.plugins import package_of
from dma_lab.settings import shown


@dataclass(frozen=True)
class AttentionConfig:
    """Which attention a model has."""

    name: str
    """One that ``find_backend`` knows."""
    options: AttentionOptions
    """Of the backend's own kind."""
    package: str | None = None
    """The other package that the backend is of, and its version: part of what a run is."""

    @classmethod
    def of(cls, name: str, options: Mapping[str, Any]) -> "AttentionConfig":
        """The backend ``name`` with its defaults and ``options``.

        Raises:
            UserError: there is no such backend or option, or an option is of another type than the backend declares.
        """
        known = _checks(name)
        for option, value in options.items():
            if option not in known:
                raise UserError(
                    f"attention.{shown(option)} is no option of attention={name}; it has: {', '.join(known)}."
                )
            try:
                known[option].validate_python(value, strict=True)
            except ValidationError as error:
                said = error.errors()[0]["msg"]
                raise UserError(f"attention.{option}={shown(value)}: {said[0].lower()}{said[1:]}.") from error
        return cls(name, find_backend(name).Options(**options), package_of(name))

    @classmethod
    def read(cls, node: Any) -> "AttentionConfig":
        """``name`` and options side by side, as a config file has them.

        Raises:
            UserError: as ``of`` does, or the node is of a package, or a version of it, that is not here.
        """
        if not isinstance(node, Mapping) or not isinstance(node.get("name"), str):
            name = node.get("name") if isinstance(node, Mapping) else node
            raise UserError(f"attention.name={shown(name)} is no name; choose a backend, as in attention=dma.")
        name, package = node["name"], node.get("package")
        if package is not None and package != (there := package_of(name)):
            raise UserError(
                f"attention={shown(name)} is of {shown(package)} here, and "
                f"{f'{there} is what is' if there else 'that package is not'} installed: install that version of it."
            )
        return cls.of(name, {option: value for option, value in node.items() if option not in ("name", "package")})

    def written(self) -> dict[str, Any]:
        """What ``read`` reads, every option there."""
        package = {} if self.package is None else {"package": self.package}
        return {"name": self.name, **package, **asdict(self.options)}

    def defining(self) -> dict[str, Any]:
        """The same without later options at their defaults: with them, earlier runs would no longer be themselves."""
        later = later_options(self.name)
        return {key: value for key, value in self.written().items() if key not in later or value != later[key]}

    @property
    def label(self) -> str:
        """What it is called: the backend's name or, where an option makes it one, that of a control."""
        return label(self.written())

    def of_layer(self, layer: int, n_layers: int) -> "AttentionConfig":
        """What layer ``layer`` of ``n_layers``, from 0, attends with.

        It is this, except where every ``full_every``-th layer is full: that is MHA with the options that both have, as
        in Gemma 2 (arXiv 2408.00118). Of a model with fewer layers than that the last is.

        Raises:
            UserError: the model's only layer would be full.
        """
        every = getattr(self.options, "full_every", None)
        if every is None:
            return self
        if n_layers < 2:
            raise UserError(
                f"attention.full_every={every} needs two layers or more, and model.n_layers={n_layers}; add one."
            )
        if every > n_layers:
            warn_once(
                f"attention.full_every={every} and the model has {n_layers} layers: the last of them is full, and one "
                f"layer in {n_layers} sees every key."
            )
        if (layer + 1) % min(every, n_layers):
            return self
        options = asdict(self.options)
        return AttentionConfig.of("mha", {name: options[name] for name in attention_options("mha") if name in options})

    def build(self, shape: AttentionShape) -> AttentionBackend:
        """Raises UserError when the backend cannot do this shape."""
        return find_backend(self.name)(shape, self.options)


def attention_options(name: str) -> dict[str, Any]:
    """Options that the backend ``name`` takes, and their types. Raises UserError as ``find_backend`` does."""
    options = find_backend(name).Options
    kinds = get_type_hints(options, include_extras=True)  # also where a package writes annotations as text
    return {option.name: kinds[option.name] for option in fields(options)}


def later_options(name: str) -> dict[str, Any]:
    """Options of the backend ``name`` that its first runs did not have, and their defaults, which do what those did."""
    return _marked(name, "later")


def tunable_options(name: str) -> dict[str, Any]:
    """Options of the backend ``name`` that tuning may choose values of, and their defaults."""
    return _marked(name, "tunable")


def _marked(name: str, mark: str) -> dict[str, Any]:
    """Options whose metadata has ``mark``; none of a backend that is not installed here."""
    if name not in backend_names():
        return {}
    options = fields(find_backend(name).Options)
    return {option.name: option.default for option in options if option.metadata.get(mark)}


@functools.cache
def _checks(name: str) -> dict[str, TypeAdapter[Any]]:
    return {option: TypeAdapter(kind) for option, kind in attention_options(name).items()}
