"""What a tokenizer loses of a text whose bytes its tokens do not stand for: BERT's lower case, T5's line ends, …

Found out by asking it: what differs and is given the same tokens is lost, and so is what is read as an unknown token or
as none. Nothing of that costs a model anything, so nats that such tokens cost say nothing per byte of the text.
"""

import json

from tokenizers import Tokenizer

from dma_lab.data.spelling import keeps_text

_ALIKE = {
    "capital letters": [("a", "A"), ("the", "The"), ("the", "THE")],
    "accents": [("e", "é"), ("a", "à"), ("u", "ü"), ("cafe", "café")],
    "forms of a character (ﬁ and fi)": [("fi", "ﬁ"), ("a", "ａ"), ("1", "¹"), ("é", "e\u0301")],
    "line ends": [("a b", "a\nb"), ("the the", "the\nthe")],
    "runs of spaces": [("a b", "a  b"), ("the the", "the  the")],
    "spaces around punctuation": [("a,", "a ,"), ("the.", "the .")],
    "spaces at a text's ends": [("a", "a "), ("a", " a"), ("the", " the ")],
    "control characters": [("a", "a\x00"), ("the", "\x02the")],
}
"""What is lost if two texts have the same tokens."""
_UNUSUAL = "{}<>\\~^`ßþЖק日한ก€→🦉\u2581"


def lost_by(tokenizer: Tokenizer) -> str | None:
    """What ``tokenizer`` loses of text, as a list in words; None of one that gives any text back to the byte."""
    if keeps_text(tokenizer):
        return None
    unknown = unknown_id_of(tokenizer)
    lost = [what for what, pairs in _ALIKE.items() if any(_are_alike(tokenizer, unknown, *pair) for pair in pairs)]
    if any(_is_lost(tokenizer, unknown, character) for character in _UNUSUAL):
        read_as = "left out" if unknown is None else f"read as {tokenizer.id_to_token(unknown)}"
        lost.append(f"characters that it has no token for ({read_as})")
    return ", ".join(lost) or "some text"


def unknown_id_of(tokenizer: Tokenizer) -> int | None:
    """The id of the token that stands for what no token holds; None if there is none such."""
    model = json.loads(tokenizer.to_str())["model"]
    if (index := model.get("unk_id")) is not None:
        return int(index)
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


def _are_alike(tokenizer: Tokenizer, unknown: int | None, one: str, other: str) -> bool:
    """Whether both have the same tokens, of which none is unknown."""
    ids = _encoded(tokenizer, one)
    return bool(ids) and unknown not in ids and ids == _encoded(tokenizer, other)


def _is_lost(tokenizer: Tokenizer, unknown: int | None, character: str) -> bool:
    ids = _encoded(tokenizer, character)
    decoded = tokenizer.decode(ids, skip_special_tokens=False)
    return unknown in ids or not decoded.strip() or "\ufffd" in decoded  # which stands for half a character


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    try:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    except Exception:  # plain, of a tokenizer that has no unknown token and would need one
        return []
