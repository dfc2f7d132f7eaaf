"""What a ``tokenizer.json`` does to text beside cutting it."""

from typing import Any

SPACE_MARK = "\u2581"
_REPLACE_SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}


def leave_out_changes(described: dict[str, Any]) -> list[str]:
    """Take out of a tokenizer.json what changes the text, adds to it or draws lots; returns what that was."""
    left_out = []
    fallback = described["model"].get("byte_fallback", False)
    metaspace = [part for part in _parts(described["pre_tokenizer"]) if part["type"] == "Metaspace"]
    kept: list[dict[str, Any]] = []
    for part in _parts(described["normalizer"]):
        if fallback and part == _REPLACE_SPACES:
            kept = [] if metaspace else [part]
        elif part["type"] == "ByteLevel":
            kept = [part]
        else:
            left_out.append(part["type"])
    described["normalizer"] = kept[0] if kept else None
    for part in _parts(described["pre_tokenizer"]):
        if part.get("add_prefix_space", False):
            left_out.append("a space in front")
            part["add_prefix_space"] = False
        if part["type"] == "Metaspace" and part.get("prepend_scheme") != "never":
            left_out.append("a space in front")
            part["prepend_scheme"] = "never"
    if fallback:
        decode: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
        if kept or metaspace:
            decode.insert(0, {"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "})
        described["decoder"] = {"type": "Sequence", "decoders": decode}
    for token in described["added_tokens"]:
        if not token["special"] and (token["lstrip"] or token["rstrip"]):  # special ones are no text anyway
            left_out.append(f"spaces beside {token['content']}")
            token["lstrip"] = token["rstrip"] = False
    return left_out + leave_out_additions(described)


def leave_out_additions(described: dict[str, Any]) -> list[str]:
    """Take out of a tokenizer.json what adds to the text, as a BOS, or draws lots; returns what lots it would draw."""
    described["post_processor"] = None
    if not described["model"].get("dropout"):
        return []
    described["model"]["dropout"] = None
    return ["dropout"]


def _parts(node: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer of a tokenizer.json as the list of its steps."""
    if node is None:
        return []
    if node["type"] != "Sequence":
        return [node]
    return [part for step in node.get("normalizers", node.get("pretokenizers", [])) for part in _parts(step)]
