"""Writes the table of docs/backends.md: ``python docs/backends.py``."""

import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from dma_lab.model.accounting import count_parameters, training_flops_per_sequence  # noqa: E402
from dma_lab.model.ladder import rung_parameters  # noqa: E402
from dma_lab.train.plan import matched_model  # noqa: E402
from dma_lab.train.reading import read_settings  # noqa: E402

PAGE = ROOT / "docs" / "backends.md"
BACKENDS = ("mha", "swa", "mla", "nsa", "dma", "moba", "dsa", "gated_deltanet")
_BEGIN, _END = "<!-- python docs/backends.py writes from here -->\n", "<!-- to here -->\n"
_FLOPS_AT, _CACHE_AT = (2048, 8192, 32_768), (8192, 131_072)
_HEADER = (
    "| rung | context | attention | parameters | to MHA's | FFN width | executed, 2k | 8k | 32k "
    "| dense-equivalent, 2k | 8k | 32k | cache, 8k | 128k |\n"
    "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)


def table() -> str:
    """The table in Markdown, smallest rung first."""
    rungs = [OmegaConf.load(path) for path in (ROOT / "conf" / "model").glob("*.yaml")]
    rungs.sort(key=lambda rung: rung_parameters(rung.name))
    rows = (_row(rung.name, backend) for rung in rungs for backend in BACKENDS)
    return _HEADER + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(rung: str, backend: str) -> list[str]:
    """Of the model that ``train.py`` builds."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        settings = read_settings(compose("train", [f"model={rung}", f"attention={backend}"]))
    reference = settings.model.parameters
    model = matched_model(settings, settings.model.vocab_size)
    parameters = count_parameters(model).non_embedding
    flops = {n: training_flops_per_sequence(model, n) for n in _FLOPS_AT}
    cache = (sum(block.attention.cache_bytes(n, torch.bfloat16) for block in model.blocks) for n in _CACHE_AT)
    return [
        rung,
        f"{model.shape.max_seq_len:,}",
        backend,
        f"{parameters:,}",
        f"{100 * (parameters / reference - 1):+.3f} %",
        f"{model.shape.d_ff:,}",
        *(f"{flops[n].executed / n / 1e6:,.2f}" for n in _FLOPS_AT),
        *(f"{flops[n].dense_equivalent / n / 1e6:,.2f}" for n in _FLOPS_AT),
        *(f"{size / 2**20:,.2f}" for size in cache),
    ]


def page() -> str:
    """The page with its table regenerated."""
    before, rest = PAGE.read_text(encoding="utf-8").split(_BEGIN)
    after = rest.split(_END)[1]
    return before + _BEGIN + "\n" + table() + "\n" + _END + after


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
