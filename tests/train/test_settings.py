"""Mistakes of the user's: one sentence with the setting, its value and what would do; status 2; no traceback."""

import pytest

from dma_lab.messages import UserError

REFUSED_AT_THE_DOOR = [
    (["attention=flash"], ["attention=flash", "dma", "mha"]),
    (["model=7b"], ["model=7b", "nano", "1.7b"]),
    (["model=80"], ["model=80", "nano", "80m"]),
    (["attention=null"], ["attention=null", "dma", "mha"]),
    (["attention="], ["attention=", "dma", "mha"]),
    (["data=the_pile"], ["data=the_pile", "stdlib", "local"]),
    (["experiment=chinchila_dma"], ["experiment=chinchila_dma", "chinchilla_dma", "mqar"]),
    (["sweep=chinchila"], ["sweep=chinchila", "chinchilla", "isoflop"]),
    (["hydra/launcher=ray"], ["hydra/launcher=ray", "basic", "dma-lab[sweeps]"]),
    (["optimizer.lr=1"], ["optimizer.lr", "no setting"]),
    (["trainer.contxt=128"], ["trainer.contxt", "trainer.context"]),
    (["model.n_heads=3"], ["model.n_heads=3", "48", "32"]),
    (["trainer.context=long"], ["trainer.context=long", "integer"]),
    (["attention=dma", "attention.window=0"], ["attention.window=0", "at least 1"]),
    (["attention=dma", "+attention.widow=3"], ["attention.widow", "window"]),
]


@pytest.mark.parametrize(("wrong", "said"), REFUSED_AT_THE_DOOR, ids=lambda value: " ".join(value))
def test_the_door_refuses_in_one_sentence(door, overrides, tmp_path, wrong, said):
    result = door("train.py", [*overrides, *wrong])
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
        (["study=a/b"], "study=a/b"),
        (["trainer.compile=perhaps"], "trainer.compile=perhaps"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_values_that_cannot_be_are_named(read, overrides, wrong, said):
    with pytest.raises(UserError) as refusal:
        read([*overrides, *wrong])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_micro_batches_may_be_set(read, overrides):
    assert read([*overrides, "trainer.micro_batch_sequences=4"]).trainer.micro_batch_sequences == 4
