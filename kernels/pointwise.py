"""What one vocabulary entry adds to a divergence: the only place where divergences differ.

With p and q the tempered distributions of teacher and student and x_v = z_v / T the student's
tempered logit, any divergence D(p, q) has the gradient

    dD/dx_v = q_v (dD/dq_v - sum_u q_u dD/dq_u),

because dq_u/dx_v = q_u (1[u = v] - q_v). Where dD/dq_v has a part -p_v / q_v it is kept apart, as
``direct``, so that nothing is divided by q: with dD/dq_v = g_v + direct_v / q_v

    dD/dx_v = direct_v + q_v (g_v - centre),   centre = sum_u direct_u + q_u g_u,

and a constant in g cancels. A probability of zero contributes its limit; NaN is never masked, so
that it reaches the loss.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # running maxima start here: -inf - -inf is NaN


@triton.jit
def logits_of(stored, logit_scale):
    """Stored logits as the loss sees them, float32."""
    logits = stored.to(tl.float32)
    if logit_scale is not None:
        logits *= logit_scale
    return logits


@triton.jit
def contribution(p, q, log2_p, log2_q, log2_ratio, beta, DIVERGENCE: tl.constexpr):
    """An entry's share of D, in bits, its g, in nats, and its ``direct``.

    ``log2_ratio`` is log2(q / p): with fewer roundings than the difference of the logarithms.
    """
    nothing = tl.zeros_like(q)
    if DIVERGENCE == "forward_kl":  # sum p log(p / q)
        return tl.where(p == 0.0, 0.0, -p * log2_ratio), nothing, -p
    elif DIVERGENCE == "reverse_kl":  # sum q log(q / p): g = log(q / p) + 1
        ratio = tl.where(q == 0.0, 0.0, log2_ratio)
        return q * ratio, ratio * LN2, nothing
    elif DIVERGENCE == "jeffreys":
        ratio = tl.where(q == 0.0, 0.0, log2_ratio)
        return q * ratio + tl.where(p == 0.0, 0.0, -p * log2_ratio), ratio * LN2, -p
    else:  # jsd, m = beta p + (1 - beta) q: g = (1 - beta) log(q / m)
        tl.static_assert(DIVERGENCE == "jsd")
        log2_m = tl.log2(beta * p + (1.0 - beta) * q)
        ratio = tl.where(q == 0.0, 0.0, (1.0 - beta) * (log2_q - log2_m))
        from_p = tl.where(p == 0.0, 0.0, beta * p * (log2_p - log2_m))
        return from_p + q * ratio, ratio * LN2, nothing
