"""lm-eval's own definitions of the paper's benchmarks, on rows made here, answered by ours and its own model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from dma_lab.evaluation.checkpoint import open_run
from dma_lab.evaluation.harness import HarnessModel
from dma_lab.evaluation.hub_tasks import HubTasks
from dma_lab.exchange import export_model
from dma_lab.model import ModelShape, Transformer

CONTEXT = 320
ROWS = {
    "mmlu_anatomy": {"question": "What?", "choices": ["a", "b", "c", "d"], "answer": 2},
    "triviaqa": {"question": "Who", "answer": {"aliases": ["x", "Mr X"]}},
    "arc_easy": {"question": "Why?", "choices": {"label": ["A", "B"], "text": ["so", "not so"]}, "answerKey": "B"},
    "piqa": {"goal": "boil", "sol1": "heat it", "sol2": "cool it", "label": 0},
    "hellaswag": {
        "activity_label": "Cooking",
        "ctx_a": "He stirs.",
        "ctx_b": "then he",
        "endings": ["eats it", "goes", "sings", "sleeps"],
        "label": "1",
    },
    "openbookqa": {
        "question_stem": "Fish live",
        "choices": {"label": ["A", "B", "C", "D"], "text": ["in water", "in air", "here", "there"]},
        "answerKey": "A",
    },
    "winogrande": {"sentence": "Ann met Bea and _ left.", "option1": "Ann", "option2": "Bea", "answer": "1"},
    "lambada_openai": {"text": "It was late and she went to bed"},
    "longbench_hotpotqa": {"context": "c " * 300, "question": "Which?", "answers": ["one", "two"]},
}


@pytest.fixture(scope="module")
def pair(trained_run, tmp_path_factory):
    data = open_run(trained_run).data
    sizes = {"n_layers": 2, "d_model": 32, "n_heads": 2, "n_kv_heads": 1, "head_dim": 16, "d_ff": 48}
    model = Transformer(ModelShape(**sizes, vocab_size=data.vocab_size, max_seq_len=CONTEXT), "mha", {}).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    folder = export_model(model, tmp_path_factory.mktemp("exported") / "model", "stock", data=data)
    ours = HarnessModel(
        model,
        data.load_tokenizer(),
        eot_id=data.eot_id,
        vocab_size=data.vocab_size,
        max_length=CONTEXT,
        batch_tokens=4 * CONTEXT,
    )
    return ours, HFLM(str(folder), device="cpu", dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def manager(trained_run) -> TaskManager:
    run = open_run(trained_run)
    return HubTasks(list(ROWS), run, num_fewshot=0, ruler_lengths=[4096], max_length=run.context)._manager


@pytest.mark.parametrize("name", ROWS)
def test_a_benchmark_scores_alike(pair, manager, tmp_path, name):
    file: Path = tmp_path / "rows.json"
    file.write_text("\n".join(json.dumps(ROWS[name]) for _ in range(3)))
    files = dict.fromkeys(("train", "dev", "validation", "test"), str(file))
    here = {
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(tmp_path)},
    }
    task = manager._factory._build_task(manager.task_index[name], here)
    task.set_config("num_fewshot", 0)
    found, expected = (
        evaluator.evaluate(model, {"tasks": {name: task}}, bootstrap_iters=0)["samples"][name][0] for model in pair
    )
    assert found["arguments"] == expected["arguments"]
    if task.OUTPUT_TYPE == "generate_until":
        assert found["resps"] == expected["resps"]
    else:
        nats, as_theirs = ([resp[0][0] for resp in sample["resps"]] for sample in (found, expected))
        np.testing.assert_allclose(nats, as_theirs, rtol=0, atol=1e-4)
    scored = [metric for metric in task.aggregation() if metric in found]
    assert scored
    assert {metric: found[metric] for metric in scored} == pytest.approx(
        {metric: expected[metric] for metric in scored}
    )
