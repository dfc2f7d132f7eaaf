"""Writes the sweep files of wandb, of the same points as those of conf/sweep/: ``python sweeps/write.py``."""

import re
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).resolve().parent.parent
_PAGE = """\
{about}# wandb sweep sweeps/{name}.yaml, then on every machine: wandb agent SWEEP. Without a server, and what this is
# written from (python sweeps/write.py): conf/sweep/{name}.yaml.
project: dma_lab
program: train.py
method: grid
metric: {{name: val_loss, goal: minimize}}
command: ["${{env}}", "${{interpreter}}", "${{program}}", "logger=wandb", "${{args_no_hyphens}}"]
parameters:
  experiment: {{value: chinchilla}}
"""


def sweep_file(name: str) -> str:
    """The text of sweeps/NAME.yaml, from that of conf/sweep/NAME.yaml."""
    text = (ROOT / "conf" / "sweep" / f"{name}.yaml").read_text(encoding="utf-8")
    about = re.findall(r"^# (?!@package).*\n", text.partition("# python train.py")[0], flags=re.MULTILINE)
    parameters = re.findall(r"^ {6}(\S+): '?(.*?)'?(  #.*)?$", text, flags=re.MULTILINE)
    lines = [f"  {setting}: {_values(setting, given)}{comment}\n" for setting, given, comment in parameters]
    return _PAGE.format(about="".join(about), name=name) + "".join(lines)


def _values(setting: str, given: str) -> str:
    """In wandb's words what Hydra takes for one value or for a choice of several."""
    choice = OverridesParser.create().parse_override(f"{setting}={given}").is_choice_sweep()
    return f"{{values: [{given}]}}" if choice else f"{{value: {given}}}"


if __name__ == "__main__":
    for twin in sorted((ROOT / "conf" / "sweep").glob("*.yaml")):
        (ROOT / "sweeps" / twin.name).write_text(sweep_file(twin.stem), encoding="utf-8")
