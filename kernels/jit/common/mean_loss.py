"""The kernel that divides the sums of upsample_cross_entropy."""

import triton
import triton.language as tl


@triton.jit
def mean_loss_kernel(p_sums, p_loss, p_weight_sum, p_all_right, programs, BLOCK_R: tl.constexpr):
    """loss [], weight_sum [], float32, and all_right [], int32, of the sums [programs, 3], float64,
    of losses, of weights and of wrong labels: the first by the second, 0 where nothing counts; the
    second; and whether the third is 0. One program, in fixed order."""
    b_losses = tl.zeros([BLOCK_R], tl.float64)
    b_weights = tl.zeros([BLOCK_R], tl.float64)
    b_wrong = tl.zeros([BLOCK_R], tl.float64)
    for first_r in tl.range(0, programs, BLOCK_R, num_stages=1):
        o_r = first_r + tl.arange(0, BLOCK_R).to(tl.int64)
        m_r = o_r < programs
        b_losses += tl.load(p_sums + o_r * 3, mask=m_r, other=0.0)
        b_weights += tl.load(p_sums + o_r * 3 + 1, mask=m_r, other=0.0)
        b_wrong += tl.load(p_sums + o_r * 3 + 2, mask=m_r, other=0.0)
    total, weight_sum = tl.sum(b_losses), tl.sum(b_weights)
    counts = weight_sum != 0.0
    loss = tl.where(counts, total / tl.where(counts, weight_sum, 1.0), 0.0)
    tl.store(p_loss, loss.to(tl.float32))
    tl.store(p_weight_sum, weight_sum.to(tl.float32))
    tl.store(p_all_right, (tl.sum(b_wrong) == 0.0).to(tl.int32))
