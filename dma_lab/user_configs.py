"""What a user's own packages and folder (``--config-dir``) add to the configs in conf/.

Hydra takes the first of several configs of one name without a word, so a second one is refused here.
"""

from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore

from dma_lab.messages import UserError, warn_once
from dma_lab.plugins import package_of, plugins
from dma_lab.settings import CONFIG_DIR


def config_dirs(arguments: Sequence[str]) -> list[Path]:
    """conf/, and the folder that a command line adds to it."""
    own = get_args_parser().parse_known_args(list(arguments))[0].config_dir
    return [CONFIG_DIR, *([] if own is None else [Path(own)])]


def add_user_configs(arguments: Sequence[str]) -> None:
    """Make backends of other packages choices of ``attention``, with the defaults of their options.

    Raises:
        UserError: a name is taken.
    """
    for name in plugins():
        if (CONFIG_DIR / "attention" / f"{name}.yaml").exists():
            raise UserError(
                f"attention={name} is dma_lab's own and also one of {package_of(name)}: give it another name there, or "
                "uninstall that package."
            )
        from dma_lab.attention import AttentionConfig  # PyTorch, for which a machine without plugins need not wait

        node: dict[str, object] = {"name": name}
        try:
            node |= AttentionConfig.of(name, {}).written()
        except UserError as error:  # said again where it is chosen
            warn_once(str(error))
        node.pop("package", None)
        if "window" in node and node["window"] is None:  # as in conf/attention/: what one setting gives to all of them
            node["window"] = "${window}"
        ConfigStore.instance().store(name=name, node=node, group="attention", provider=package_of(name))
    for folder in config_dirs(arguments)[1:]:
        for file in sorted(folder.rglob("*.yaml")):
            if (CONFIG_DIR / file.relative_to(folder)).exists():
                raise UserError(
                    f"{file} would never be read, for conf/{file.relative_to(folder)} goes by the same name: give it "
                    "another one."
                )
