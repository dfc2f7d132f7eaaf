"""``dma-lab COMMAND …``, also ``python -m dma_lab COMMAND …`` (as torchrun starts it): the commands by name."""

import importlib
import sys

COMMANDS = {
    "train": "train a run, or with -m a sweep: dma-lab train experiment=chinchilla_dma",
    "plan": "what that would be and cost, before it is spent",
    "evaluate": "what a trained run can do: dma-lab evaluate suite=needle checkpoint=outputs/RUN",
    "report": "runs as tables, figures and one page: dma-lab report runs=outputs",
    "export": "a run as a folder for transformers: dma-lab export checkpoint=outputs/RUN to=FOLDER",
    "bench": "measure kernels, decoding and training: dma-lab bench kernels",
}
_USAGE = """\
usage: dma-lab COMMAND [setting=value …] [-m] [--help] [--cfg job] [--config-dir FOLDER]

{commands}

dma-lab COMMAND --help lists its settings; --config-dir adds a folder of one's own to conf/."""


def main() -> None:
    """The console script."""
    given = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if given in ("-h", "--help"):
        print(_USAGE.format(commands="\n".join(f"  {name:<10}{about}" for name, about in COMMANDS.items())))
        return
    if given not in COMMANDS:
        print(f"error: {given!r} is no command; choose one of: {', '.join(COMMANDS)}.", file=sys.stderr)
        raise SystemExit(2)
    sys.argv[:2] = [f"{sys.argv[0]} {given}"]
    importlib.import_module(f"dma_lab.commands.{given}").run()


if __name__ == "__main__":
    main()
