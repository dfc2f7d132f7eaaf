"""What the entry points share: Hydra composes the config, and a mistake of the user's is one sentence and status 2."""

import difflib
import functools
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dma_lab.messages import RunHeldError, UserError
from dma_lab.plugins import plugins
from dma_lab.settings import CONFIG_DIR, shown
from dma_lab.train.signals import heed_signals, signals_prevail
from dma_lab.train.sweep import SweepCallback
from dma_lab.train.sweep_points import FailedPoint, HeldPoint
from dma_lab.user_configs import add_user_configs, config_dirs

_READABLE = 300  # characters
_COMPOSING = ("hydra/_internal/config_loader_impl", "hydra/core/override_parser")


def run_entry_point(
    main: Callable[[DictConfig], Any],
    config_name: str,
    show_runs: Callable[[Sequence[Path]], None] = lambda directories: None,
) -> None:
    """Run ``main`` on the config that the command line composes from ``conf/``; a UserError gives its exit status.

    In a multirun a point that fails does not stop the others: it returns a ``FailedPoint``. One that another process
    trains is left to that: it returns a ``HeldPoint``. At the end ``show_runs`` gets the directories of finished runs.
    SIGTERM, SIGUSR1 and SIGUSR2 unwind as Ctrl-C does: status 128 + signal.
    """
    SweepCallback.show_runs = staticmethod(show_runs)
    heed_signals()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints errors and exits by itself, with status 1
    sys.argv[1:] = agents_arguments(sys.argv[1:])
    try:
        add_user_configs(sys.argv[1:])
    except UserError as error:
        _refuse(str(error))

    @functools.wraps(main)
    def guarded(config: DictConfig) -> Any:
        try:
            with signals_prevail():
                return main(config)
        except Exception as error:
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                return _outcome_of_point(error)
            if (sentence := _mishap(error)) is not None:
                _refuse(sentence, getattr(error, "exit_status", UserError.exit_status))
            raise

    try:
        with signals_prevail():
            hydra.main(config_path=str(CONFIG_DIR), config_name=config_name, **_of_its_version())(guarded)()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (HydraException, OmegaConfBaseException) as error:
        SweepCallback.forget_refused()
        _refuse(_unnamed_choice() or _one_sentence(error, config_name))
    except Exception as error:
        if not _is_of_composing(error):
            raise
        SweepCallback.forget_refused()
        _refuse(_unnamed_choice() or _one_sentence(error, config_name))
    finally:
        SweepCallback.report_stopped()


def _of_its_version() -> dict[str, str]:
    """What Hydra wants said: 1.3 whose defaults are meant, 1.4 what a config may have it call."""
    if "execution_whitelist" in inspect.signature(hydra.main).parameters:
        return {"execution_whitelist": f"{SweepCallback.__module__}.{SweepCallback.__qualname__}"}
    return {"version_base": "1.3"}


def _is_of_composing(error: Exception) -> bool:
    """Whether Hydra raised it over the command line: it composes with asserts and look-ups that one can make fail.

    Told by where it was raised, because points may run in other processes, whose end is no mistake of the user's.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return any(part in frame.filename for frame in frames for part in _COMPOSING)


def _outcome_of_point(error: Exception) -> FailedPoint | HeldPoint:
    """What a point's error comes to, said at once: the sweep's end may be days away."""
    point = " ".join(HydraConfig.get().overrides.task)
    if isinstance(error, RunHeldError):
        print(f"skipped: {point}: {error.path} is being trained by another process", file=sys.stderr, flush=True)
        return HeldPoint(str(error.path), list(error.finished))
    if (sentence := _mishap(error)) is not None:
        print(f"error: {point}: {sentence}", file=sys.stderr, flush=True)
        return FailedPoint(sentence, list(error.finished) if isinstance(error, UserError) else [])
    traceback.print_exc()
    return FailedPoint(_one_line(error))


def _mishap(error: Exception) -> str | None:
    """The sentence for what a user can fix; None for a bug of the program, which shows its traceback."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OmegaConfBaseException):
        return _one_sentence(error)
    if isinstance(error, OSError) and error.filename is not None:
        place = shown(error.filename, _READABLE)
        return f"{place} cannot be read or written ({error.strerror}); give a place that can be."
    return None


def _one_line(error: Exception) -> str:
    return _cut(f"{type(error).__name__}: {error}")


def _cut(text: str) -> str:
    """``text`` on one line, printable, of a length that can be read."""
    line = " ".join(text.split())
    line = line if line.isprintable() else repr(line)
    return line if len(line) <= _READABLE else f"{line[:_READABLE]}…"


def _refuse(sentence: str, exit_status: int = UserError.exit_status) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(exit_status)


