"""The divergences of the kd term, as plain differentiable torch.

Each takes log p (teacher) and log q (student), ``[..., V]``, either of which may hold -inf, and
returns the sum over the last dimension. An event of probability zero contributes what its limit
is; entries are made finite *before* they enter a product, since autograd multiplies the gradient
of a masked entry by zero, and 0 * inf is NaN.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from mkd_fast.losses.spec import LossSpec

# N tokens, V events


def kl(log_a_NV: Tensor, log_b_NV: Tensor) -> Tensor:
    """Sum a (log a - log b); 0 where a = 0, +inf where only b = 0."""
    is_event = log_a_NV != -torch.inf  # so NaN is one, and the sum is NaN
    log_a_NV = torch.where(is_event, log_a_NV, 0.0)
    log_b_NV = torch.where(is_event, log_b_NV, 0.0)
    return torch.where(is_event, log_a_NV.exp() * (log_a_NV - log_b_NV), 0.0).sum(-1)


def _log_mixture(log_a_NV: Tensor, log_b_NV: Tensor, share: float) -> Tensor:
    """log(share a + (1 - share) b), -inf where both are zero."""
    if share in (0.0, 1.0):
        return log_a_NV if share else log_b_NV
    is_event = (log_a_NV != -torch.inf) | (log_b_NV != -torch.inf)
    share_t = torch.tensor(share, dtype=log_a_NV.dtype, device=log_a_NV.device)
    mixed = torch.logaddexp(
        torch.where(is_event, log_a_NV, 0.0) + share_t.log(),
        torch.where(is_event, log_b_NV, 0.0) + torch.log1p(-share_t),
    )
    return torch.where(is_event, mixed, -torch.inf)


def jsd(log_p_NV: Tensor, log_q_NV: Tensor, beta: float) -> Tensor:
    """Beta KL(p, m) + (1 - beta) KL(q, m), m = beta p + (1 - beta) q (GKD, arXiv 2306.13649).

    The two ends, where m is one of the pair and the sum is zero, are defined as the KL divergences
    that the scaled limits give.
    """
    if beta == 0.0:
        return kl(log_p_NV, log_q_NV)
    if beta == 1.0:
        return kl(log_q_NV, log_p_NV)
    log_m_NV = _log_mixture(log_p_NV, log_q_NV, beta)
    return beta * kl(log_p_NV, log_m_NV) + (1.0 - beta) * kl(log_q_NV, log_m_NV)


def tvd(log_p_NV: Tensor, log_q_NV: Tensor) -> Tensor:
    """1/2 sum |p - q|, with gradient 0 at ties."""
    return 0.5 * (log_p_NV.exp() - log_q_NV.exp()).abs().sum(-1)


def alpha_beta(log_p_NV: Tensor, log_q_NV: Tensor, alpha: float, beta: float) -> Tensor:
    """The alpha-beta divergence with its limits (Cichocki et al. 2011, eqs. 17-22).

    An event that is impossible on both sides contributes nothing, whatever the powers.
    """
    is_event = (log_p_NV != -torch.inf) | (log_q_NV != -torch.inf)
    log_p_NV, log_q_NV = (torch.where(is_event, log_NV, 0.0) for log_NV in (log_p_NV, log_q_NV))
    terms_NV = _alpha_beta_terms(log_p_NV, log_q_NV, alpha, beta)
    return torch.where(is_event, terms_NV, 0.0).sum(-1)


def _alpha_beta_terms(log_p: Tensor, log_q: Tensor, alpha: float, beta: float) -> Tensor:
    total = alpha + beta
    if alpha == 0.0 and beta == 0.0:
        return 0.5 * (log_p - log_q).square()
    if total == 0.0:
        log_ratio = alpha * (log_p - log_q)
        return (log_ratio.expm1() - log_ratio) / alpha**2
    if beta == 0.0:
        p_a, q_a = (alpha * log_p).exp(), (alpha * log_q).exp()
        return (alpha * _weighted(p_a, log_p - log_q) - p_a + q_a) / alpha**2
    if alpha == 0.0:
        p_b, q_b = (beta * log_p).exp(), (beta * log_q).exp()
        return (beta * _weighted(q_b, log_q - log_p) - q_b + p_b) / beta**2
    own = alpha / total * (total * log_p).exp() + beta / total * (total * log_q).exp()
    return (own - (alpha * log_p + beta * log_q).exp()) / (alpha * beta)


def _weighted(weight: Tensor, log_ratio: Tensor) -> Tensor:
    """Their product, 0 where the weight is."""
    return weight * torch.where(weight == 0.0, 0.0, log_ratio)


def of_distributions(log_p_NV: Tensor, log_q_NV: Tensor, spec: LossSpec) -> Tensor:
    """D(p, q) of ``spec.divergence``, one value a token, for all but ``logit_mse``."""
    beta = spec.beta
    table: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "forward_kl": kl,
        "reverse_kl": lambda p, q: kl(q, p),
        "jeffreys": lambda p, q: kl(p, q) + kl(q, p),
        "jsd": lambda p, q: jsd(p, q, beta),
        "skew_forward_kl": lambda p, q: kl(p, _log_mixture(p, q, beta)),
        "skew_reverse_kl": lambda p, q: kl(q, _log_mixture(q, p, beta)),
        "tvd": tvd,
        "alpha_beta": lambda p, q: alpha_beta(p, q, *(spec.alpha_beta or (0.0, 0.0))),
    }
    return table[spec.divergence](log_p_NV, log_q_NV)
