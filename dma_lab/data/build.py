"""Settings to token files: found by what they are made of, or built beside their place and moved there whole."""

import errno
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from dma_lab.data.corpora import VALIDATES, Corpus
from dma_lab.data.digests import DigestCache, mapped_digest, text_digest
from dma_lab.data.finding import user_path
from dma_lab.data.hub import HubCorpus
from dma_lab.data.inventory import print_inventory, validation_sentence
from dma_lab.data.local import open_local
from dma_lab.data.packing import BATCH_CHARACTERS, PIECE_CHARACTERS, Packer, pieces
from dma_lab.data.partial import partial_of, put_in_place, remove_abandoned
from dma_lab.data.readers import Document
from dma_lab.data.settings import DataSettings
from dma_lab.data.spelling import EOT
from dma_lab.data.splits import ENOUGH_BYTES, ENOUGH_DOCUMENTS
from dma_lab.data.stdlib import StandardLibrary
from dma_lab.data.store import FILES, META_FILE, TOKENIZER_FILE, TokenData, TornCacheError
from dma_lab.data.tokenizer import (
    TRAINING_BYTES,
    check_trainable,
    load_tokenizer,
    tokenizer_digest,
    train_tokenizer,
)
from dma_lab.messages import UserError
from dma_lab.phases import phase
from dma_lab.progress import WorkProgress
from dma_lab.seals import sealed

FORMAT_VERSION = 3
"""To be raised whenever the same recipe would give other files."""

_MOST_UNKNOWN = 0.5
"""Of the tokens of text: beyond, a loss says how often the unknown token comes, and little else."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""What the system calls a full disk, a full quota and a file too large."""


def prepare_data(settings: DataSettings, tokens_needed: int) -> TokenData:
    """The token files that ``settings`` describe, built unless they are there.

    Args:
        tokens_needed: tokens the run trains on; how far a hub data set is read unless ``data.max_tokens`` says so.

    Raises:
        UserError: whatever a user can mend: no such file, damaged or unreadable text, an empty part, a tokenizer that
            does not fit, no network, a full disk.
    """
    cache_dir = user_path(settings.cache_dir, "data.cache_dir")
    try:
        return _prepare(settings, tokens_needed, cache_dir)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise UserError(
                f"No room left for token files under data.cache_dir={settings.cache_dir} ({error.strerror}); what was "
                "begun is removed. Free some space there, set another data.cache_dir, or a smaller data.max_tokens."
            ) from error
        raise UserError(
            f"{error.filename or cache_dir} cannot be read or written ({error.strerror}): give data.path and "
            f"data.cache_dir={settings.cache_dir} places that can be."
        ) from error


