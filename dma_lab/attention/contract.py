"""The contract of ``base.AttentionBackend`` as checks for any test suite, dma_lab's own and others'::

    @pytest.mark.parametrize("case", cases("mine", {}, {"window": 5}), ids=str)
    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_contract(check, case):
        check(case)

A check raises AssertionError. Sizes are small: 32 wide, 4 heads of 8, 64 tokens, random weights, on the CPU.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import GradcheckError
from torch.utils.flop_counter import FlopCounterMode

from dma_lab.attention.base import AttentionBackend, AttentionShape
from dma_lab.attention.config import AttentionConfig
from dma_lab.attention.rope import Rotary
from dma_lab.kernels import Documents

WIDTH, HEAD_DIM, CONTEXT = 32, 8, 64
_KV_HEADS = (4, 2, 1)
"""Of 4 heads: MHA, GQA, MQA."""


@dataclass(frozen=True)
class Case:
    """A backend with options and numbers of heads."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    n_heads: int = 4
    n_kv_heads: int = 2
    products: Callable[[AttentionBackend, int], int] | None = None
    """FLOPs of the matrix products that ``forward`` executes on the CPU for one sequence of so many tokens, beside the
    projections, with documents given; unless given, every head's scores and value sums over the whole square.
    """

    def __str__(self) -> str:
        return f"{self.name}-{self.n_heads}-{self.n_kv_heads}-{dict(self.options)}"

    def build(self, max_seq_len: int = CONTEXT, dtype: torch.dtype = torch.float64) -> AttentionBackend:
        """With weights away from zeros and ones, which would hide mistakes."""
        torch.manual_seed(0)
        attention = self.initial(max_seq_len).to(dtype)
        with torch.no_grad():
            for parameter in attention.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        return attention

    def initial(self, max_seq_len: int = CONTEXT) -> AttentionBackend:
        """As a model has it before ``initialise``."""
        shape = AttentionShape(WIDTH, self.n_heads, self.n_kv_heads, HEAD_DIM, max_seq_len)
        return AttentionConfig.of(self.name, self.options).build(shape)


def cases(name: str, *options: Mapping[str, Any]) -> list[Case]:
    """The backend with each of these options, in each of MHA, GQA and MQA."""
    return [Case(name, given, 4, kv_heads) for kv_heads in _KV_HEADS for given in options or ({},)]


def noise(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def shape_and_dtype(case: Case) -> None:
    """(B, N, M) comes back as (B, N, M), of the same dtype and finite."""
    for dtype in (torch.float32, torch.bfloat16):
        out = case.build(dtype=dtype)(noise(2, CONTEXT, WIDTH, dtype=dtype))
        _hold(out.shape == (2, CONTEXT, WIDTH), f"x of shape (2, {CONTEXT}, {WIDTH}) came back as {tuple(out.shape)}")
        _hold(out.dtype == dtype, f"x of {dtype} came back as {out.dtype}")
        _hold(bool(out.isfinite().all()), f"of finite {dtype} came numbers that are not")


def causality(case: Case) -> None:
    """Later tokens change no bit of what is before them, and do change what is at them."""
    attention, x = case.build(dtype=torch.float32), noise(2, CONTEXT, WIDTH, dtype=torch.float32)
    out = attention(x)
    for t in (0, 17, 40, CONTEXT - 2):
        changed = x.clone()
        changed[:, t + 1 :] = 10 * noise(2, CONTEXT - 1 - t, WIDTH, dtype=torch.float32)
        out_changed = attention(changed)
        _hold(torch.equal(out_changed[:, : t + 1], out[:, : t + 1]), f"tokens after {t} changed outputs up to {t}")
        _hold(not torch.equal(out_changed[:, t + 1 :], out[:, t + 1 :]), f"outputs after {t} do not see their tokens")


def documents(case: Case) -> None:
    """Packed documents see nothing of each other, bit for bit, and wherever one lies it comes to the same."""
    attention, x = case.build(), noise(1, CONTEXT, WIDTH)
    lengths = [1, 30, 12, 21]
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))[None]
    packed = attention(x, ids)
    _hold(torch.equal(attention(x, Documents.of(ids)), packed), "Documents gave another output than their ids")
    start = 0
    for number, length in enumerate(lengths):
        own = slice(start, start + length)
        others_changed = -3 * x
        others_changed[:, own] = x[:, own]
        _hold(
            torch.equal(attention(others_changed, ids)[:, own], packed[:, own]),
            f"document {number} of a packed row sees tokens of others",
        )
        # To float32's error, which rotary tables have in every dtype.
        _close(attention(x[:, own]), packed[:, own], 1e-5, 1e-5, f"a document at position {start}, and alone at 0")
        start += length


def steps_and_cache(case: Case) -> None:
    """``step`` equals ``forward`` token by token, and the cache's storage is ``cache_bytes``."""
    tokens = 300  # many times all windows and blocks of the cases, and some times those by default
    attention, x = case.build(tokens), noise(2, tokens, WIDTH)
    with torch.no_grad():
        out, cache = attention(x), attention.new_cache(2)
        for t in range(tokens):
            _close(attention.step(x[:, t : t + 1], cache), out[:, t : t + 1], 1e-8, 1e-9, f"step and forward at {t}")
            if t in (0, 3, 4, 7, 100, tokens - 1):
                held, said = _bytes_held(cache), 2 * attention.cache_bytes(t + 1, torch.float64)
                _hold(held == said, f"after {t + 1} tokens the cache holds {held} bytes and cache_bytes says {said}")
        _refuses(lambda: attention.step(x[:, :1], cache), f"{tokens}", f"a step past max_seq_len={tokens}")


