"""A run's attention by its options, and which of them are settings that tuning may choose."""

from typing import Any

import yaml
from omegaconf import OmegaConf

from dma_lab.attention import tunable_options
from dma_lab.report.collect import Run


def attention_of(run: Run) -> dict[str, Any]:
    """All its options."""
    options: Any = OmegaConf.to_container(run.config.attention, resolve=True)
    return {str(name): value for name, value in options.items()}


def settings_of(run: Run) -> tuple[str, dict[str, Any]]:
    """The attention whose settings are replaced (YAML), and those that are not its defaults."""
    attention = attention_of(run)
    tunable = tunable_options(str(attention["name"]))
    own = {name: attention[name] for name, value in tunable.items() if attention.get(name, value) != value}
    return yaml.safe_dump(attention | {name: tunable[name] for name in own}), own
