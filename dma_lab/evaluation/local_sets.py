"""Question sets in JSON-lines files as tasks of lm-eval's. What a file asks is seen by the keys of its lines:

    {"query": …, "choices": […], "gold": 0}               multiple choice: which answer is likeliest (acc), and which by
                                                          its length in characters (acc_norm)
    {"context_options": […], "continuation": …, "gold": 0}  after which beginning an ending is likeliest (acc)
    {"context": …, "continuation": …}                     cloze: is the ending what greedy decoding gives (acc), and how
                                                          likely is it (perplexity, of whole endings)
    {"context": …, "answer": …, "aliases": […]}           is the generated answer one of them (exact_match), whatever
                                                          its case and punctuation

Further keys are ignored. Prompts and scores are those of lm-eval's tasks of the same kind: an answer follows after a
space, and a query that begins with ``Question:`` is closed by a line ``Answer:``.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask, Task
from pydantic import ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dma_lab.data.digests import text_digest
from dma_lab.data.finding import user_path
from dma_lab.data.formats import format_of
from dma_lab.data.readers import read_objects
from dma_lab.evaluation.benchmarks import Benchmark
from dma_lab.messages import UserError

_MOST_NEW_TOKENS = 256
"""Of a generated answer, lm-eval's number. Fewer are generated where no right answer has as many."""
_ROOM = 8
"""Bytes that a right answer may have besides: spaces and punctuation, which do not count."""


class Choice(TypedDict):
    """The query's right answer is ``choices[gold]``."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    query: str
    choices: list[str]
    gold: int


class Schema(TypedDict):
    """The right beginning is ``context_options[gold]``."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    context_options: list[str]
    continuation: str
    gold: int


class Cloze(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    context: str
    continuation: str


class Answer(TypedDict):
    """``aliases`` are right too."""

    __pydantic_config__ = ConfigDict(strict=True)  # type: ignore[misc]
    context: str
    answer: str
    aliases: list[str]


_KINDS = (Choice, Schema, Answer, Cloze)


def local_benchmarks(path: str | list[str], max_length: int) -> list[Benchmark]:
    """The question sets of ``path``: files, or folders of them; each is named after its file.

    Raises:
        UserError: there is none, two have one name, or a line is none of the kinds.
    """
    files: list[Path] = []
    for given in [path] if isinstance(path, str) else path:
        place = user_path(given, "suite.path")
        found = sorted(file for file in place.iterdir() if _is_jsonl(file)) if place.is_dir() else [place]
        if not found or not all(_is_jsonl(file) and file.is_file() for file in found):
            raise UserError(
                f"suite.path={given} is neither a file of JSON lines nor a folder of them; give one that is."
            )
        files += found
    benchmarks = {}
    for file in files:
        name = file.name.split(".")[0]
        if name in benchmarks:
            raise UserError(f"suite.path holds two sets named {name}; rename one.")
        kind, rows = _read(file)
        digest = text_digest(repr(rows).encode("utf-8", "surrogatepass"))
        benchmarks[name] = Benchmark(name, {"digest": digest}, max_length, _loader(name, kind, rows))
    return list(benchmarks.values())


def _is_jsonl(file: Path) -> bool:
    return (format_of(file) or "").startswith(".jsonl")


def _read(file: Path) -> tuple[type, list[dict[str, Any]]]:
    kind: Any = None
    rows: list[dict[str, Any]] = []
    for row, where in read_objects(file, format_of(file) or ""):
        if not isinstance(row, dict):
            raise UserError(f"{where} is a {type(row).__name__}, not an object with a question's keys.")
        if kind is None:
            kind = next((kind for kind in _KINDS if kind.__required_keys__ <= row.keys()), None)
            if kind is None:
                kinds = " or ".join(" + ".join(sorted(kind.__required_keys__)) for kind in _KINDS)
                raise UserError(f"{where} is no question: it has {', '.join(row)}, and a question has {kinds}.")
        try:
            question: Any = TypeAdapter(kind).validate_python(row)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{where}: {key} {first['msg'][0].lower()}{first['msg'][1:]}.") from error
        options = question.get("choices", question.get("context_options"))
        if options is not None and not (len(options) > 1 and 0 <= question["gold"] < len(options)):
            raise UserError(
                f"{where}: gold={question['gold']} of {len(options)} options; gold counts from 0, and two options are "
                "the least."
            )
        if not all(options or [True]) or not question.get("continuation", True):
            raise UserError(f"{where} has an empty answer, which has no probability; leave the question out.")
        rows.append(question)
    if not rows:
        raise UserError(f"{file} has no question; give a file that has.")
    return kind, rows


def _loader(name: str, kind: type, rows: list[dict[str, Any]]) -> Callable[[], Task]:
    def load() -> Task:
        return ConfigurableTask(
            config={
                "task": name,
                "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
                "test_split": "test",
                "num_fewshot": 0,
                **_CONFIGS[kind],
                **(_generation(rows) if kind is Answer else {}),
            }
        )

    return load


def _generation(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As lm-eval's TriviaQA generates. A token is a byte at least: what is longer than all answers is none of them."""
    longest = max(len(answer.encode("utf-8", "surrogatepass")) for row in rows for answer in _right_answers(row))
    new_tokens = min(_MOST_NEW_TOKENS, longest + _ROOM)
    return {"generation_kwargs": {"until": ["\n", ".", ","], "do_sample": False, "max_gen_toks": new_tokens}}


def _right_answers(question: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([question["answer"], *question["aliases"]]))


def _prompt(question: Choice) -> str:
    query = question["query"].rstrip()
    return f"{query}\nAnswer:" if query.startswith("Question:") and not query.endswith("Answer:") else query


def _mean_of(*metrics: str) -> list[dict[str, Any]]:
    return [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in metrics]


_CONFIGS: dict[type, dict[str, Any]] = {
    Choice: {
        "output_type": "multiple_choice",
        "doc_to_text": _prompt,
        "doc_to_choice": lambda question: question["choices"],
        "doc_to_target": lambda question: question["gold"],
        "metric_list": _mean_of("acc", "acc_norm"),
    },
    Schema: {
        "output_type": "multiple_choice",
        "doc_to_text": lambda question: question["gold"],
        "doc_to_choice": lambda question: question["context_options"],
        "doc_to_target": lambda question: question["continuation"],
        "metric_list": _mean_of("acc"),
    },
    Cloze: {
        "output_type": "loglikelihood",
        "doc_to_text": lambda question: question["context"],
        "doc_to_target": lambda question: f" {question['continuation']}",
        "target_delimiter": "",
        "metric_list": [
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
            *_mean_of("acc"),
        ],
    },
    Answer: {
        "output_type": "generate_until",
        "doc_to_text": lambda question: question["context"],
        "doc_to_target": _right_answers,
        "filter_list": [
            {"name": "none", "filter": [{"function": "remove_whitespace"}, {"function": "take_first"}]},
        ],
        "metric_list": [
            {**_mean_of("exact_match")[0], "ignore_case": True, "ignore_punctuation": True},
        ],
    },
}
