"""What a tokenizer's tokens stand for: bytes of text, or a document's end.

Two kinds give text back to the byte, so that bits per byte can be counted: every token stands for a fixed string of
bytes. Byte-level ones spell each byte as a character (GPT-2, Llama 3, Qwen); those with byte fallback spell text as it
is, a space as a mark, and bytes that no token holds as ``<0xNN>`` (Llama 2, Mistral, Gemma). Of others
``dma_lab.data.lossy`` says what they lose.
"""

import re

from tokenizers import Tokenizer, pre_tokenizers

from dma_lab.data.tokenizer_json import SPACE_MARK

EOT = "<|endoftext|>"
_EOTS = (EOT, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>", "<EOS>", "[EOS]", "[SEP]")
"""Of GPT-2 and many, Llama 3, DeepSeek, Llama 2 and T5, Gemma, …, BERT: the first that a tokenizer has is its EOT. One
that has none is given the first."""

BYTE_ALPHABET = pre_tokenizers.ByteLevel.alphabet()
_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")
# GPT-2's spelling: printable bytes are the character of their number, the others follow from 256 on.
_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_BYTES = {chr(byte): byte for byte in _PLAIN} | {
    chr(256 + place): byte for place, byte in enumerate(byte for byte in range(256) if byte not in _PLAIN)
}
_CHARACTERS = {byte: character for character, byte in _BYTES.items()}
_OF_NO_TEXT = {0xC0, 0xC1, *range(0xF5, 0x100)}
"""Bytes that UTF-8 has none of."""
_PROBE = "Ein Satz,  x,\tzwei\r\n\n don't — naïve “日本語” 🦉\x00 1234567 end \n"


def vocabulary_size(tokenizer: Tokenizer) -> int:
    """One more than the largest token id."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def has_eot(tokenizer: Tokenizer) -> bool:
    """Whether one of its special tokens is known to end documents."""
    return bool(_eots_of(tokenizer))


def eot_of(tokenizer: Tokenizer) -> str:
    """The EOT (end-of-text token), which every tokenizer has that ``dma_lab.data.tokenizer`` gives: the first of
    ``_EOTS`` that is special."""
    return _eots_of(tokenizer)[0]


def eot_id_of(tokenizer: Tokenizer) -> int:
    """The id of ``eot_of``."""
    eot_id = tokenizer.token_to_id(eot_of(tokenizer))
    assert eot_id is not None
    return eot_id


def keeps_text(tokenizer: Tokenizer) -> bool:
    """Whether its tokens stand for exactly the bytes of any text."""
    try:
        spelled = spelled_tokens(tokenizer)
        ids = tokenizer.encode(_PROBE, add_special_tokens=False).ids
    except Exception:  # no byte's spelling; or what no token holds, for which tokenizers raises plain Exception
        return False
    # Every byte must have its token; what the probe does not hold, the packer would meet in the middle of a corpus.
    if has_space_mark(tokenizer) is None:
        wanted = {_CHARACTERS[byte] for byte in range(256) if byte not in _OF_NO_TEXT}
    else:
        wanted = {f"<0x{byte:02X}>" for byte in range(256)}
    return wanted <= tokenizer.get_vocab().keys() and b"".join(spelled[index] for index in ids) == _PROBE.encode()


def spelled_tokens(tokenizer: Tokenizer) -> list[bytes]:
    """(vocabulary_size,): the bytes of UTF-8 text that each token stands for; none for the EOT and for unused ids.

    Raises:
        KeyError: a token spells no bytes: the tokenizer is of neither kind.
    """
    spelled = [b""] * vocabulary_size(tokenizer)
    added = tokenizer.get_added_tokens_decoder()
    marked = has_space_mark(tokenizer)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if marked is not None:
            byte = _FALLBACK.fullmatch(token)
            text = token.replace(SPACE_MARK, " ") if marked else token
            spelled[index] = bytes([int(byte[1], 16)]) if byte else text.encode("utf-8")
        elif index in added:  # spelled as they are
            spelled[index] = token.encode("utf-8")
        else:
            spelled[index] = bytes(_BYTES[character] for character in token)
    spelled[eot_id_of(tokenizer)] = b""
    return spelled


def has_space_mark(tokenizer: Tokenizer) -> bool | None:
    """Of a tokenizer with byte fallback, whether it spells a space as ``SPACE_MARK``; None of a byte-level one."""
    if not getattr(tokenizer.model, "byte_fallback", False):
        return None
    return tokenizer.normalizer is not None or isinstance(tokenizer.pre_tokenizer, pre_tokenizers.Metaspace)


def space_mark_ids(tokenizer: Tokenizer) -> list[int] | None:
    """How text that holds the mark itself is spelled, byte by byte, where a tokenizer takes the mark for a space."""
    if not has_space_mark(tokenizer):
        return None
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[f"<0x{byte:02X}>"] for byte in SPACE_MARK.encode("utf-8")]


def _eots_of(tokenizer: Tokenizer) -> list[str]:
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return [name for name in _EOTS if name in special]
