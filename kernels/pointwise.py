"""What one vocabulary entry adds to a divergence: the only place where divergences differ.

With p and q the tempered distributions of teacher and student and x_v = z_v / T the student's
tempered logit, any divergence D(p, q) has the gradient

    dD/dx_v = q_v (dD/dq_v - sum_u q_u dD/dq_u),

because dq_u/dx_v = q_u (1[u = v] - q_v). Where q_v dD/dq_v has a part that is better not made by
multiplying with q_v, as the -p_v of forward KL, it is kept apart as ``direct``, so that nothing is
divided by q: with q_v dD/dq_v = direct_v + q_v g_v

    dD/dx_v = direct_v + q_v (g_v - centre),   centre = sum_u direct_u + q_u g_u,

and a constant in g cancels: reverse KL and Jeffreys leave out what all columns of a row have in
common, beside which a small g would be rounded like a large one. As the q are rounded, and do not
sum to 1, centre is divided by their sum. A probability of zero contributes its limit, and nothing
where both are zero; NaN is never masked, so that it reaches the loss.

A logarithm of a hundred bits, rounded, makes its power wrong by a hundred roundings: those of
alpha_beta are a whole number and a rest, which has the error of a small number.

A logit z becomes c tanh(z / c) under a softcap c, with the slope 1 - tanh(z / c)^2.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-3.4028234663852886e38)  # running maxima start here: -inf - -inf is NaN
_LEAST = tl.constexpr(1.1754943508222875e-38)  # below it lies what devices flush to zero


@triton.jit
def _tanh(x):
    """Within 2e-7 of tanh(x), relatively: as an odd polynomial where 1 - e^-2x would cancel."""
    square = x * x
    slope = -0.33332622 + square * (0.13313521 + square * (-0.05223111 + square * 0.015640482))
    power = tl.exp2(tl.abs(x) * (-2.0 * LOG2E))
    large = (1.0 - power) / (1.0 + power)
    return tl.where(tl.abs(x) < 0.6, x + x * square * slope, tl.where(x < 0.0, -large, large))


@triton.jit
def logits_of(stored, side):
    """Stored logits as the loss sees them, float32: scaled, then capped; -inf is never capped."""
    logits = stored.to(tl.float32)
    if side.logit_scale is not None:
        logits *= side.logit_scale
    if side.softcap is not None:
        capped = side.softcap * _tanh(logits * (1.0 / side.softcap))
        logits = tl.where(logits == -float("inf"), logits, capped)
    return logits


@triton.jit
def capped_gradient(gradient, logits, side):
    """From the gradient of logits as the loss sees them to that of logits before the cap."""
    if side.softcap is not None:
        tanh = logits * (1.0 / side.softcap)
        gradient = tl.where(logits == -float("inf"), gradient, gradient * (1.0 - tanh * tanh))
    return gradient


@triton.jit
def squared_error(ours, theirs, is_column):
    """An entry's share of V D, and its ``direct`` V / 2, for logit_mse."""
    error = tl.where(is_column, ours - theirs, 0.0)
    return error * error, error


@triton.constexpr_function
def is_relative(DIVERGENCE):
    """Whether ``excess`` counts from the student's likeliest column, and its teacher's logit there.

    Where one q is nearly 1 its g is nearly the centre, and both are then nearly 0.
    """
    return DIVERGENCE == "reverse_kl" or DIVERGENCE == "jeffreys"


@triton.jit
def _mixture(first, second, share):
    """The mixture of two shares, but never 0: it is divided by, and its logarithm taken."""
    mixture = share * first + (1.0 - share) * second
    return tl.where(mixture < _LEAST, _LEAST, mixture)


