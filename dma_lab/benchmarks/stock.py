"""A stock model of transformers beside ours: Llama of the MHA rung's shape, on the tokens of our runs.

It is trained as is usual: PyTorch's SDPA, weights in float32 and products in bf16 by autocast where ours are,
``torch.compile`` of the whole model where ours is compiled, the loss that comes with the model, clipping, fused AdamW.
It has no QK-norm, and no masks of documents: MFU counts causal pairs of whole sequences for both.
"""

import math
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from dma_lab.attention import AttentionConfig
from dma_lab.exchange.configs import stock_config
from dma_lab.messages import UserError
from dma_lab.model import ModelShape
from dma_lab.train.hardware import Hardware
from dma_lab.train.memory import forget_peak, peak_bytes
from dma_lab.train.optim import learning_rate_multiplier
from dma_lab.train.plan import budget_tokens, padded_vocabulary, plan_run
from dma_lab.train.settings import TrainSettings
from dma_lab.train.step_graph import STEPS_UNTIL_REPLAYED
from dma_lab.train.task import prepare_task
from dma_lab.train.utilization import utilization

NAME = "transformers' Llama"


def require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError("stock=true needs transformers, which is not installed: `pip install transformers`.") from None


def train_stock(settings: TrainSettings, hardware: Hardware) -> dict[str, Any]:
    """Losses, speed and memory of the steps of a run with attention=mha; every step is waited for."""
    forget_peak(hardware.device)
    task = prepare_task(settings, budget_tokens(settings, settings.model.vocab_size))
    plan = plan_run(settings, padded_vocabulary(task.vocab_size), hardware)
    draw, rows = task.draw(plan), plan.sequences_per_step // plan.accumulate
    torch.manual_seed(settings.seed)
    model = stock_model(plan.shape).to(hardware.device)
    forward = torch.compile(model) if hardware.compile else model
    chosen, multiplier = settings.optimizer, learning_rate_multiplier(settings.schedule, plan.steps)
    betas = (chosen.betas[0], chosen.betas[1])
    optimizer = torch.optim.AdamW(model.parameters(), betas=betas, weight_decay=chosen.weight_decay, fused=True)
    losses: dict[int, float] = {}
    seconds: list[float] = []
    for step in range(plan.steps):
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = chosen.learning_rate * multiplier(step)
        parts: list[Tensor] = []
        for number in range(plan.accumulate):
            batch = draw(first=step * plan.sequences_per_step + number * rows, count=rows)
            tokens, targets = (batch[name].to(hardware.device) for name in ("tokens", "targets"))  # type: ignore[union-attr]
            with torch.autocast(hardware.device.type, torch.bfloat16, enabled=hardware.precision == "bf16"):
                loss = stock_loss(forward, tokens, targets) / plan.accumulate
            loss.backward()
            parts.append(loss.detach())
        nn.utils.clip_grad_norm_(model.parameters(), chosen.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses[step + 1] = torch.stack(parts).sum().item()
        seconds.append(time.perf_counter() - begun)
    steady = seconds[STEPS_UNTIL_REPLAYED if hardware.compile or hardware.device.type == "cuda" else 0 :]
    rate = plan.tokens_per_step / median(steady) if steady else None
    return {
        "params_non_embedding": sum(weight.numel() for weight in model.model.layers.parameters())
        + model.model.norm.weight.numel(),
        "d_ff": plan.shape.d_ff,
        "kernels": "PyTorch's SDPA",
        "hardware": hardware.name,
        "precision": hardware.precision,
        "tokens_per_second": rate,
        **utilization(rate, plan, 1, hardware),
        "peak_memory_bytes": peak_bytes(hardware.device),
        "flops": plan.flops.dense_equivalent,
        "flops_executed": plan.flops.executed,
        "loss": losses,
        "not_finite": sum(not math.isfinite(loss) for loss in losses.values()),
    }


def stock_model(shape: ModelShape) -> Any:
    """Of transformers' own initial weights; a layer's matrix products are those of ours with MHA."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = stock_config(shape, AttentionConfig.of("mha", {"qk_norm": False}))
    return LlamaForCausalLM(LlamaConfig(**config | {"attn_implementation": "sdpa", "use_cache": False})).train()


def stock_loss(model: Any, tokens: Tensor, targets: Tensor) -> Tensor:
    """The model's own, of targets that already are the next tokens."""
    loss: Tensor = model(input_ids=tokens, labels=targets, shift_labels=targets).loss
    return loss
