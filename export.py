"""A run as a folder that Hugging Face transformers loads: ``python export.py checkpoint=outputs/RUN to=FOLDER``."""

from dma_lab.commands.export import run

if __name__ == "__main__":
    run()