def _one_sentence(error: Exception, config_name: str = "train") -> str:
    """Hydra's and OmegaConf's errors, said as a setting, its value and what would do."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text, reason = re.sub(r"^Error when parsing index: .*\n", "", str(error)), str(cause)  # Hydra 1.4 counts them
    if "maximum recursion depth" in reason:
        return "the command line makes no config (it nests too deep); see conf/ for the settings there are."
    if choice := re.search(r"Could not find '([^']+)/([^'/]*)'", text):
        group, value = choice.groups()
        options = re.findall(r"^\t([\w.-]+)$", text, flags=re.MULTILINE)  # those of installed launchers too
        more = "; pip install 'dma-lab[sweeps]' brings joblib and submitit" if group == "hydra/launcher" else ""
        return f"{group}={value} is not known; choose one of: {', '.join(options)}{more}."
    if key := re.search(r"An item is already at '([^']+)'", text):
        return f"+{key.group(1)} adds a setting that is there; leave out the +."
    if key := re.search(r"Could not (?:override|append to config|delete from config)[^']*'([^'=]+)'", text):
        return f"{key.group(1)} is no setting here{_which_are(key.group(1), config_name)}."
    if key := re.search(r"Key '([^']+)' is not in struct", reason):
        full_key = re.search(r"full_key: (\S+)", reason)
        return f"{full_key.group(1) if full_key else key.group(1)} is no setting here; see conf/ for those there are."
    if several := re.search(r"Ambiguous value for argument '(.*)'\n", text):
        setting, _, values = several.group(1).partition("=")
        return (
            f"{shown(several.group(1))} is several values: put -m before the settings to train one after the other, "
            f"or write {shown(f'{setting}=[{values}]')} for a list."
        )
    if missing := re.search(r"Missing mandatory value: (\S+)", reason):
        return f"{missing.group(1)} must be given, as {missing.group(1)}=…; see conf/ for what it is."
    if override := re.match(r"(?:Error parsing override '|Lexer\w+: )(.*?)'?(?:\n|$)", text):
        return f"{shown(override.group(1))} is no override; write setting=value, and quote a value that is not plain."
    return f"{_cut(reason.partition('See https://')[0]).rstrip('.')}."


def _unnamed_choice() -> str | None:
    """A group of conf/ that the command line gives something other than a name, which Hydra's errors leave out."""
    for argument in sys.argv[1:]:
        group = argument.lstrip("+~").partition("=")[0].partition("@")[0]
        if not group.strip("./") or "\0" in group or not (CONFIG_DIR / group).is_dir():
            continue
        try:
            override = OverridesParser.create().parse_override(argument)
        except Exception:  # said in Hydra's own words
            continue
        if override.is_sweep_override():  # so is a name among them that there is not
            continue
        chosen = override.value()
        if not isinstance(chosen, str) or group.startswith("."):
            files = {path.stem for folder in config_dirs(sys.argv[1:]) for path in (folder / group).glob("*.yaml")}
            options = files | (set(plugins()) if group == "attention" else set())
            return f"{shown(argument)} is not known; choose one of: {', '.join(sorted(options))}."
    return None


def _which_are(key: str, config_name: str) -> str:
    """Beside what may have been meant by ``key``, which the entry point's config does not have."""
    own, of_groups = _settings_of(config_name)
    if key in of_groups:
        group, _, name = key.rpartition(".")
        return f": of {group}=… these have it: {', '.join(_choices_with(group, name))}"
    known = own | of_groups
    elsewhere = [name for name in known if name.rpartition(".")[2] == key and name != key]
    if elsewhere:  # the trainer's context, say, which is what runs, before the rung's
        close = [min(elsewhere, key=lambda name: (not name.startswith("trainer."), name))]
    else:
        close = difflib.get_close_matches(key, sorted(known - {key}), n=1, cutoff=0.7)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return f"{meant}; see conf/ for those there are" if of_groups else f"{meant}; there are: {', '.join(sorted(own))}"


def _settings_of(config_name: str) -> tuple[set[str], set[str]]:
    """What a config has at its top, and, as ``group.name``, what the groups have that it chooses of."""
    own: set[str] = set()
    of_groups: set[str] = set()
    config = cast(DictConfig, OmegaConf.load(CONFIG_DIR / f"{config_name}.yaml"))
    for choice in config.get("defaults", []):
        if isinstance(choice, str):
            if choice != "_self_":
                above = _settings_of(choice)
                own, of_groups = own | above[0], of_groups | above[1]
            continue
        for group in (name for name in choice if not name.startswith("override ")):
            for folder in config_dirs(sys.argv[1:]):
                for path in (folder / group).rglob("*.yaml"):
                    within = [part for part in path.relative_to(folder).parent.parts if part != "base"]
                    of_groups |= {".".join((*within, name)) for name in _names_in(path)}
    return own | _names_in(CONFIG_DIR / f"{config_name}.yaml"), of_groups


def _choices_with(group: str, name: str) -> list[str]:
    """Choices of a group that have a setting, their own or that of another choice that they build on."""

    def has(path: Path) -> bool:
        above = re.findall(r"^defaults: \[([\w/]+)(?:@_here_)?\]", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return name in _names_in(path) or any(has(path.parent / f"{other}.yaml") for other in above)

    paths = [path for folder in config_dirs(sys.argv[1:]) for path in (folder / group).glob("*.yaml")]
    return sorted(path.stem for path in paths if has(path))


def _names_in(path: Path) -> set[str]:
    return set(re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), flags=re.MULTILINE)) - {"defaults", "hydra"}


def agents_arguments(arguments: Sequence[str]) -> list[str]:
    """A command line as Hydra takes it: an agent writes a sweep file's ``null`` as Python does, ``tokens=None``."""
    if "WANDB_SWEEP_ID" not in os.environ:
        return list(arguments)
    return [re.sub(r"(?<=[=\[{,:\s])None(?=[\]},\s]|$)", "null", argument) for argument in arguments]
