"""A composed config to training's settings: the recipe fills what is left open, contradictions are refused."""

import dataclasses
import json
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

import dma_lab.settings
from dma_lab.attention import AttentionConfig
from dma_lab.data.mqar import RecallSettings
from dma_lab.messages import UserError, warn_once
from dma_lab.settings import CONFIG_DIR, shown
from dma_lab.train.recipe import recipe_learning_rate, recipe_tokens_per_step
from dma_lab.train.settings import PlanSettings, ScheduleSettings, TrainSettings
from dma_lab.train.tuned import names_tuned, read_tuned, tuned_for
from dma_lab.train.vocabulary import planned_vocabulary


def read_settings(config: DictConfig, overrides: Sequence[str] = ()) -> TrainSettings:
    """The settings of a composed config.

    Args:
        config: as Hydra composed it.
        overrides: of the command line: what is given there a file of tuned rates leaves as it is.

    Raises:
        UserError: naming the first setting whose type or value cannot be, or that contradicts another.
    """
    return _with_recipe(TrainSettings, config, overrides)


def read_plan_settings(config: DictConfig, overrides: Sequence[str] = ()) -> PlanSettings:
    """As ``read_settings``, of the config of ``plan.py``."""
    return _with_recipe(PlanSettings, config, overrides)


def say_unused_window(config: DictConfig) -> None:
    """Tell the user of a ``window`` that the run's attention does not take: of a single run, for in a sweep it is meant
    for those backends that have one.
    """
    node = OmegaConf.to_container(config.attention)
    assert isinstance(node, dict)  # it was read
    if config.window is not None and "window" not in node and "${window}" not in node.values():
        warn_once(f"window={config.window} changes nothing: attention={node['name']} has no window.")


_Settings = TypeVar("_Settings", bound=TrainSettings)


def _with_recipe(kind: type[_Settings], config: DictConfig, overrides: Sequence[str]) -> _Settings:
    """The settings of ``config``, with the recipe's learning rate and batch where it leaves them null."""
    written: Any = OmegaConf.to_container(config)
    nodes = {name: node if isinstance(node := written.get(name), dict) else {} for name in ("optimizer", "trainer")}
    left_open = [
        (group, name)
        for group, name in (("trainer", "tokens_per_step"), ("optimizer", "learning_rate"))
        if nodes[group].get(name, 0) is None
    ]
    config = config.copy()
    for group, name in left_open:  # something valid, for as long as all else is checked
        OmegaConf.update(config, f"{group}.{name}", 1)
    settings = dma_lab.settings.read_settings(kind, config)
    own = settings.attention.written().get("window", settings.window)
    if settings.window not in (None, own):
        warn_once(
            f"window={settings.window} is not that of attention={settings.attention.name}: its own is "
            f"attention.window={own}."
        )
    settings = dataclasses.replace(settings, window=None)
    if ("trainer", "tokens_per_step") in left_open:
        given = recipe_tokens_per_step(*rung_budget(settings), settings.trainer.context)
        trainer = dataclasses.replace(settings.trainer, tokens_per_step=given)
        settings = dataclasses.replace(settings, trainer=trainer)
    if ("optimizer", "learning_rate") in left_open:
        optimizer = dataclasses.replace(settings.optimizer, learning_rate=recipe_rate(settings))
        settings = dataclasses.replace(settings, optimizer=optimizer)
    if settings.tuned is not None:
        settings = _with_tuned(
            settings, settings.tuned, overrides, given=("optimizer", "learning_rate") not in left_open
        )
    _check_values(settings)
    _say_overruled(settings, overrides)
    return settings


def _say_overruled(settings: TrainSettings, overrides: Sequence[str]) -> None:
    """Tell the user of settings that the command line gives and another one overrules."""
    data, trainer, schedule = settings.data, settings.trainer, settings.schedule
    budget = "tokens" if settings.tokens is not None else "flops"
    overruling = {
        "tokens_per_parameter": (budget, getattr(settings, budget)),
        "schedule.warmup_fraction": ("schedule.warmup_steps", schedule.warmup_steps),
    }
    if settings.attention.written().get("qk_norm") is False:
        overruling["init.qk_gain"] = "attention.qk_norm", "false"
    if trainer.context != settings.model.context:
        overruling["model.context"] = "trainer.context", trainer.context
    if not isinstance(data, RecallSettings):
        overruling["data.vocab_size"] = "data.tokenizer", data.tokenizer if data.tokenizer != "bpe" else None
        overruling["data.validation_fraction"] = "data.validation_path", data.validation_path
    given = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    for name, value in given.items():
        other, ruling = overruling.get(name, (name, None))
        if ruling is not None and value != "null":
            warn_once(f"{name}={value} changes nothing, for {other}={shown(ruling)} overrules it.")
    own, rung = settings.model.name, given.get("model", "")
    experiment, tokens = given.get("experiment", ""), None if "tokens" in given else settings.tokens
    if experiment and tokens is not None and own == rung != _rung_of(experiment):
        warn_once(
            f"tokens={tokens} are experiment={experiment}'s, whatever the model: "
            f"{tokens / settings.model.parameters:.3g} per parameter of model={rung}; give tokens=… or, for "
            f"{settings.tokens_per_parameter:g} per parameter, tokens=null."
        )
    # A rung of a folder of the user's own may be called otherwise than its file.
    if "model.name" not in given and own != rung and (CONFIG_DIR / "model" / f"{rung}.yaml").is_file():
        warn_once(
            f"model={rung} is overruled by experiment={given.get('experiment', '…')}, which says itself what "
            f"the model is: {own}; set parts of that instead, as model.d_model={settings.model.d_model}."
        )