def _prepare(settings: DataSettings, tokens_needed: int, cache_dir: Path) -> TokenData:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # else it warns in every process that is forked later
    limit = settings.max_tokens
    if limit is None and settings.source == "hub":
        limit = tokens_needed + 1  # the last input's target is one token further
    vocab_size = check_trainable(settings.vocab_size) if settings.tokenizer == "bpe" else 0
    tokenizer = None if settings.tokenizer == "bpe" else load_tokenizer(settings.tokenizer)
    corpus = _open(settings, cache_dir)
    recipe: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "eot": EOT,
        "corpus": corpus.identity,
        "tokenizer": tokenizer_digest(tokenizer) if tokenizer else ["bpe", vocab_size, TRAINING_BYTES],
        "max_tokens": limit,
    }
    batch: int | None = None
    if limit is not None and settings.source != "hub":
        # Reading ends by what is written, which is up to three batches behind. (Of the hub it always was read in whole
        # ones, a small share of its budgets, and what a study was trained on stays what it is.)
        batch = recipe["batch_characters"] = min(BATCH_CHARACTERS, max(1024, limit // 16))
    folder = cache_dir / text_digest(json.dumps(recipe, sort_keys=True).encode())
    remove_abandoned(cache_dir)
    if folder.exists():
        try:
            return _opened(folder, recipe)
        except TornCacheError as error:
            _say(f"the token files in {folder} are damaged ({error}); building them again")
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        if tokenizer is None:
            tokenizer = train_tokenizer(_training_texts(corpus, settings.name), vocab_size)
        _build(partial, corpus, tokenizer, limit, batch, {"name": settings.name, "recipe": recipe})
        put_in_place(partial, folder, check=lambda: _opened(folder, recipe))
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already when all went well
    try:
        return _opened(folder, recipe)
    except TornCacheError as error:
        raise UserError(
            f"data.cache_dir={settings.cache_dir} does not keep what is written to it: {error} in {folder}, just "
            "after it was built; check that disk, or set another data.cache_dir."
        ) from error


def _opened(folder: Path, recipe: dict[str, Any]) -> TokenData:
    """The token files in ``folder``. Raises TornCacheError if they are damaged or made by another recipe."""
    with phase("reading the token files"):
        data = TokenData(folder)
    if data.meta["recipe"] != recipe:
        raise TornCacheError(f"{META_FILE} is of another corpus")
    return data


def _open(settings: DataSettings, cache_dir: Path) -> Corpus:
    if settings.source == "stdlib":
        return StandardLibrary(settings.validation_fraction)
    if settings.source == "hub":
        return HubCorpus(settings, cache_dir)
    digests = DigestCache(cache_dir)
    corpus = open_local(settings, digests)
    digests.save()
    return corpus


def _training_texts(corpus: Corpus, name: str) -> Iterator[str]:
    """The first ``TRAINING_BYTES`` of the training documents. Raises UserError if they hold none."""
    done = 0
    with WorkProgress("training the tokenizer") as progress:
        for document, _ in corpus.documents(training_only=True):
            for piece in pieces(document.chunks, PIECE_CHARACTERS):
                yield piece
                done += len(piece.encode("utf-8"))
                progress.update(max(done / TRAINING_BYTES, corpus.fraction_read()), f"{done / 1e6:.1f} MB of text")
                if done >= TRAINING_BYTES:
                    return
    if not done and (same := corpus.counts[VALIDATES]):
        raise UserError(
            f"data={name} has nothing to train on: all its {same:,} training documents are among those that validate, "
            "to the byte; set data.validation_path to other documents, or leave it out."
        )
    if not done:
        raise UserError(f"data={name} has no text at all to train on: check data.path and data.text_field.")


def _build(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, limit: int | None, batch: int | None, made_of: dict[str, Any]
) -> None:
    """Write the token files of ``corpus`` and, last, the meta.json that vouches for them."""
    beyond = Counter[str]()
    with closing(Packer(folder, tokenizer, batch)) as packer, WorkProgress("tokenizing") as progress:
        train, validation = packer.train, packer.validation
        for _ in packer.pack(_up_to(limit, corpus, packer, beyond)):
            done, seconds = train.text_bytes + validation.text_bytes, progress.seconds
            fraction = max(corpus.fraction_read(), train.tokens / limit if limit else 0.0)
            note = f"{done / 1e6:,.0f} MB of text, {train.tokens / 1e6:,.1f} M tokens, {done / 1e6 / seconds:.1f} MB/s"
            progress.update(fraction, note)
    corpus.refuse_change()
    _refuse_empty(made_of["name"], train.documents, validation.documents)
    if packer.lost and (unknown := packer.unknown_share()) > _MOST_UNKNOWN:
        raise UserError(
            f"data.tokenizer has no token for {unknown:.0%} of what it cuts data={made_of['name']} into: take one of "
            "the text's language and script, or bpe."
        )
    counts = +(corpus.counts + beyond + Counter({"empty documents left out": packer.empty_documents}))
    left = corpus.left + corpus.not_reached()
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    (folder / "token_bytes").write_bytes(packer.token_bytes.tobytes())
    parts = [train.digest.hexdigest(), validation.digest.hexdigest(), tokenizer_digest(tokenizer)]
    if corpus.split["by"] == "stretches":
        parts.append(json.dumps(corpus.split, sort_keys=True))
    meta = {
        "fingerprint": text_digest("".join(parts).encode()),
        **made_of,
        "dtype": packer.dtype,
        "vocab_size": len(packer.token_bytes),
        "eot_id": packer.eot_id,
        "unigram_entropy": packer.unigram_entropy(),
        "split": corpus.split,
        "train": {"documents": train.documents, "tokens": train.tokens, "text_bytes": train.text_bytes},
        "validation": {
            "documents": validation.documents,
            "effective_documents": validation.effective_documents(),
            "tokens": validation.tokens,
            "text_bytes": validation.text_bytes,
        },
        "taken": {kind: asdict(taken) for kind, taken in corpus.taken.items()},
        "left": dict(left),
        "counts": dict(counts),
        "files": {name: mapped_digest(folder / name) for name in FILES},
    }
    if packer.lost:
        meta |= {"tokenizer_loses": packer.lost, "unknown_share": packer.unknown_share()}
    (folder / META_FILE).write_text(sealed(meta), encoding="utf-8")
    _say(
        f"tokenized {made_of['name']}: {train.tokens:,} training and {validation.tokens:,} validation tokens of "
        f"{train.documents:,} and {validation.documents:,} documents in {progress.seconds:.1f} s"
    )
    if packer.lost:
        _say(f"{packer.unknown_share():.3%} of the training tokens are unknown ones")
    _say(validation_sentence(corpus.split, validation.documents, validation.effective_documents()))
    print_inventory(made_of["name"], corpus.taken, left, counts)


def _up_to(limit: int | None, corpus: Corpus, packer: Packer, beyond: Counter[str]) -> Iterator[tuple[Document, bool]]:
    """The documents of ``corpus`` until ``packer`` has ``limit`` training tokens, and documents enough to validate on.

    Between the two only those that validate are given; ``beyond`` counts the others.
    """
    for document, validates in corpus.documents():
        if limit and packer.train.tokens >= limit:
            held_out = packer.validation
            if corpus.set_apart or (held_out.documents >= 2 * ENOUGH_DOCUMENTS and held_out.text_bytes >= ENOUGH_BYTES):
                return
            if not validates:
                beyond["documents beyond data.max_tokens left out"] += 1
                continue
        yield document, validates


def _refuse_empty(name: str, training_documents: int, validation_documents: int) -> None:
    if training_documents + validation_documents == 0:
        raise UserError(f"data={name} has no text at all: check data.path and data.text_field.")
    if training_documents == 0 or validation_documents == 0:
        part = "training" if training_documents == 0 else "validation"
        raise UserError(
            f"data={name} has {training_documents + validation_documents:,} documents and none for {part}: set "
            "data.validation_path, change data.validation_fraction, or give more documents."
        )


def _say(message: str) -> None:
    print(f"dma_lab: {message}.", file=sys.stderr, flush=True)
