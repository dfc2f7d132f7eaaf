"""What a run was trained and scored under, by value: runs are held against each other by this, never by a name.

All of config.yaml counts, and of summary.json the data and the machine. What is listed here is the exception, so that a
setting added tomorrow is compared until somebody says why it need not be.

The git commit is no condition: most commits change nothing that a run computes, and a study may take weeks of them. The
report says where runs of several commits stand side by side.
"""

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dma_lab.run_summary import Summary
from dma_lab.train.hardware import MACHINE
from dma_lab.train.optim import schedule_phases
from dma_lab.train.settings import ScheduleSettings

WARMUP = "schedule.warmup"
"""Steps of warm-up, however the settings name them."""
_NOT_COMPARED = (
    "attention",  # what comparisons are about
    # Labels, what other settings take their defaults from, and the vocabulary, which is the data's.
    *("model.name", "model.context", "model.vocab_size"),
    # Ways to name the budget, the warm-up and the device: what they came to is compared.
    *("tokens", "tokens_per_parameter", "flops", "schedule.warmup_fraction", "schedule.warmup_steps"),
    *("trainer.device", "trainer.precision", "trainer.compile"),
    # Where the text came from: the fingerprint is that of the tokens themselves.
    *("data.path", "data.validation_path", "data.cache_dir", "data.allow_repeat", "data.tokenizer", "data.vocab_size"),
    *("data.encoding", "data.pattern"),  # which older runs lack
    # What cannot change a result.
    "init_from",  # a path: the digest of what lay there is compared
    *("output_dir", "logger", "trainer.log_every", "trainer.validate_every", "trainer.checkpoint_every"),
    "trainer.loader_workers",
    "trainer.num_nodes",  # which trainer.devices and the count of devices in `hardware` tell, of older runs too
)
INIT_FROM = "init_from_digest"
"""Of the weights that the run began with; None of one that began with chance."""
_FROM_SUMMARY = ("data_fingerprint", "tokens", *MACHINE, "earlier_machines")
TUNED = frozenset({"optimizer.learning_rate", WARMUP})
"""What may be searched for the best: of such runs one stands for the point that they share."""
SHAPED = frozenset({"trainer.context", "trainer.tokens_per_step"})
"""What a rung brings with it. Where it differs within one rung, it makes a backend's runs a variant of their own."""
OF_THE_MACHINE = frozenset(
    {
        *("trainer.micro_batch_sequences", "trainer.activation_checkpointing", "trainer.devices"),
        "trainer.strategy",
        *(*MACHINE, "earlier_machines"),
    }
)
"""What changes, or may change on a GPU, how sums are rounded."""
_OF_A_STUDY = frozenset({"tokens", "seed", *TUNED, *SHAPED, *OF_THE_MACHINE}) - {"precision"}

Conditions = dict[str, Any]
"""Dotted names to values that hash."""


def conditions_of(config: DictConfig, summary: Summary) -> Conditions:
    """Everything but the attention that decides what a run comes to.

    Raises:
        KeyError, TypeError: config.yaml lacks what every run has.
    """
    settings: Any = OmegaConf.to_container(config, resolve=True)
    found = {name: value for name, value in _flat("", settings) if not _is_left_out(name)}
    found.setdefault("trainer.activation_checkpointing", False)  # which the archived studies' runs could not ask for
    found[WARMUP] = schedule_phases(ScheduleSettings(**settings["schedule"]), summary.steps)[0]
    if settings["trainer"].get("devices") == settings["trainer"].get("num_nodes", 1) == 1:
        found.pop("trainer.strategy", None)  # of how several devices share a run
    if settings.get("tuned") is not None:
        # Rates of one file are each backend's own, as multiples of one recipe: in that they are equal, and equal to no
        # rate given by hand.
        recipe = summary.recipe_learning_rate
        found["optimizer.learning_rate"] = "tuned" if recipe is None else f"tuned from {recipe:g}"
    found[INIT_FROM] = summary.init_from_digest
    return found | {name: getattr(summary, name) for name in _FROM_SUMMARY}


def without(conditions: Conditions, names: frozenset[str] = frozenset()) -> frozenset[tuple[str, Any]]:
    """The conditions but for ``names``, to be compared and grouped by."""
    return frozenset((name, value) for name, value in conditions.items() if name not in names)


def of_the_model(conditions: Conditions) -> frozenset[tuple[str, Any]]:
    """The rung, by value: every shape but what matching makes of its feed-forward width."""
    return frozenset((name, value) for name, value in conditions.items() if name.startswith("model."))


def shared_by_a_study(conditions: Conditions) -> frozenset[tuple[str, Any]]:
    """What runs agree in that stand in one table and one law: all that a ladder of rungs, budgets and seeds, trained
    where there was room, does not vary.
    """
    return without(conditions, _OF_A_STUDY) - of_the_model(conditions)


def differing(ours: Conditions, theirs: Conditions) -> list[str]:
    """Names of the conditions that differ, sorted."""
    missing = object()
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name, missing) != theirs.get(name, missing))


def _is_left_out(name: str) -> bool:
    return any(name == other or name.startswith(f"{other}.") for other in _NOT_COMPARED)


def _flat(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, dict) or not node:
        yield prefix, _hashable(node)
        return
    for name, value in node.items():
        yield from _flat(f"{prefix}.{name}" if prefix else str(name), value)


def _hashable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((name, _hashable(part)) for name, part in sorted(value.items()))
    return value