def _rung_of(experiment: str) -> str | None:
    """The rung that an experiment names itself, if it does."""
    file = CONFIG_DIR / "experiment" / f"{experiment}.yaml"
    chosen: Any = OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else {}
    found = [choice.get("override /model") for choice in chosen.get("defaults", []) if isinstance(choice, dict)]
    return next((rung for rung in found if rung), None)


def _with_tuned(settings: _Settings, file: str, overrides: Sequence[str], *, given: bool) -> _Settings:
    """With the recipe's rate multiplied by what ``file`` has for the backend, and the options that it chose for it."""
    if given and names_tuned(file):
        return settings  # what a run wrote into its config.yaml: the file's rate, and which file it was
    if given:
        rate = settings.optimizer.learning_rate
        raise UserError(f"tuned={file} and optimizer.learning_rate={rate:g} both set the rate; give one of them.")
    rates, name = read_tuned(file)
    attention = json.loads(json.dumps(settings.attention.written()))
    parameters, _ = rung_budget(settings)
    by_hand = [found[1] for override in overrides if (found := re.match(r"\+{0,2}attention\.(\w+)=", override))]
    tuned = tuned_for(rates, file, settings.optimizer.name, attention, parameters, by_hand)
    rate = float(f"{tuned.multiplier * settings.optimizer.learning_rate:.3g}")
    return dataclasses.replace(
        settings,
        tuned=name,
        tuning=tuned,
        attention=AttentionConfig.read(attention | tuned.options),
        optimizer=dataclasses.replace(settings.optimizer, learning_rate=rate),
    )


def rung_budget(settings: TrainSettings) -> tuple[int, float]:
    """N and D of the recipe: non-embedding parameters of the rung with MHA, and the tokens of the longest budget.

    A budget of FLOP counts 6 (N + V · M) per token, as if attention's scores cost nothing; V is the text's vocabulary.

    Raises:
        UserError: V is that of a tokenizer that cannot be had.
    """
    rung, parameters = settings.model, settings.model.parameters
    if settings.tokens is not None:
        tokens: float = settings.tokens
    elif settings.flops is not None:
        tokens = settings.flops / (6 * (parameters + planned_vocabulary(settings) * rung.d_model))
    else:
        tokens = settings.tokens_per_parameter * parameters
    return parameters, tokens * max(settings.schedule.branches or [1.0])


def recipe_rate(settings: TrainSettings) -> float:
    """The recipe's learning rate for the run's rung, budget, batch and optimizer."""
    trainer = settings.trainer
    return recipe_learning_rate(
        settings.optimizer.name, *rung_budget(settings), trainer.tokens_per_step, trainer.context
    )


def _check_values(settings: TrainSettings) -> None:
    model, trainer, schedule = settings.model, settings.trainer, settings.schedule
    if model.n_heads * model.head_dim != model.d_model:
        raise UserError(
            f"model.n_heads={model.n_heads} times model.head_dim={model.head_dim} is {model.n_heads * model.head_dim}, "
            f"not model.d_model={model.d_model}; make the product equal to it."
        )
    if model.n_heads % model.n_kv_heads:
        raise UserError(
            f"model.n_kv_heads={model.n_kv_heads} does not divide model.n_heads={model.n_heads}; choose one that does."
        )
    if isinstance(settings.data, RecallSettings) and settings.data.size.length != trainer.context:
        raise UserError(
            f"data.size.length={settings.data.size.length} is not trainer.context={trainer.context}; an example is a "
            "whole sequence, so set trainer.context alone, or as the mqar experiments do."
        )
    if trainer.tokens_per_step % trainer.context:
        raise UserError(
            f"trainer.tokens_per_step={trainer.tokens_per_step} is not a multiple of "
            f"trainer.context={trainer.context}; a step takes whole sequences."
        )
    sequences, micro = trainer.tokens_per_step // trainer.context, trainer.micro_batch_sequences
    each, left = divmod(sequences, trainer.processes)
    if left or (micro is not None and (micro < 1 or each % micro)):
        machines = f" x trainer.num_nodes={trainer.num_nodes}" if trainer.num_nodes > 1 else ""
        raise UserError(
            f"a step's {sequences} sequences do not split over trainer.devices={trainer.devices}{machines} into micro-"
            f"batches of trainer.micro_batch_sequences={micro}; choose numbers that divide it."
        )
    if settings.tokens is not None and settings.flops is not None:
        raise UserError(
            f"tokens={settings.tokens} and flops={settings.flops:g} are both the run's budget; set one and leave the "
            "other null."
        )
    if settings.tokens is not None and settings.tokens < trainer.tokens_per_step:
        raise UserError(f"tokens={settings.tokens} is less than one step of {trainer.tokens_per_step}; give more.")
    if schedule.branches is not None:
        _check_branches(schedule)
    if schedule.warmup_steps is None and schedule.warmup_fraction + schedule.decay_fraction > 1 + 1e-9:
        raise UserError(
            f"schedule.warmup_fraction={schedule.warmup_fraction} and schedule.decay_fraction="
            f"{schedule.decay_fraction} sum to more than the whole run; make them sum to at most 1."
        )


def _check_branches(schedule: ScheduleSettings) -> None:
    branches = schedule.branches or []
    if schedule.name != "wsd":
        raise UserError(
            f"schedule.branches={branches} need schedule=wsd: under schedule.name={schedule.name} every learning rate "
            "depends on the budget, and budgets share nothing."
        )
    if not schedule.decay_fraction:
        raise UserError(
            f"schedule.branches={branches} need schedule.decay_fraction above 0: without a decay there is nothing to "
            "branch into."
        )
    if len(set(branches)) < len(branches):
        raise UserError(f"schedule.branches={branches} names a budget twice; name each once.")