def gradients(case: Case) -> None:
    """Of inputs and parameters, those of finite differences in float64."""
    attention = case.build()
    names = [name for name, _ in attention.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> Any:
        return torch.func.functional_call(attention, dict(zip(names, values, strict=True)), (x,))

    inputs = [noise(1, 9, WIDTH), *(parameter.detach().clone() for parameter in attention.parameters())]
    inputs = [value.requires_grad_() for value in inputs]
    try:
        torch.autograd.gradcheck(function, inputs, fast_mode=True)
    except GradcheckError as error:
        raise AssertionError(f"gradients are not those of finite differences: {error}") from error


def flops(case: Case) -> None:
    """``flops`` says what PyTorch counts; the reference path computes whole squares where it counts pairs that live."""
    attention = case.build()
    for tokens in (16, 40, CONTEXT):
        with FlopCounterMode(display=False) as counter:
            # Documents given, so that dense attention too takes the path of plain matrix products.
            attention(noise(1, tokens, WIDTH), torch.zeros(1, tokens, dtype=torch.int64))
        said = attention.flops(tokens)
        square = said.mixing_dense * 2 * tokens // (tokens + 1)
        expected = said.projections + (square if case.products is None else case.products(attention, tokens))
        counted = counter.get_total_flops()
        _hold(
            counted == expected, f"over {tokens} tokens PyTorch counts {counted} FLOP where flops makes it {expected}"
        )


def weights(case: Case) -> None:
    """A model's seed alone decides its weights, the parameters alone its shape, and what is saved restores it.

    ``initialise`` draws linear maps and embeddings; anything else must begin the same every time, and be saved unless
    it is a rotary table.
    """
    torch.manual_seed(1)
    first = case.initial()
    torch.manual_seed(2)
    again = case.initial().state_dict()
    drawn = {
        f"{name}.{part}"
        for name, module in first.named_modules()
        if isinstance(module, nn.Linear | nn.Embedding)
        for part in ("weight", "bias")
    }
    for name, value in first.state_dict().items():
        _hold(name in drawn or torch.equal(value, again[name]), f"{name} begins at other values each time it is built")
    tables = {
        f"{name}.{table}"
        for name, module in first.named_modules()
        if isinstance(module, Rotary)
        for table, _ in module.named_buffers()
    }
    for name, _ in first.named_buffers():
        _hold(name in again or name in tables, f"the buffer {name} is not saved (persistent=False)")
    with torch.device("meta"):
        meta = case.initial().state_dict()
    shapes = {name: value.shape for name, value in first.state_dict().items()}
    _hold({name: value.shape for name, value in meta.items()} == shapes, "on the meta device its weights are others")


def options_settled(case: Case) -> None:
    """What options leave to the context is decided as training's has it: a longer context changes nothing."""
    attention = case.build()
    settled = Case(case.name, asdict(attention.options), case.n_heads, case.n_kv_heads)
    longer = settled.build(4 * CONTEXT)
    longer.load_state_dict(attention.state_dict())
    x = noise(1, CONTEXT, WIDTH)
    _hold(torch.equal(longer(x), attention(x)), "built with its own options for a longer context it computes otherwise")


def bad_input(case: Case) -> None:
    """Raises ValueError with the numbers (``check_input`` does)."""
    attention, x = case.build(), noise(2, CONTEXT, WIDTH)
    ids = torch.zeros(2, CONTEXT - 1, dtype=torch.int64)
    _refuses(lambda: attention(x, ids), f"{CONTEXT - 1}", f"{CONTEXT - 1} document ids for {CONTEXT} tokens")
    _refuses(lambda: attention(x, torch.zeros(2, CONTEXT)), "float", "document ids that are floats")
    _refuses(lambda: attention(noise(2, CONTEXT + 1, WIDTH)), f"{CONTEXT + 1}", "more tokens than max_seq_len")
    _refuses(lambda: attention(noise(2, 8, WIDTH - 1)), f"{WIDTH - 1}", "another width than d_model")


CHECKS: tuple[Callable[[Case], None], ...] = (
    shape_and_dtype, causality, documents, steps_and_cache, gradients, flops, weights, options_settled, bad_input
)  # fmt: skip


def _bytes_held(cache: Any) -> int:
    """Storage, not shape: a view would keep what it does not show. A cache may hold caches."""
    return sum(tensor.untyped_storage().nbytes() for tensor in _tensors(cache))


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
        return
    inner = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    for value in (*inner, *getattr(node, "__dict__", {}).values()):
        yield from _tensors(value)


def _close(value: Tensor, expected: Tensor, rtol: float, atol: float, what: str) -> None:
    torch.testing.assert_close(value, expected, rtol=rtol, atol=atol, msg=lambda said: f"{what}: {said}")


def _refuses(call: Callable[[], object], said: str, what: str) -> None:
    try:
        call()
    except ValueError as error:
        _hold(said in str(error), f"refusing {what} it does not name {said}: {error}")
    except Exception as error:
        raise AssertionError(f"given {what} it raises {type(error).__name__}, not ValueError: {error}") from error
    else:
        raise AssertionError(f"it takes {what}")


def _hold(held: bool, otherwise: str) -> None:
    if not held:
        raise AssertionError(otherwise)