@triton.jit
def contribution(p, q, log2_p, log2_q, excess, common, terms, DIVERGENCE: tl.constexpr):
    """An entry's share of D, its g and its ``direct``.

    D is in bits where it is a sum of logarithms: ``terms.value_to_kd`` knows. log2(q / p) comes in
    two parts, with fewer roundings than the difference of the logarithms: the entry's ``excess``
    over what is ``common`` to its row. ``log2_p`` and ``log2_q`` are what log2_share() returns.
    """
    beta = terms.beta
    log2_ratio = excess + common
    nothing = tl.zeros_like(q)
    if DIVERGENCE == "forward_kl":  # sum p log(p / q)
        return tl.where(p == 0.0, 0.0, -p * log2_ratio), nothing, -p
    elif DIVERGENCE == "reverse_kl":  # sum q log(q / p): g = log(q / p) + 1
        pull = tl.where(q == 0.0, 0.0, excess)
        return q * (pull + common), pull * LN2, nothing
    elif DIVERGENCE == "jeffreys":
        pull = tl.where(q == 0.0, 0.0, excess)
        from_p = tl.where(p == 0.0, 0.0, -p * log2_ratio)
        return q * (pull + common) + from_p, pull * LN2, -p
    elif DIVERGENCE == "jsd":  # m = beta p + (1 - beta) q: g = (1 - beta) log(q / m)
        log2_m = tl.log2(_mixture(p, q, beta))
        ratio = tl.where(q == 0.0, 0.0, (1.0 - beta) * (log2_q[0] - log2_m))
        from_p = tl.where(p == 0.0, 0.0, beta * p * (log2_p[0] - log2_m))
        return from_p + q * ratio, ratio * LN2, nothing
    elif DIVERGENCE == "skew_forward_kl":  # the same m: g = -(1 - beta) p / m
        m = _mixture(p, q, beta)
        value = tl.where(p == 0.0, 0.0, p * (log2_p[0] - tl.log2(m)))
        return value, (beta - 1.0) * (p / m), nothing
    elif DIVERGENCE == "skew_reverse_kl":  # m = beta q + (1 - beta) p: g = log(q / m) - beta q / m
        m = _mixture(q, p, beta)
        ratio = tl.where(q == 0.0, 0.0, log2_q[0] - tl.log2(m))
        return q * ratio, ratio * LN2 - beta * (q / m), nothing
    elif DIVERGENCE == "tvd":  # sum |p - q| / 2: g = sign(q - p) / 2, 0 at ties
        sign = tl.where(p == q, 0.0, tl.where(q > p, 0.5, -0.5))
        return sign * (q - p), sign, nothing
    elif DIVERGENCE == "zero":  # of a distribution from itself
        return 0.0 * (p + q), nothing, nothing
    else:
        value, direct = _alpha_beta(log2_p, log2_q, terms, DIVERGENCE)
        is_event = (log2_p[0] != -float("inf")) | (log2_q[0] != -float("inf"))
        return tl.where(is_event, value, 0.0), nothing, tl.where(is_event, direct, 0.0)


@triton.constexpr_function
def has_powers(DIVERGENCE):
    """Whether p and q are raised to powers, or compared where they underflow."""
    return DIVERGENCE.startswith("alpha_beta")


@triton.jit
def log2_of(total, DIVERGENCE: tl.constexpr):
    """The logarithm of a total as contribution() takes it, in two parts."""
    log2 = tl.log2(total)
    if has_powers(DIVERGENCE):
        whole = tl.floor(log2)
        rest = tl.where(total == 0.0, 0.0, tl.log2(total * tl.exp2(-whole)))
        return whole.to(tl.float32), rest.to(tl.float32)
    else:
        return log2.to(tl.float32), 0.0


@triton.jit
def log2_share(z, top, bits, log2_total, side, DIVERGENCE: tl.constexpr):
    """log2 of the share that a tempered exponential, 2^bits or e^((z - top) / T), has of a sum."""
    if has_powers(DIVERGENCE):
        whole, rest = _exponent(z, top, side)
        return whole - log2_total[0], rest - log2_total[1]
    else:
        return bits - log2_total[0], 0.0


@triton.jit
def _exponent(z, top, side):
    """(z - top) log2(e) / T as a whole number and a rest, without the difference's rounding."""
    excess = z - top
    moved = excess - z
    rounding = (z - (excess - moved)) - (top + moved)
    high = (excess.to(tl.int32, bitcast=True) & -4096).to(tl.float32, bitcast=True)
    product = high * side.to_bits_high  # of 12 bits each: exact
    whole = tl.floor(product + 0.5)
    low = (excess - high) + rounding
    rest = (product - whole) + (low * side.to_bits_high + excess * side.to_bits_low)
    return whole, tl.where(excess == -float("inf"), 0.0, rest)


@triton.jit
def _times(log2, factor):
    """A logarithm in two parts times a factor in two: the first part is exact."""
    return factor[0] * log2[0], factor[1] * log2[0] + (factor[0] + factor[1]) * log2[1]


@triton.jit
def _power(exact, rest, shift):
    """2^(exact + rest + shift); what is left of the rest's own rounding is its first order."""
    exact += shift
    bits = tl.where(tl.abs(exact) == float("inf"), exact, exact + rest)
    power = tl.exp2(bits)
    lost = (exact - bits) + rest
    return tl.where(tl.abs(bits) < 128.0, power + power * (lost * LN2), power)


