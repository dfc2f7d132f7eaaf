"""lm-eval's own tasks by their names: what a name stands for, its data from the hub, and what to do without one."""

import os
import random
import warnings
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import huggingface_hub
import lm_eval.tasks
import numpy as np
from lm_eval.api.task import Task
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager

from dma_lab.data.tokenizer import save_for_transformers
from dma_lab.evaluation.benchmarks import Benchmark, Mean
from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.messages import UserError, warn_once

_TIMEOUT_SECONDS = 10.0
# Reading the index of all of lm-eval's tasks takes half a minute; these folders hold what conf/suite/paper.yaml names.
_FOLDERS = ["arc", "hellaswag", "lambada", "longbench", "mmlu/default", "openbookqa", "piqa", "ruler", "triviaqa"]
_FOLDERS += ["winogrande"]


class HubTasks:
    """lm-eval's tasks by their ``names``.

    Args:
        num_fewshot: solved examples before each question; as many as each task asks for where it is None.
        ruler_lengths: tokens of RULER's questions, which may be longer than ``max_length``.
        max_length: tokens that the model is given at most.

    Raises:
        UserError: lm-eval has no task of a name.
    """

    def __init__(
        self,
        names: Sequence[str],
        run: TrainedRun,
        *,
        num_fewshot: int | None,
        ruler_lengths: Sequence[int],
        max_length: int,
    ) -> None:
        self._names, self._num_fewshot, self._max_length = names, num_fewshot, max_length
        self._ruler_lengths = list(ruler_lengths)
        root = Path(lm_eval.tasks.__file__).parent
        # RULER makes its text by the model's tokenizer, which it asks transformers for.
        self._tokenizer = TemporaryDirectory(prefix="dma_lab-tokenizer-")
        save_for_transformers(run.data.tokenizer_file, Path(self._tokenizer.name), max(ruler_lengths))
        metadata: dict[str, Any] = {"tokenizer": self._tokenizer.name, "max_seq_lengths": self._ruler_lengths}
        self._manager = TaskManager(
            include_defaults=False, include_path=[root / folder for folder in _FOLDERS], metadata=metadata
        )
        if not set(names) <= self._manager.task_index.keys():
            warn_once("reading the index of all of lm-eval's tasks, which takes half a minute.")
            self._manager = TaskManager(metadata=metadata)
        for name in names:
            if name not in self._manager.task_index:
                near = get_close_matches(name, self._manager.all_tasks, n=3)
                raise UserError(
                    f"suite.tasks holds {name}, and lm-eval has no task of that name"
                    f"{': did you mean ' + ' or '.join(near) if near else '; `lm-eval ls tasks` lists them'}."
                )
        self._loaded: dict[str, Task] = {}

    def benchmarks(self) -> list[Benchmark]:
        """Every single task, once."""
        names = dict.fromkeys(leaf for name in self._names for leaf in self._leaves(name))
        return [self._benchmark(name) for name in names]

    def means(self) -> list[Mean]:
        """Every name that stands for several tasks."""
        index = self._manager.task_index
        means = []
        for name in self._names:
            if (members := list(dict.fromkeys(self._leaves(name)))) != [name]:
                how: Any = (index[name].cfg or {}).get("aggregate_metric_list") or [{}]
                means.append(Mean(name, members, by_questions=bool(how[0].get("weight_by_size", True))))
        return means

    def check_reachable(self, benchmarks: Sequence[Benchmark]) -> None:
        """Raise UserError naming those of ``benchmarks`` whose data can neither be fetched nor lies here already."""
        reason = _why_unreachable()
        if reason is None:
            return
        # Else every data set is asked for six times, half a minute each.
        huggingface_hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        missing = [benchmark.name for benchmark in benchmarks if not self._lies_here(benchmark.name)]
        if missing:
            names = [name for name in self._names if any(leaf in missing for leaf in dict.fromkeys(self._leaves(name)))]
            raise UserError(
                f"suite.tasks={','.join(names)} needs the Hugging Face hub, which cannot be reached ({reason}), and "
                "the data is not in its cache here: give the command where there is a network, name other tasks in "
                "suite.tasks, or take suite=local with files of your own."
            )

    def _leaves(self, name: str) -> Iterator[str]:
        entry = self._manager.task_index[name]
        if entry.kind.name == "TAG":
            members: Any = sorted(entry.tags)
        elif entry.kind.name == "GROUP":
            members = [member if isinstance(member, str) else member["task"] for member in (entry.cfg or {})["task"]]
        else:
            yield name
            return
        for member in members:
            yield from self._leaves(member)

    def _benchmark(self, name: str) -> Benchmark:
        config: dict[str, Any] = self._manager.task_index[name].cfg or {}
        identity = {"version": (config.get("metadata") or {}).get("version"), "num_fewshot": self._num_fewshot}
        max_length = self._max_length
        if self._makes_its_text(name):
            identity["lengths"] = self._ruler_lengths
            max_length = max(max_length, *self._ruler_lengths)
        return Benchmark(name, identity, max_length, partial(self._load, name))

    def _makes_its_text(self, name: str) -> bool:
        """It is one of RULER's: as long as it is told to."""
        return "custom_dataset" in (self._manager.task_index[name].cfg or {})

    def _load(self, name: str) -> Task:
        if name not in self._loaded:
            # lm-eval's own seeds, set anew for each task: what one draws does not depend on those before it.
            random.seed(DEFAULT_RANDOM_SEED)
            np.random.seed(DEFAULT_OTHER_SEED)  # noqa: NPY002  it is the one that tasks draw from
            try:
                with warnings.catch_warnings(action="ignore"):  # of packages that tasks import
                    task = self._manager.load([name])["tasks"][name]
            except ImportError as error:
                raise UserError(
                    f"suite.tasks={name} needs a package that is not here ({_first_line(error)}): pip install -e "
                    "'.[eval]'."
                ) from error
            except Exception as error:  # of datasets, the hub's client, the network or the task: no common ancestor
                raise UserError(
                    f"suite.tasks={name} cannot be loaded ({type(error).__name__}: {_first_line(error)}): give the "
                    "same command again, which goes on here, or name other tasks."
                ) from error
            if self._num_fewshot is not None and task.get_config("num_fewshot") != 0:
                task.set_config("num_fewshot", self._num_fewshot)
            elif task.get_config("num_fewshot") is None:
                task.set_config("num_fewshot", 0)
            task.set_fewshot_seed(DEFAULT_OTHER_SEED)
            self._loaded[name] = task
        return self._loaded[name]

    def _lies_here(self, name: str) -> bool:
        if self._makes_its_text(name):
            return False  # it fetches what it hides things in by other ways, and goes on with nothing
        try:
            self._load(name)
        except UserError:
            return False
        return True


def _why_unreachable() -> str | None:
    if os.environ.get("HF_HUB_OFFLINE"):
        return "HF_HUB_OFFLINE is set"
    try:
        huggingface_hub.utils.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_TIMEOUT_SECONDS)
    except Exception as error:  # of the hub's client or the network
        return f"{huggingface_hub.constants.ENDPOINT}: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
