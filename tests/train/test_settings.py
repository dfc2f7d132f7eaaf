"""Mistakes of the user's: one sentence with the setting, its value and what would do; status 2; no traceback."""

import pytest

from dma_lab.attention import registered_backends
from dma_lab.messages import UserError, print_once
from dma_lab.train.reading import read_settings, say_unused_window
from tests.made_up import configuration

REFUSED = [
    (["attention=flash"], ["attention=flash", "dma", "mha"]),
    (["attention=dma", "attention.window=0"], ["attention.window=0", "greater than 0"]),
    (["attention=dma", "+attention.widow=3"], ["attention.widow", "window"]),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED, ids=lambda value: " ".join(value))
def test_the_entry_point_refuses_in_one_sentence(run_script, overrides, tmp_path, wrong, said):
    result = run_script("train.py", [*overrides, *wrong])
    assert result.returncode == 2, result.stderr
    (line,) = result.stderr.splitlines()
    for words in said:
        assert words in line
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["model.n_kv_heads=3"], "n_kv_heads=3 does not divide"),
        (["trainer.tokens_per_step=500"], "not a multiple of trainer.context"),
        (["trainer.micro_batch_sequences=3"], "micro_batch_sequences=3"),
        (["tokens=100"], "tokens=100 is less than one step"),
        (["tokens=5120", "flops=1e15"], "tokens=5120 and flops=1e+15 are both"),
        (["flops=0"], "flops=0"),
        (["tokens_per_parameter=-1"], "tokens_per_parameter=-1"),
        (["optimizer.betas=[0.9]"], "optimizer.betas"),
        (["optimizer.learning_rate=0"], "optimizer.learning_rate=0"),
        (["optimizer.learning_rate=inf"], "optimizer.learning_rate=inf"),
        (["tokens_per_parameter=inf"], "tokens_per_parameter=inf"),
        (["~trainer.context"], "trainer.context is missing"),
        (["schedule.warmup_fraction=0.9", "schedule.decay_fraction=0.2"], "sum to more than the whole run"),
        (["match=loss"], "match=loss"),
        (["trainer.precision=fp8"], "trainer.precision=fp8"),
        (["+data.shuffle=true"], "data.shuffle is no setting"),
        (["seed=-1"], "seed=-1"),
        (["study=a/b"], "study=a/b: it names the run's directory"),
        (["study="], "study=: it names the run's directory"),
        (["study=.."], "study=..: it names"),
        (["study=a?b"], "study=a?b: it names"),
        (["model.name=../../x"], "model.name=../../x: it names"),
        (["model.name="], "model.name=: it names"),
        (["output_dir="], "output_dir=: string should have at least 1 character"),
        (["model.n_heads=3"], "model.n_heads=3 times model.head_dim=16 is 48, not model.d_model=32"),
        (["trainer.context=long"], "trainer.context=long: input should be a valid integer"),
        (["model.vocab_size=18446744073709551616"], "model.vocab_size=18446744073709551616: input should be less"),
        (["model.n_layers=100000"], "model.n_layers=100000: input should be less than or equal to 512"),
        (["trainer.tokens_per_step=1000000000000"], "trainer.tokens_per_step=1000000000000: input should be less"),
        (["seed=1000000000000000000000000000000"], "seed=1000000000000000000000000000000: input should be less"),
        (["attention.window=100000000000000000000"], "attention.window=100000000000000000000: input should be less"),
        (["attention.window=-1"], "attention.window=-1: input should be greater than 0"),
        (["attention.window=3.5"], "attention.window=3.5: input should be a valid integer"),
        (["attention.recent=-1"], "attention.recent=-1: input should be greater than or equal to 0"),
        (["attention.score=log"], "attention.score=log: input should be 'exp' or 'linear'"),
        (["attention.rope_base=inf"], "attention.rope_base=inf: input should be a finite number"),
        (["attention.rope_base=1e-300"], "attention.rope_base=1e-300: input should be greater than or equal to 1"),
        (["attention.qk_norm=3"], "attention.qk_norm=3: input should be a valid boolean"),
        (["schedule.branches=[" + "1," * 99 + "1]"], "schedule.branches=[1, 1, 1"),
        (["schedule.branches=[1e300]"], "schedule.branches.0=1e+300: input should be less than or equal to 1000000"),
        (["+data.mask=[{}]"], "data.mask is no setting"),
        (["trainer.compile=perhaps"], "trainer.compile=perhaps"),
    ],
    ids=lambda value: " ".join(value)[:40],
)
def test_values_that_cannot_be_are_named(read, overrides, wrong, said):
    with pytest.raises(UserError) as refusal:
        read([*overrides, *wrong])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_micro_batches_may_be_set(read, overrides):
    assert read([*overrides, "trainer.micro_batch_sequences=4"]).trainer.micro_batch_sequences == 4


