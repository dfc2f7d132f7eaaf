"""Small tokenizers that lose text, made as BERT's, T5's and others are."""

import string

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from dma_lab.data.spelling import BYTE_ALPHABET

WORDS = ("the", "cat", "sat", "on", "mat", "cafe", "naive")
_LETTERS = [*string.ascii_lowercase, *string.digits, *".,:;!?'-()/"]


def bert(*, lowercase: bool = True) -> Tokenizer:
    """WordPiece over words of letters and over signs; its texts end with [SEP]."""
    letters = _LETTERS if lowercase else [*_LETTERS, *string.ascii_uppercase, *"éàüï"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *WORDS]
    tokenizer = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(tokens[:4])
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(16)
    return tokenizer


def t5(*, unknown: bool = True) -> Tokenizer:
    """Unigrams of words that begin with a mark, between which all white space is alike; its texts end with </s>."""
    letters = [*_LETTERS, *string.ascii_uppercase, *"éàü"]
    tokens = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{word}" for word in WORDS)]
    scores = [0.0 if index < 3 else -10.0 if len(token) == 1 else -3.0 for index, token in enumerate(tokens)]
    tokenizer = Tokenizer(models.Unigram(list(zip(tokens, scores, strict=True)), unk_id=2 if unknown else None))
    tokenizer.add_special_tokens(tokens[:3])
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def gpt() -> Tokenizer:
    """GPT-1's kind of BPE: letters, the last one of a word marked, no unknown token, no end of a text."""
    tokens = [*_LETTERS, *(f"{letter}</w>" for letter in _LETTERS)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


def bytes_without(character: str) -> Tokenizer:
    """Byte-level, with a token for all bytes but that which is spelled ``character``."""
    alphabet = sorted(set(BYTE_ALPHABET) - {character})
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
