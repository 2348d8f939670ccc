"""Triton kernels for the attention of packed spots of variable length. Import this module only when it is needed.

Shapes: B spots, T positions of all spots, H heads, D width of a head. All sums are in float32, in a fixed order.

PyTorch's own kernels (FlashAttention 2) lose more than half of their time at heads of width 32, and return three
gradients that must be joined. These kernels read q, k and v from one tensor (T, 3, H, D), and write its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    _jit: Callable[..., Any] = triton.jit
except ImportError:  # PyTorch without CUDA: the module can be imported, but not used

    def _jit(function: Any = None, **_: object) -> Any:
        return _jit if function is None else function


__all__ = ["backward", "forward", "sums_length"]

_LOG2E = 1.4426950408889634
_ALIGNED = 128  # sums of a spot's positions begin at a multiple of this: the tallest block of rows


class _Shape(NamedTuple):
    rows: int  # positions computed by a program
    columns: int  # positions read at a time
    warps: int
    stages: int


# Fastest shapes on an H100, by width of a head. Rows divide _ALIGNED, so that no program writes into
# the sums of the next spot; columns of _DKV divide rows of _FORWARD, so that none reads sums that were not written.
_FORWARD = {32: _Shape(64, 64, 4, 3), 64: _Shape(64, 64, 4, 3)}
_DQ = {32: _Shape(64, 64, 4, 3), 64: _Shape(64, 64, 4, 3)}
_DKV = {32: _Shape(128, 32, 4, 4), 64: _Shape(64, 32, 4, 3)}


def sums_length(n_positions: int, n_spots: int) -> int:
    """Length of a head's sums: one float32 per position, with every spot aligned to a multiple of 128."""
    return (n_positions // _ALIGNED + n_spots + 1) * _ALIGNED


def forward(qkv: Tensor, starts: Tensor, keys: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Attention of each spot to itself.

    Parameters
    ----------
    qkv
        (T, 3, H, D), contiguous, in half precision.
    starts
        (B + 1,) start of each spot, int64.
    keys
        (B,) number of leading positions of each spot that are keys; at least 1.
    longest
        Positions of the longest spot.

    Returns
    -------
    (T, H, D), and for `backward` the logarithms (base 2) of the sums of softmax (H, `sums_length`).
    """
    T, _, H, D = qkv.shape
    shape = _FORWARD[D]
    out = torch.empty(T, H, D, device=qkv.device, dtype=qkv.dtype)
    lse = torch.empty(H, sums_length(T, len(keys)), device=qkv.device)
    _forward_kernel[_grid(shape, longest, H, len(keys))](
        qkv, out, lse, starts, keys, lse.shape[1], D**-0.5 * _LOG2E, H=H, D=D, BM=shape.rows, BN=shape.columns,
        STAGES=shape.stages, num_warps=shape.warps,
    )  # fmt: skip
    return out, lse


def backward(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, starts: Tensor, keys: Tensor, longest: int) -> Tensor:
    """Gradient of `qkv`, (T, 3, H, D), from that of the output; all contiguous, and as in `forward`."""
    _, _, H, D = qkv.shape
    scale, found, delta = D**-0.5, torch.empty_like(qkv), torch.empty_like(lse)
    shape = _DQ[D]
    _dq_kernel[_grid(shape, longest, H, len(keys))](
        qkv, out, grad, lse, delta, found, starts, keys, lse.shape[1], scale * _LOG2E, scale, H=H, D=D, BM=shape.rows,
        BN=shape.columns, STAGES=shape.stages, num_warps=shape.warps,
    )  # fmt: skip
    shape = _DKV[D]
    _dkv_kernel[_grid(shape, longest, H, len(keys))](
        qkv, grad, lse, delta, found, starts, keys, lse.shape[1], scale * _LOG2E, scale, H=H, D=D, BN=shape.rows,
        BM=shape.columns, STAGES=shape.stages, num_warps=shape.warps,
    )  # fmt: skip
    return found


def _grid(shape: _Shape, longest: int, heads: int, spots: int) -> tuple[int, int, int]:
    return -(-longest // shape.rows), heads, spots


@_jit
def _span(starts, keys):
    # Training sorts spots by length, longest last; the longest run first, so that none of them delays the end.
    spot = tl.num_programs(2) - 1 - tl.program_id(2)
    first = tl.load(starts + spot).to(tl.int64)
    n_q = (tl.load(starts + spot + 1) - first).to(tl.int32)
    n_k = tl.load(keys + spot).to(tl.int32)
    aligned = (first // 128 + spot) * 128
    return first, n_q, n_k, aligned


@_jit
def _forward_block(q, k_ptr, v_ptr, c, acc, m, total, j, n_k, ROW: tl.constexpr, D: tl.constexpr, BN: tl.constexpr,
                   MASKED: tl.constexpr):  # fmt: skip
    cols = j + tl.arange(0, BN)
    d = tl.arange(0, D)
    if MASKED:
        k = tl.load(k_ptr + cols[:, None] * ROW + d[None, :], mask=cols[:, None] < n_k, other=0.0)
        v = tl.load(v_ptr + cols[:, None] * ROW + d[None, :], mask=cols[:, None] < n_k, other=0.0)
    else:
        k = tl.load(k_ptr + cols[:, None] * ROW + d[None, :])
        v = tl.load(v_ptr + cols[:, None] * ROW + d[None, :])
    s = tl.dot(q, tl.trans(k))
    if MASKED:
        s = tl.where(cols[None, :] < n_k, s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    mc = m_new * c
    alpha = tl.math.exp2(m * c - mc)
    p = tl.math.exp2(s * c - mc[:, None])
    total = total * alpha + tl.sum(p, 1)
    acc = acc * alpha[:, None]
    acc = tl.dot(p.to(v.dtype), v, acc)
    return acc, m_new, total


@_jit(do_not_specialize=["Tp"])
def _forward_kernel(qkv, out, lse, starts, keys, Tp, c, H: tl.constexpr, D: tl.constexpr, BM: tl.constexpr,
                    BN: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    first, n_q, n_k, aligned = _span(starts, keys)
    ROW: tl.constexpr = 3 * H * D
    i = tl.program_id(0) * BM
    h = tl.program_id(1)
    if i >= n_q:
        return
    rows = i + tl.arange(0, BM)
    d = tl.arange(0, D)
    there = rows[:, None] < n_q
    q_ptr = qkv + first * ROW + h * D
    k_ptr = q_ptr + H * D
    v_ptr = k_ptr + H * D
    q = tl.load(q_ptr + rows[:, None] * ROW + d[None, :], mask=there, other=0.0)
    acc = tl.zeros([BM, D], tl.float32)
    m = tl.full([BM], -1.0e30, tl.float32)
    total = tl.zeros([BM], tl.float32)
    full = n_k // BN * BN
    for j in tl.range(0, full, BN, num_stages=STAGES):
        acc, m, total = _forward_block(q, k_ptr, v_ptr, c, acc, m, total, j, n_k, ROW, D, BN, False)
    if full < n_k:
        acc, m, total = _forward_block(q, k_ptr, v_ptr, c, acc, m, total, full, n_k, ROW, D, BN, True)
    acc = acc / total[:, None]
    o_at = out + first * (H * D) + h * D + rows[:, None] * (H * D) + d[None, :]
    tl.store(o_at, acc.to(out.dtype.element_ty), mask=there)
    # Infinity after a spot's end, so that these rows have the weight 0 in `_dkv_kernel`.
    tl.store(
        lse + h.to(tl.int64) * Tp + aligned + rows, tl.where(rows < n_q, m * c + tl.math.log2(total), float("inf"))
    )


@_jit
def _dq_block(q, do, lse, delta, k_ptr, v_ptr, c, acc, j, n_k, ROW: tl.constexpr, D: tl.constexpr, BN: tl.constexpr,
              MASKED: tl.constexpr):  # fmt: skip
    cols = j + tl.arange(0, BN)
    d = tl.arange(0, D)
    if MASKED:
        k = tl.load(k_ptr + cols[:, None] * ROW + d[None, :], mask=cols[:, None] < n_k, other=0.0)
        v = tl.load(v_ptr + cols[:, None] * ROW + d[None, :], mask=cols[:, None] < n_k, other=0.0)
    else:
        k = tl.load(k_ptr + cols[:, None] * ROW + d[None, :])
        v = tl.load(v_ptr + cols[:, None] * ROW + d[None, :])
    s = tl.dot(q, tl.trans(k))
    dp = tl.dot(do, tl.trans(v))
    p = tl.math.exp2(s * c - lse[:, None])
    if MASKED:  # exp2 of (0 - lse) may overflow, and inf * 0 is nan
        p = tl.where(cols[None, :] < n_k, p, 0.0)
    ds = p * (dp - delta[:, None])
    return tl.dot(ds.to(k.dtype), k, acc)


@_jit(do_not_specialize=["Tp"])
def _dq_kernel(qkv, out, dout, lse, delta, dqkv, starts, keys, Tp, c, scale, H: tl.constexpr, D: tl.constexpr,
               BM: tl.constexpr, BN: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    # Also writes `delta`, the sums of output times gradient, which `_dkv_kernel` needs.
    first, n_q, n_k, aligned = _span(starts, keys)
    ROW: tl.constexpr = 3 * H * D
    i = tl.program_id(0) * BM
    h = tl.program_id(1)
    if i >= n_q:
        return
    rows = i + tl.arange(0, BM)
    d = tl.arange(0, D)
    there = rows[:, None] < n_q
    q_at = first * ROW + h * D + rows[:, None] * ROW + d[None, :]
    k_ptr = qkv + first * ROW + h * D + H * D
    v_ptr = k_ptr + H * D
    o_at = first * (H * D) + h * D + rows[:, None] * (H * D) + d[None, :]
    q = tl.load(qkv + q_at, mask=there, other=0.0)
    o = tl.load(out + o_at, mask=there, other=0.0)
    do = tl.load(dout + o_at, mask=there, other=0.0)
    sums_at = h.to(tl.int64) * Tp + aligned + rows
    own_lse = tl.load(lse + sums_at)
    own_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + sums_at, own_delta)
    acc = tl.zeros([BM, D], tl.float32)
    full = n_k // BN * BN
    for j in tl.range(0, full, BN, num_stages=STAGES):
        acc = _dq_block(q, do, own_lse, own_delta, k_ptr, v_ptr, c, acc, j, n_k, ROW, D, BN, False)
    if full < n_k:
        acc = _dq_block(q, do, own_lse, own_delta, k_ptr, v_ptr, c, acc, full, n_k, ROW, D, BN, True)
    tl.store(dqkv + q_at, (acc * scale).to(dqkv.dtype.element_ty), mask=there)


@_jit
def _dkv_block(k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, c, dk, dv, i, n_q, H: tl.constexpr, D: tl.constexpr,
               BM: tl.constexpr, MASKED: tl.constexpr):  # fmt: skip
    ROW: tl.constexpr = 3 * H * D
    rows = i + tl.arange(0, BM)
    d = tl.arange(0, D)
    if MASKED:
        there = rows[:, None] < n_q
        q = tl.load(q_ptr + rows[:, None] * ROW + d[None, :], mask=there, other=0.0)
        do = tl.load(do_ptr + rows[:, None] * (H * D) + d[None, :], mask=there, other=0.0)
    else:
        q = tl.load(q_ptr + rows[:, None] * ROW + d[None, :])
        do = tl.load(do_ptr + rows[:, None] * (H * D) + d[None, :])
    lse = tl.load(lse_ptr + rows)
    delta = tl.load(delta_ptr + rows)
    p = tl.math.exp2(tl.dot(k, tl.trans(q)) * c - lse[None, :])
    dp = tl.dot(v, tl.trans(do))
    dv = tl.dot(p.to(do.dtype), do, dv)
    ds = (p * (dp - delta[None, :])).to(q.dtype)
    dk = tl.dot(ds, q, dk)
    return dk, dv


@_jit(do_not_specialize=["Tp"])
def _dkv_kernel(qkv, dout, lse, delta, dqkv, starts, keys, Tp, c, scale, H: tl.constexpr, D: tl.constexpr,
                BN: tl.constexpr, BM: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    first, n_q, n_k, aligned = _span(starts, keys)
    ROW: tl.constexpr = 3 * H * D
    j = tl.program_id(0) * BN
    h = tl.program_id(1)
    if j >= n_q:
        return
    cols = j + tl.arange(0, BN)
    d = tl.arange(0, D)
    there = cols[:, None] < n_k
    q_ptr = qkv + first * ROW + h * D
    k_at = first * ROW + h * D + H * D + cols[:, None] * ROW + d[None, :]
    k = tl.load(qkv + k_at, mask=there, other=0.0)
    v = tl.load(qkv + k_at + H * D, mask=there, other=0.0)
    do_ptr = dout + first * (H * D) + h * D
    sums_at = tl.multiple_of(h.to(tl.int64) * Tp + aligned, 128)
    lse_ptr = lse + sums_at
    delta_ptr = delta + sums_at
    dk = tl.zeros([BN, D], tl.float32)
    dv = tl.zeros([BN, D], tl.float32)
    if j < n_k:
        full = n_q // BM * BM
        for i in tl.range(0, full, BM, num_stages=STAGES):
            dk, dv = _dkv_block(k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, c, dk, dv, i, n_q, H, D, BM, False)
        if full < n_q:
            dk, dv = _dkv_block(k, v, q_ptr, do_ptr, lse_ptr, delta_ptr, c, dk, dv, full, n_q, H, D, BM, True)
    # Positions that are not keys have no gradient here.
    dk = tl.where(there, dk * scale, 0.0)
    dv = tl.where(there, dv, 0.0)
    tl.store(dqkv + k_at, dk.to(dqkv.dtype.element_ty), mask=cols[:, None] < n_q)
    tl.store(dqkv + k_at + H * D, dv.to(dqkv.dtype.element_ty), mask=cols[:, None] < n_q)
