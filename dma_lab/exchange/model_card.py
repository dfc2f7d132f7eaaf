"""README.md of an exported folder: how it is loaded, and how far what it computes is what dma_lab computes."""

from typing import Any

DOGE_TRANSFORMERS = "5.18"
"""The first release whose Doge is causal without padding: those before leave the causal mask out of the choice of keys,
so that a query attends to tokens after it."""

_LOADING = """\
# {architecture}, trained by dma_lab with attention={attention}

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("FOLDER"{arguments})
```

{agreement}
"""
_EXACT = "In float32 its logits agree with dma_lab's to 1e-4."
_CUSTOM = "It runs dma_lab's own code, so the package{packages} must be installed. " + _EXACT
_DOGE = f"""\
**Use transformers {DOGE_TRANSFORMERS} or later.** Before, Doge attends to tokens that come later in the text: its
losses are those of another model.

Of equally scored keys dma_lab keeps the most recent and Doge any. Up to {{window}} tokens (`keep_window_size`) float32
logits agree with dma_lab's to 1e-4; past them they may differ wherever two keys score the same, as a token does in the
first layer each time it comes again. `python export.py format=custom` writes the model itself."""


def model_card(config: dict[str, Any], attention: str) -> str:
    """The text for a folder with this config.json; ``attention`` is what the backend, or control, is called."""
    custom = config["model_type"] == "dma_lab"
    if custom:
        package = config["attention"].get("package")
        packages = " `dma_lab`" if package is None else f"s `dma_lab` and `{package}`"
        agreement = _CUSTOM.format(packages=packages)
    elif config["model_type"] == "doge":
        agreement = _DOGE.format(window=config["keep_window_size"])
    else:
        agreement = _EXACT
    return _LOADING.format(
        architecture=config["architectures"][0],
        attention=attention,
        arguments=", trust_remote_code=True" if custom else "",
        agreement=agreement,
    )