@triton.jit
def _alpha_beta(log2_p, log2_q, terms, DIVERGENCE: tl.constexpr):
    """The alpha-beta divergence (a, b) and its limits, and q dD/dq.

    D = sum [a p^(a+b) + b q^(a+b)] / (a b (a+b)) - p^a q^b / (a b), so that
    q dD/dq = (q^(a+b) - p^a q^b) / a, of which the limit at a = 0 is q^b log(q / p).
    """
    alpha = terms.alpha
    beta = terms.beta
    shift = terms.power_shift
    ratio = ((log2_q[0] - log2_p[0]) + (log2_q[1] - log2_p[1])) * LN2
    if DIVERGENCE == "alpha_beta":
        total = alpha + beta
        of_p, rest_p = _times(log2_p, terms.alpha_parts)
        of_q, rest_q = _times(log2_q, terms.beta_parts)
        cross = _power(of_p + of_q, rest_p + rest_q, shift)
        of_p, rest_p = _times(log2_p, terms.total_parts)
        of_q, rest_q = _times(log2_q, terms.total_parts)
        ours = _power(of_q, rest_q, shift)
        own = (alpha / total) * _power(of_p, rest_p, shift) + (beta / total) * ours
        # near a tie as a series in log(p / q), of which own - cross keeps no digit
        series = terms.near_tie[-1]
        for index in tl.static_range(len(terms.near_tie) - 2, -1, -1):
            series = series * ratio + terms.near_tie[index]
        near = ours * (ratio * ratio) * series
        is_near = tl.abs(ratio) < terms.nearness
        value = tl.where(is_near, near, (own - cross) * (1.0 / (alpha * beta)))
        return value, (ours - cross) * (1.0 / alpha)
    elif DIVERGENCE == "alpha_beta_alpha_0":  # sum q^b log(q / p) / b - (q^b - p^b) / b^2
        of_p, rest_p = _times(log2_p, terms.beta_parts)
        of_q, rest_q = _times(log2_q, terms.beta_parts)
        ours = _power(of_q, rest_q, shift)
        direct = ours * tl.where(ours == 0.0, 0.0, ratio)
        gap = beta * direct - ours + _power(of_p, rest_p, shift)
        return _tangent_gap(gap, ours, -beta * ratio) * (1.0 / (beta * beta)), direct
    elif DIVERGENCE == "alpha_beta_beta_0":  # sum p^a log(p / q) / a - (p^a - q^a) / a^2
        of_p, rest_p = _times(log2_p, terms.alpha_parts)
        of_q, rest_q = _times(log2_q, terms.alpha_parts)
        theirs = _power(of_p, rest_p, shift)
        ours = _power(of_q, rest_q, shift)
        gap = alpha * (theirs * tl.where(theirs == 0.0, 0.0, -ratio)) - theirs + ours
        value = _tangent_gap(gap, theirs, alpha * ratio)
        return value * (1.0 / (alpha * alpha)), (ours - theirs) * (1.0 / alpha)
    elif DIVERGENCE == "alpha_beta_sum_0":  # sum (r - 1 - log r) / a^2, r = (p / q)^a
        bits, rest = _times((log2_p[0] - log2_q[0], log2_p[1] - log2_q[1]), terms.alpha_parts)
        power = _power(bits, rest, shift)
        one = tl.exp2(shift)
        tangent = -alpha * ratio
        value = _tangent_gap(power - one - one * tangent, one, tangent)
        return value * (1.0 / (alpha * alpha)), (one - power) * (1.0 / alpha)
    else:  # sum (log p - log q)^2 / 2
        tl.static_assert(DIVERGENCE == "alpha_beta_0_0")
        return 0.5 * ratio * ratio, ratio


@triton.jit
def _tangent_gap(gap, scale, x):
    """``gap``, which is scale (e^x - 1 - x), as a series near x = 0, where it is rounding alone."""
    return tl.where(tl.abs(x) < 0.5, scale * (x * x) * _tail_of_exp(x), gap)


@triton.jit
def _tail_of_exp(x):
    """(e^x - 1 - x) / x^2, for x below 0.5."""
    tail = 1 / 120 + x * (1 / 720 + x * (1 / 5040 + x * (1 / 40320)))
    return 0.5 + x * (1 / 6 + x * (1 / 24 + x * tail))
