"""Models for others and from others: folders as Hugging Face transformers keeps them, safetensors throughout."""

from dma_lab.exchange.doge import import_doge
from dma_lab.exchange.folder import export_model, export_run

__all__ = ["export_model", "export_run", "import_doge"]
