"""README.md of an exported folder: what it is, how it is loaded, how far it computes what dma_lab does."""

from collections.abc import Mapping
from typing import Any

from dma_lab.attention import AttentionConfig
from dma_lab.evaluation.checkpoint import TrainedRun

DOGE_TRANSFORMERS = "5.18"
"""The first release whose Doge is causal without padding: those before leave the causal mask out of the choice of keys,
so that a query attends to tokens after it."""

_CARD = """\
{metadata}# {architecture}, trained by dma_lab with attention={attention}

```python
from transformers import AutoModelForCausalLM{tokenizer_import}

model = AutoModelForCausalLM.from_pretrained("FOLDER"{arguments}){tokenizer}
```

{agreement}

{table}
"""
_EXACT = "In float32 its logits agree with dma_lab's to 1e-4."
_CUSTOM = "It runs dma_lab's own code, so the package{packages} must be installed. " + _EXACT
_DOGE = f"""\
**Use transformers {DOGE_TRANSFORMERS} or later.** Before, Doge attends to tokens that come later in the text: its
losses are those of another model.

Of equally scored keys dma_lab keeps the most recent and Doge any. Up to {{window}} tokens (`keep_window_size`) float32
logits agree with dma_lab's to 1e-4; past them they may differ wherever two keys score the same, as a token does in the
first layer each time it comes again. `python export.py format=custom` writes the model itself."""


def training_facts(run: TrainedRun) -> dict[str, str]:
    """How the run was trained, by what a reader would ask; of the weights as they are, an unfinished run's too."""
    summary, data = run.summary, run.config["data"]
    facts = {
        "data": f"{data.get('name')}, fingerprint {summary.data_fingerprint}",
        "training": f"step {run.step:,} of {summary.steps:,}, {_share(run):,} tokens, context {run.context:,}, "
        f"seed {summary.seed}",
    }
    if summary.tokenizer_loses is not None:
        facts["tokenizer"] = f"loses {summary.tokenizer_loses}: what is lost cost nothing"
    if summary.init_from_digest is not None:
        facts["begun with"] = f"the weights of digest {summary.init_from_digest}"
    if summary.status == "finished" and run.step == summary.steps:
        loss = f"{summary.val_loss:.4f} nats per token"
        if summary.val_bits_per_byte is not None:
            loss += f", {summary.val_bits_per_byte:.4f} bits per byte, perplexity {summary.val_perplexity:.2f}"
        facts["validation loss"] = loss
    return facts | {"dma_lab": f"commit {summary.git_commit}", "run": run.path.name}


def _share(run: TrainedRun) -> int:
    """Tokens that the weights have seen."""
    return run.summary.tokens // run.summary.steps * run.step


def model_card(
    config: Mapping[str, Any],
    attention: AttentionConfig,
    parameters: int,
    trained: Mapping[str, str],
    license: str | None,
) -> str:
    """The text for a folder with this config.json.

    Args:
        config: as written to the folder.
        attention: the backend and its options.
        parameters: of the model, all.
        trained: ``training_facts``.
        license: of the weights; None: the card names none.
    """
    custom = config["model_type"] == "dma_lab"
    if custom:
        package = config["attention"].get("package")
        packages = " `dma_lab`" if package is None else f"s `dma_lab` and `{package}`"
        agreement = _CUSTOM.format(packages=packages)
    elif config["model_type"] == "doge":
        agreement = _DOGE.format(window=config["keep_window_size"])
    else:
        agreement = _EXACT
    tokenizer = config["eos_token_id"] is not None
    rows = {
        "attention": ", ".join(f"{name}={value}" for name, value in attention.written().items() if name != "name"),
        "shape": f"{config['num_hidden_layers']} layers of {config['hidden_size']}, feed-forward "
        f"{config['intermediate_size']}, {config['num_attention_heads']} heads, vocabulary {config['vocab_size']:,}",
        "parameters": f"{parameters:,}, of which embedding {config['vocab_size'] * config['hidden_size']:,}",
        **trained,
    }
    # The hub reads this head; a licence is the owner's to give.
    metadata = {"license": license, "library_name": "transformers", "pipeline_tag": "text-generation"}
    return _CARD.format(
        metadata="---\n" + "".join(f"{name}: {value}\n" for name, value in metadata.items() if value) + "---\n\n",
        architecture=config["architectures"][0],
        attention=attention.label,
        arguments=", trust_remote_code=True" if custom else "",
        tokenizer_import=", AutoTokenizer" if tokenizer else "",
        tokenizer='\ntokenizer = AutoTokenizer.from_pretrained("FOLDER")' if tokenizer else "",
        agreement=agreement,
        table="\n".join(("| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()))),
    )
