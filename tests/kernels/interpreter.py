"""Triton's interpreter without what it does again and again: three quarters of the time of tests under it.

Nothing that a kernel computes is computed otherwise: what is made once here is equal to what it would have made.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import triton
import triton.language as tl
from triton.runtime import interpreter

_TRITON = "3.9."


@pytest.fixture
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests in a process whose TRITON_INTERPRET is set.

    Under another Triton, whose private parts may be others, they take their time.
    """
    if not triton.__version__.startswith(_TRITON):
        return
    monkeypatch.setattr(interpreter, "_patch_lang", _patch_what_is_not(interpreter._patch_lang))
    monkeypatch.setattr(interpreter, "_get_np_dtype", _known_by_name(interpreter._get_np_dtype))
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", _reduce_slices)
    monkeypatch.setattr(tl.tensor, "__init__", _tensor_of_known_shape())
    monkeypatch.setattr(tl.block_type, "__init__", _known_block_type(tl.block_type.__init__))


def _patch_what_is_not(patch: Callable[..., Any]) -> Callable[..., Any]:
    """The functions of the language are replaced when a kernel is launched, and looked through again at every call of
    a device function."""

    def patched(function: Callable[..., Any]) -> Any:
        languages = [value for value in function.__globals__.values() if value is tl or value is tl.core]
        replaced = not any(tl.core.is_builtin(language.load) for language in languages)
        return interpreter._LangPatchScope() if replaced else patch(function)

    return patched


def _known_by_name(np_dtype: Callable[[tl.dtype], np.dtype]) -> Callable[[tl.dtype], np.dtype]:
    """The table of types is made anew at every look."""
    known: dict[str, np.dtype] = {}

    def looked_up(dtype: tl.dtype) -> np.dtype:
        name = dtype.scalar.name
        if name not in known:
            known[name] = np_dtype(dtype)
        return known[name]

    return looked_up


def _reduce_slices(self: Any, inputs: tuple[Any, ...]) -> list[Any]:
    """A reduction by a kernel's own function, in the same order, but of whole slices instead of element by element."""
    axis = 0 if self.axis is None else self.axis
    arrays = [each.handle.data.reshape(-1) if self.axis is None else each.handle.data for each in inputs]
    slices = [[np.take(array, i, axis) for array in arrays] for i in range(arrays[0].shape[axis])]
    tensors = [
        tuple(self.to_tensor(one, each.dtype) for one, each in zip(of_all, inputs, strict=True)) for of_all in slices
    ]

    def combine(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> tuple[Any, ...]:
        found = self.combine_fn.fn(*ours, *theirs)
        return found if isinstance(found, tuple) else (found,)

    outputs = [each.handle.data.reshape(slices[0][0].shape) for each in functools.reduce(combine, tensors)]
    if self.keep_dims:
        shape = [1] * len(inputs[0].shape) if self.axis is None else None
        outputs = [np.expand_dims(each, axis) if shape is None else each.reshape(shape) for each in outputs]
    return [self.to_tensor(output, each.dtype) for output, each in zip(outputs, inputs, strict=True)]


def _tensor_of_known_shape() -> Callable[..., None]:
    shapes: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def init(self: Any, handle: Any, type: tl.dtype) -> None:
        shape = tuple(type.shape.values) if type.is_block() else ()
        if shape not in shapes:
            shapes[shape] = tl.constexpr(math.prod(shape)), tl.tuple([tl.constexpr(size) for size in shape])
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = shapes[shape]

    return init


def _known_block_type(make: Callable[..., None]) -> Callable[..., None]:
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def init(self: Any, element: tl.dtype, shape: Any) -> None:
        key = (element.name, *(size.value if isinstance(size, tl.constexpr) else size for size in shape))
        if key in known:
            self.__dict__.update(known[key])
        else:
            make(self, element, shape)
            known[key] = self.__dict__.copy()

    return init