def test_one_window_is_that_of_every_backend_that_has_one_and_no_setting_of_the_others(read):
    given = {name: read([f"attention={name}", "window=48"]) for name in registered_backends()}
    windows = {name: settings.attention.written().get("window") for name, settings in given.items()}
    assert given["dsa"].attention.written()["top_k"] == 48
    without = dict.fromkeys(("mha", "mla", "moba", "dsa", "gated_deltanet"))
    assert windows == {**without, "swa": 48, "nsa": 48, "dma": 48}
    assert given["mha"] == read(["attention=mha"]), "the same run, with the same name"
    assert given["dma"] == read(["attention=dma", "attention.window=48"])


@pytest.mark.parametrize("attention", sorted(registered_backends()))
def test_a_window_is_said_to_change_nothing_where_the_attention_has_none(read, attention, capsys):
    print_once.cache_clear()
    chosen = [f"attention={attention}"]
    say_unused_window(configuration([*chosen, "window=48"], "train"))
    takes = read([*chosen, "window=48"]) != read(chosen)
    said = "" if takes else f"dma_lab: window=48 changes nothing: attention={attention} has no window.\n"
    assert capsys.readouterr().err == said
    say_unused_window(configuration(chosen, "train"))
    assert not capsys.readouterr().err


OVERRULED = {
    "tokens_per_parameter=80": "tokens=100000",
    "++tokens_per_parameter=8": "flops=1e11",
    "schedule.warmup_fraction=0.5": "schedule.warmup_steps=10",
    "init.qk_gain=2": "attention.qk_norm=false",
    "model.context=64": "trainer.context=128",
    "data.vocab_size=99": "data.tokenizer=mine.json",
    "data.validation_fraction=0.5": "data.validation_path=held_out",
}


@pytest.mark.parametrize(("given", "overruling"), OVERRULED.items())
def test_a_setting_that_another_overrules_is_said_to_change_nothing(given, overruling, capsys):
    print_once.cache_clear()
    chosen = ["data=local", "data.path=text"]
    for overrides, words in (([*chosen, given, overruling], 1), ([*chosen, given], 0), ([*chosen, overruling], 0)):
        read_settings(configuration(overrides), overrides)
        assert capsys.readouterr().err.count(f"{given.lstrip('+')} changes nothing") == words


def test_a_rung_that_the_experiment_overrules_is_said_to_be(capsys):
    print_once.cache_clear()
    for overrides, said in (
        (["experiment=mqar_small", "model=nano"], "model=nano is overruled by experiment=mqar_small"),
        (["experiment=chinchilla", "model=nano"], ""),
        (["model=nano", "model.name=mine"], ""),
        (["experiment=mqar_small"], ""),
        (["model=of_my_own_folder"], ""),
    ):
        composed = [given for given in overrides if given != "model=of_my_own_folder"]
        read_settings(configuration(composed), overrides)
        found = capsys.readouterr().err
        assert said in found
        assert ("overruled" in found) == bool(said)
