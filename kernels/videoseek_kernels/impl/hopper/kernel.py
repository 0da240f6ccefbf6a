"""Forward on Hopper with specialised warps: a single warp loads, two warpgroups compute 64 rows each.

The tensor cores stay busy during a softmax: the scores of tile t are under way while the probabilities of tile t - 1
are multiplied by V, and one warpgroup multiplies while the other warpgroup takes exponentials. Letters are as in
`impl/triton/forward.py`; s_ is shared memory. The name of a barrier is the barrier's message. A barrier counts phases,
and a wait names the parity of a phase. The phase before the first phase counts as over.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from videoseek_kernels.impl.triton.primitives import online_softmax, row_tile, sees

#: Rows of a warpgroup: the rows of a warpgroup's matrix instruction.
HALF = gl.constexpr(64)

# Triton 3.7 renamed both functions.
load_tile = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
store_tile = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global


@gluon.jit
def load_stage(x, i_n, i_kv, i_turn, s_x, ready, free, D: gl.constexpr, STAGES: gl.constexpr):
    """Loads the tile of turn i_turn into the turn's stage, after both computing groups have released the stage."""
    i_stage = i_turn % STAGES
    mbarrier.wait(free.index(i_stage), (i_turn // STAGES + 1) & 1)
    mbarrier.expect(ready.index(i_stage), x.block_type.nbytes)
    load_tile(x, [i_n, i_kv * D], ready.index(i_stage), s_x.index(i_stage))


@gluon.jit
def load_all(
    q,
    k,
    v,
    lists,
    i_m,
    i_h,
    i_kv,
    s_q,
    q_ready,
    stages,
    D: gl.constexpr,
    BN: gl.constexpr,
    SUB_N: gl.constexpr,
    STAGES: gl.constexpr,
):
    """Runs the loading warp: loads both halves of Q, then K and V of each listed tile, into free stages.

    V comes a tile behind K, in the order of use.
    """
    s_k, s_v, k_ready, k_free, v_ready, v_free = stages
    _, _, indices, i_first, i_last, _ = lists
    for i_half in gl.static_range(2):
        mbarrier.expect(q_ready.index(i_half), q.block_type.nbytes)
        load_tile(q, [i_m + i_half * HALF, i_h * D], q_ready.index(i_half), s_q.index(i_half))
    i_n_before = 0
    for i in range(i_first, i_last):
        i_turn = i - i_first
        i_n = (gl.load(indices + i // SUB_N) * SUB_N + i % SUB_N) * BN
        load_stage(k, i_n, i_kv, i_turn, s_k, k_ready, k_free, D, STAGES)
        if i > i_first:
            load_stage(v, i_n_before, i_kv, i_turn - 1, s_v, v_ready, v_free, D, STAGES)
        i_n_before = i_n
    if i_first < i_last:
        load_stage(v, i_n_before, i_kv, i_last - 1 - i_first, s_v, v_ready, v_free, D, STAGES)


@gluon.jit
def masked_online_softmax(
    b_s,
    b_max,
    b_sum,
    key_word,
    indices,
    i,
    i_partial,
    o_m,
    b_visible,
    scale_log2,
    BN: gl.constexpr,
    SUB_N: gl.constexpr,
    SCORES: gl.constexpr,
):
    """Masks the scores [HALF, BN] of a PARTIAL tile, then runs `online_softmax`."""
    if i >= i_partial:
        i_n = (gl.load(indices + i // SUB_N) * SUB_N + i % SUB_N) * BN
        o_n = i_n + gl.arange(0, BN, gl.SliceLayout(0, SCORES))
        b_word = gl.load(key_word + o_n)
        b_s = gl.where(sees(o_m[:, None], b_visible[:, None], o_n[None, :], b_word[None, :]), b_s, float("-inf"))
    return online_softmax(b_s, b_max, b_sum, scale_log2)


@gluon.jit
def compute_half(
    out,
    lse,
    lists,
    i_m,
    i_h,
    num_tokens,
    scale_log2,
    s_q,
    q_ready,
    stages,
    turns,
    D: gl.constexpr,
    BN: gl.constexpr,
    SUB_N: gl.constexpr,
    STAGES: gl.constexpr,
    ALTERNATE: gl.constexpr,
):
    """Runs a computing warpgroup: O and L of HALF rows from i_m on. s_q and q_ready are private, the stages shared.

    With ALTERNATE the groups issue products in turns: a group waits for `own_turn` and then ends the other's wait.
    """
    own_turn, other_turn, i_half = turns
    s_k, s_v, k_ready, k_free, v_ready, v_free = stages
    key_word, visible, indices, i_first, i_last, i_partial = lists
    SCORES: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    OUTPUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    OPERAND: gl.constexpr = gl.DotOperandLayout(0, OUTPUT, 2)
    o_m = i_m + gl.arange(0, HALF, gl.SliceLayout(1, SCORES))
    b_visible = gl.load(visible + o_m, mask=o_m < num_tokens, other=0)
    b_max = gl.full([HALF], -1.0e30, gl.float32, gl.SliceLayout(1, SCORES))
    b_sum = gl.full([HALF], 0.0, gl.float32, gl.SliceLayout(1, SCORES))
    b_out = gl.full([HALF, D], 0.0, gl.float32, OUTPUT)
    nothing = gl.full([HALF, BN], 0.0, gl.float32, SCORES)

    mbarrier.wait(q_ready, 0)
    if i_first < i_last:
        mbarrier.wait(k_ready.index(0), 0)
        b_s = warpgroup_mma(s_q, s_k.index(0).permute((1, 0)), nothing, use_acc=False, is_async=True)
        b_s = warpgroup_mma_wait(0, [b_s])
        mbarrier.arrive(k_free.index(0))
        b_p, b_max, b_sum, b_decay = masked_online_softmax(
            b_s, b_max, b_sum, key_word, indices, i_first, i_partial, o_m, b_visible, scale_log2, BN, SUB_N, SCORES
        )
        b_operand = gl.convert_layout(b_p.to(s_v.dtype), OPERAND)
        for i in range(i_first + 1, i_last):
            i_turn = i - i_first
            i_stage = i_turn % STAGES
            i_before = (i_turn - 1) % STAGES
            mbarrier.wait(k_ready.index(i_stage), (i_turn // STAGES) & 1)
            if ALTERNATE:
                mbarrier.wait(own_turn, (i_turn + i_half) & 1)
            b_s = warpgroup_mma(s_q, s_k.index(i_stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
            mbarrier.wait(v_ready.index(i_before), ((i_turn - 1) // STAGES) & 1)
            b_out = warpgroup_mma(b_operand, s_v.index(i_before), b_out, is_async=True)
            if ALTERNATE:
                mbarrier.arrive(other_turn)
            b_s = warpgroup_mma_wait(1, [b_s])
            mbarrier.arrive(k_free.index(i_stage))
            b_p, b_max, b_sum, b_decay = masked_online_softmax(
                b_s, b_max, b_sum, key_word, indices, i, i_partial, o_m, b_visible, scale_log2, BN, SUB_N, SCORES
            )
            # This branch is never taken, and needs every probability. Without the branch the assembler lifts the wait
            # for P V above the exponentials, and the tensor cores idle during the softmax.
            if num_tokens < 0:
                gl.store(lse + o_m, b_sum)
            b_out = warpgroup_mma_wait(0, [b_out])
            mbarrier.arrive(v_free.index(i_before))
            b_out = b_out * gl.convert_layout(b_decay, gl.SliceLayout(1, OUTPUT))[:, None]
            b_operand = gl.convert_layout(b_p.to(s_v.dtype), OPERAND)
        i_turn = i_last - 1 - i_first
        mbarrier.wait(v_ready.index(i_turn % STAGES), (i_turn // STAGES) & 1)
        b_out = warpgroup_mma(b_operand, s_v.index(i_turn % STAGES), b_out, is_async=True)
        b_out = warpgroup_mma_wait(0, [b_out])

    m_sighted = b_sum > 0
    b_share = gl.convert_layout(1.0 / gl.where(m_sighted, b_sum, 1.0), gl.SliceLayout(1, OUTPUT))
    # All reads of this half of Q are done: O leaves through the memory of Q.
    s_q.store((b_out * b_share[:, None]).to(s_q.dtype))
    fence_async_shared()
    store_tile(out, [i_m, i_h * D], s_q)
    b_lse = gl.where(m_sighted, b_max + gl.log2(b_sum), float("-inf"))
    gl.store(lse + i_h.to(gl.int64) * num_tokens + o_m, b_lse, mask=o_m < num_tokens)
    tma.store_wait(0)


@gluon.jit(do_not_specialize=["num_tokens", "num_tiles"])
def attn_fwd_kernel_hopper(
    q,
    k,
    v,
    out,
    lse,
    key_word,
    visible,
    indices,
    offsets,
    num_full,
    order,
    scale,
    num_tokens,
    num_tiles,
    HQ: gl.constexpr,
    HKV: gl.constexpr,
    D: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    SUB_M: gl.constexpr,
    SUB_N: gl.constexpr,
    STAGES: gl.constexpr,
    ALTERNATE: gl.constexpr,
):
    i_block, i_tile, i_h, i_kv = row_tile(order, num_tiles, HQ, HKV, SUB_M)
    i_m = i_tile * BM
    i_first = gl.load(offsets + i_block) * SUB_N
    i_last = gl.load(offsets + i_block + 1) * SUB_N
    i_partial = i_first + gl.load(num_full + i_block) * SUB_N
    scale_log2 = scale * 1.4426950408889634

    s_q = gl.allocate_shared_memory(q.dtype, [2, HALF, D], q.layout)
    s_k = gl.allocate_shared_memory(k.dtype, [STAGES, BN, D], k.layout)
    s_v = gl.allocate_shared_memory(v.dtype, [STAGES, BN, D], v.layout)
    q_ready = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    k_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for i_half in gl.static_range(2):
        mbarrier.init(q_ready.index(i_half), count=1)
        mbarrier.init(turns.index(i_half), count=1)
    for i_stage in gl.static_range(STAGES):
        mbarrier.init(k_ready.index(i_stage), count=1)
        mbarrier.init(v_ready.index(i_stage), count=1)
        mbarrier.init(k_free.index(i_stage), count=2)
        mbarrier.init(v_free.index(i_stage), count=2)

    stages = (s_k, s_v, k_ready, k_free, v_ready, v_free)
    lists = (key_word, visible, indices, i_first, i_last, i_partial)
    # A thread has 168 registers. The loader hands most registers on, and the computing warps take 240.
    gl.warp_specialize(
        [
            (
                compute_half,
                (
                    out,
                    lse,
                    lists,
                    i_m,
                    i_h,
                    num_tokens,
                    scale_log2,
                    s_q.index(0),
                    q_ready.index(0),
                    stages,
                    (turns.index(0), turns.index(1), 0),
                    D,
                    BN,
                    SUB_N,
                    STAGES,
                    ALTERNATE,
                ),
            ),
            (
                compute_half,
                (
                    out,
                    lse,
                    lists,
                    i_m + HALF,
                    i_h,
                    num_tokens,
                    scale_log2,
                    s_q.index(1),
                    q_ready.index(1),
                    stages,
                    (turns.index(1), turns.index(0), 1),
                    D,
                    BN,
                    SUB_N,
                    STAGES,
                    ALTERNATE,
                ),
            ),
            (load_all, (q, k, v, lists, i_m, i_h, i_kv, s_q, q_ready, stages, D, BN, SUB_N, STAGES)),
        ],
        [4, 1],
        [240, 24],
    )
