"""Causal attention: what computes it gives what the definition gives, and the table says which runs where."""

import sys

import pytest
import torch

from dma_lab.kernels import Documents, causal_attention
from dma_lab.kernels.causal import flash2, flash4, sdpa
from dma_lab.kernels.causal.attention import IMPLEMENTATIONS, which
from dma_lab.kernels.causal.problem import Problem
from dma_lab.kernels.choice import noted_kernels

N = 24
BF16 = torch.bfloat16
INSTALLED = {"flash-attn 4", "flash-attn 2"}


def brute_force(q, k, v, window, ids, scale):
    """The definition in float64, a query at a time."""
    q, k, v = (tensor.double() for tensor in (q, k, v))
    B, H, length, D = q.shape
    group = H // k.shape[1]
    rows = []
    for b in range(B):
        for h in range(H):
            for t in range(length):
                seen = [
                    j
                    for j in range(t + 1)
                    if (window is None or j > t - window) and (ids is None or ids[b, j] == ids[b, t])
                ]
                logits = (k[b, h // group, seen] @ q[b, h, t]) * (D**-0.5 if scale is None else scale)
                rows.append(logits.softmax(0) @ v[b, h // group, seen])
    return torch.stack(rows).view(B, H, length, -1)


@pytest.mark.parametrize(
    ("heads", "widths", "scale"),
    [((4, 4), (8, 8), None), ((4, 2), (8, 8), 0.2), ((4, 1), (8, 8), None), ((2, 2), (12, 8), 0.2)],
)
@pytest.mark.parametrize("window", [None, 1, 7, N])
@pytest.mark.parametrize("packed", [False, True])
def test_whatever_can_run_gives_what_the_definition_gives(heads, widths, scale, window, packed):
    torch.manual_seed(0)
    (H, K), (D, E) = heads, widths
    shapes = (2, H, N, D), (2, K, N, D), (2, K, N, E)
    exact = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    inputs = [tensor.detach().float().requires_grad_() for tensor in exact]
    ids = torch.stack((torch.arange(N) // 10, torch.arange(N) // 3)) if packed else None
    d_out = torch.randn(2, H, N, E, dtype=torch.float64)
    expected = brute_force(*exact, window, ids, scale)
    wanted = expected, *torch.autograd.grad(expected, exact, d_out)
    problem = Problem.of(*inputs, window=window, packed=packed)
    able = [each for each in IMPLEMENTATIONS if each.supports(problem) is None]
    names = ["PyTorch's SDPA"] if window is None and not packed else []
    assert [each.name for each in able] == [*names, "interval attention"]
    for implementation in able:
        out = implementation.attend(*inputs, window, ids, scale)
        found = out, *torch.autograd.grad(out, inputs, d_out.float())
        for each, reference in zip(found, wanted, strict=True):
            torch.testing.assert_close(each.double(), reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("window", "packed", "widths", "runs_on"),
    [
        (None, False, (8, 8), "PyTorch's SDPA"),
        (None, False, (12, 8), "PyTorch's SDPA"),
        (None, False, (8, 12), "interval attention (PyTorch)"),
        (None, True, (8, 8), "interval attention (PyTorch)"),
        (7, False, (8, 8), "interval attention (PyTorch)"),
        (N, False, (8, 8), "interval attention (PyTorch)"),  # on the CPU a window takes one way at every length
    ],
)
def test_what_runs_is_noted_and_is_the_first_that_can(window, packed, widths, runs_on, capfd):
    q, k, v = (torch.randn(1, 2, N, width) for width in (widths[0], *widths))
    ids = torch.zeros(1, N, dtype=torch.int64) if packed else None
    with noted_kernels() as names:
        out = causal_attention(q, k, v, window=window, document_ids=ids)
        causal_attention(q, k, v, window=window, document_ids=ids)
    assert names == [runs_on]
    index, reasons = which(Problem.of(q, k, v, window=window, packed=packed))
    assert runs_on.startswith(IMPLEMENTATIONS[index].name)
    assert list(reasons) == [each.name for each in IMPLEMENTATIONS[:index]]
    assert torch.equal(out, IMPLEMENTATIONS[index].attend(q, k, v, window, ids, None))
    assert capfd.readouterr().err == ""


HOPPER = Problem("cuda", (9, 0), BF16, H=6, K=3, D=128, E=128)
MLA = HOPPER._replace(H=6, K=6, D=192, E=128)


@pytest.mark.parametrize(
    ("problem", "installed", "runs_on"),
    [
        (HOPPER, INSTALLED, "flash-attn 4"),
        (HOPPER._replace(packed=True), INSTALLED, "flash-attn 4"),
        (HOPPER._replace(window=512, whole=False), INSTALLED, "flash-attn 4"),
        (HOPPER._replace(deterministic=True), INSTALLED, "flash-attn 4"),
        (HOPPER._replace(D=256, E=256), INSTALLED, "flash-attn 4"),
        (HOPPER._replace(capability=(10, 0), D=256, E=256), INSTALLED, "flash-attn 4"),
        (HOPPER._replace(capability=(10, 0), D=160, E=160), INSTALLED, "PyTorch's SDPA"),
        (MLA, INSTALLED, "flash-attn 4"),
        (MLA._replace(packed=True), INSTALLED, "flash-attn 4"),
        (MLA._replace(packed=True, K=3), INSTALLED, "interval attention"),  # groups of unequal widths
        (HOPPER, {"flash-attn 2"}, "cuDNN"),
        (HOPPER, set(), "cuDNN"),
        (MLA, {"flash-attn 2"}, "cuDNN"),
        (HOPPER._replace(window=512, whole=True), {"flash-attn 2"}, "cuDNN"),
        (HOPPER._replace(deterministic=True), {"flash-attn 2"}, "flash-attn 2"),
        (HOPPER._replace(single=True), {"flash-attn 2"}, "flash-attn 2"),
        (HOPPER._replace(packed=True), {"flash-attn 2"}, "flash-attn 2"),
        (HOPPER._replace(window=512, whole=False), {"flash-attn 2"}, "flash-attn 2"),
        (HOPPER._replace(packed=True, D=32, E=32), {"flash-attn 2"}, "interval attention"),
        (MLA._replace(packed=True), {"flash-attn 2"}, "interval attention"),
        (HOPPER._replace(packed=True), set(), "interval attention"),
        (HOPPER._replace(window=512, whole=False), set(), "interval attention"),
        (MLA._replace(D=96, E=64, deterministic=True), set(), "PyTorch's SDPA"),
        (HOPPER._replace(D=12, E=12), INSTALLED, "interval attention"),
        (HOPPER._replace(dtype=torch.float32), INSTALLED, "interval attention"),  # groups in float32
        (HOPPER._replace(dtype=torch.float32, K=6), INSTALLED, "PyTorch's SDPA"),
        (HOPPER._replace(dtype=torch.float64, K=6), INSTALLED, "interval attention"),
        (HOPPER._replace(capability=(8, 0)), INSTALLED, "flash-attn 2"),
        (HOPPER._replace(capability=(8, 0), D=80, E=80), INSTALLED, "PyTorch's SDPA"),
        (HOPPER._replace(capability=(8, 0)), set(), "PyTorch's SDPA"),
        (HOPPER._replace(capability=(7, 5), packed=True), INSTALLED, "interval attention"),
        (HOPPER._replace(device="cpu", capability=(0, 0)), INSTALLED, "PyTorch's SDPA"),
        (HOPPER._replace(device="cpu", capability=(0, 0), packed=True), INSTALLED, "interval attention"),
    ],
)
def test_the_table_chooses(problem, installed, runs_on, monkeypatch):
    for name, module in (("flash-attn 4", flash4), ("flash-attn 2", flash2)):
        reason = None if name in installed else "not installed"
        monkeypatch.setattr(module, "missing", lambda reason=reason: reason)
    monkeypatch.setattr(sdpa, "_cudnn_version", lambda: 91900)
    index, reasons = which(problem)
    assert IMPLEMENTATIONS[index].name == runs_on
    assert all(reasons.values())


def test_a_cudnn_that_errs_at_some_lengths_is_passed_over(monkeypatch):
    monkeypatch.setattr(sdpa, "_cudnn_version", lambda: 91400)
    assert sdpa.cudnn_supports(HOPPER) == "cuDNN 91400 is older than 91501"


def test_packages_that_are_not_there_say_so():
    """As on the machines that these tests run on."""
    for module in (flash4, flash2):
        try:
            __import__("flash_attn")
        except ImportError:
            assert module.missing() == "not installed"


@pytest.fixture
def both_versions(tmp_path, monkeypatch):
    """Packages like flash-attn 2, which brings an old ``cute`` that fails where new libraries are, and flash-attn 4."""
    old, new = tmp_path / "old", tmp_path / "new"
    for file, text in {
        old / "flash_attn/__init__.py": "version = 2",
        old / "flash_attn/cute/__init__.py": "",
        old / "flash_attn/cute/interface.py": "import math; math.thread_mma",
        new / "flash_attn/cute/__init__.py": "",
        new / "flash_attn/cute/interface.py": "version = 4",
        new / "flash_attn_4-4.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: flash-attn-4\nVersion: 4.0\n",
    }.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    forget = [name for name in sys.modules if name.split(".")[0] == "flash_attn"]
    for name in forget:
        monkeypatch.delitem(sys.modules, name)
    yield lambda *folders: [monkeypatch.syspath_prepend(folder) for folder in reversed(folders)], old, new
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        del sys.modules[name]


def test_flash_attn_4_is_found_beside_flash_attn_2_that_hides_it(both_versions):
    search, old, new = both_versions
    search(old, new)
    assert flash4.missing() is None
    import flash_attn.cute.interface

    assert (flash_attn.version, flash_attn.cute.interface.version) == (2, 4)


def test_a_package_that_fails_when_imported_is_passed_over(both_versions):
    search, old, new = both_versions
    (new / "flash_attn/cute/interface.py").write_text("import math; math.thread_mma")
    search(old, new)
    assert flash4.missing().startswith("it cannot be imported: AttributeError: module 'math' has no attribute")


def test_bad_input_is_named():
    q, k = torch.randn(1, 4, 8, 16), torch.randn(1, 2, 8, 16)
    for said, arguments, options in (
        ("window=0", (q, k, k), {"window": 0}),
        ("a divisor of 4", (q, torch.randn(1, 3, 8, 16), torch.randn(1, 3, 8, 16)), {}),
        ("v must have shape", (q, k, torch.randn(1, 2, 7, 16)), {}),
        ("four dimensions", (q[0], k, k), {}),
    ):
        with pytest.raises(ValueError, match=said):
            causal_attention(*arguments, **options)


def test_documents_know_where_they_lie():
    ids = torch.tensor([[0, 0, 0, 1, 2, 2], [5, 5, 5, 5, 5, 5]], dtype=torch.int32)
    documents = Documents.of(ids)
    assert documents.start_bn.tolist() == [[0, 0, 0, 3, 4, 4], [0] * 6]
    assert documents.end_bn.tolist() == [[3, 3, 3, 4, 6, 6], [6] * 6]
    assert documents.offsets.tolist() == [0, 3, 4, 6, 12]
    assert (documents.offsets.dtype, int(documents.longest)) == (torch.int32, 6)
    assert Documents.of(documents) is documents
    moved = documents.to(torch.device("meta"))
    assert {moved.ids.device.type, moved.start_bn.device.type, moved.end_bn.device.type} == {"meta"}
    assert (moved.offsets.device.type, moved.longest.device.type) == ("meta", "cpu")
    for wrong in (ids.float(), ids[0]):
        with pytest.raises(ValueError, match="document_ids must"):
            Documents.of(wrong)
