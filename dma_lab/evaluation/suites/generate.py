"""``suite=generate``: text that the run writes, greedy or drawn."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dma_lab.attention import RopeBase
from dma_lab.data.finding import user_path
from dma_lab.data.formats import FORMATS, format_of
from dma_lab.data.readers import read_documents
from dma_lab.evaluation.checkpoint import TrainedRun
from dma_lab.evaluation.generate import Sampling, generate
from dma_lab.evaluation.record import EvaluationRecord
from dma_lab.evaluation.session import Machine
from dma_lab.evaluation.suite import Cell, Job, Scores, Suite
from dma_lab.messages import UserError
from dma_lab.model import Transformer
from dma_lab.settings import Seed, Text, Width


@dataclass(frozen=True)
class GenerateSuite(Suite):
    """A cell is a prompt, at its place among them."""

    name: Literal["generate"]
    prompts: list[str]
    prompts_file: Text | None
    max_new_tokens: Width
    temperature: Annotated[float, Field(ge=0)]
    top_p: Annotated[float, Field(gt=0, le=1)]
    seed: Seed
    rope_base: RopeBase | None
    title = "generating"

    def jobs(self, run: TrainedRun, machine: Machine, record: EvaluationRecord) -> list[Job]:
        data, tokenizer = run.data, run.data.load_tokenizer()
        texts = self._texts()
        prompts = [[data.eot_id, *tokenizer.encode(text, add_special_tokens=False).ids] for text in texts]
        length = max(map(len, prompts)) + self.max_new_tokens
        how = {
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": self.seed,
            "rope_base": self.rope_base or run.rope_base,
        }
        cells: list[Cell] = [{"prompt": text, "place": place, **how} for place, text in enumerate(texts)]

        def write(batch: slice, model: Transformer, advance: Callable[[float], None]) -> list[Scores]:
            new = generate(
                model,
                prompts[batch],
                max_new_tokens=self.max_new_tokens,
                sampling=Sampling(self.temperature, self.top_p),
                vocab_size=data.vocab_size,
                stop_token=data.eot_id,
                seed=self.seed,
                first=batch.start,
                on_step=lambda done, steps: advance(done / steps),
            )
            return [{"text": tokenizer.decode(tokens), "tokens": len(tokens)} for tokens in new]

        rows = max(1, machine.batch_tokens // length)
        batches = [slice(at, at + rows) for at in range(0, len(cells), rows)]
        return [Job(cells[batch], length, partial(write, batch)) for batch in batches]

    def _texts(self) -> list[str]:
        texts = list(self.prompts)
        if self.prompts_file is not None:
            file = user_path(self.prompts_file, "suite.prompts_file")
            format = format_of(file)
            if not file.is_file() or format is None:
                raise UserError(f"suite.prompts_file={file} is not a file that can be read: give one of {FORMATS}.")
            texts += ["".join(document.chunks) for document in read_documents(file, format)]
        if not texts:
            raise UserError(
                "suite.prompts is empty and suite.prompts_file null: give a prompt, as in suite.prompts=[def]."
            )
        return texts

    def show(self, run: TrainedRun, found: Sequence[tuple[Cell, Scores]], folder: Path) -> None:
        for cell, scores in found:
            print(f"{cell['prompt']}{scores['text']}\n")
