"""exp and log1p on vectors, sums in twice the precision, and the error-free steps they are made of.

Error bounds are stated with each function and tested against mpmath; `exp` over every float32 in its domain.
A *pair* (hi, lo) is an unevaluated sum of two numbers of one type with |lo| <= ulp(hi)/2 or nearly so.
"""

from __future__ import annotations

from fractions import Fraction
from math import factorial
from typing import Any

from numba import types

from ._jit import by_type, inline
from ._simd import (
    V32,
    constant,
    exact_fma,
    fma,
    narrow,
    polynomial,
    pow2,
    rotate_half,
    select,
    splat,
    split_exponent,
    total,
    widen,
)  # fmt: skip

# exp(r) = 1 + r + r*r*Q(r) on |r| <= ln(2)/2: Remez, weighted to the relative error of exp: 2**-34 and 2**-57.9
_Q32 = (
    0.5000000067839700, 0.16666665867010359, 0.04166629436445909, 0.0083334973407825232, 0.0013944703583915311,
    0.0001979029808975045,
)  # fmt: skip
_Q64 = (
    0.5000000000000011, 0.1666666666666641, 0.04166666666652973, 0.008333333333494977, 0.0013888888943759984,
    0.00019841269505773807, 0.00002480149294961707, 2.755758680384707e-6, 2.7630306255647857e-7, 2.5000018853083342e-8,
)  # fmt: skip

# Exponentials are kept multiplied by 2**64 (float32) or 2**256 (float64), so that the smallest one that matters is still a
# normal number, and are brought back by the one multiplication that follows anyway: gradual underflow, rounded once.
SHIFT32, SHIFT64 = 2.0**64, 2.0**256
_LEAST32, _LEAST64 = -131.0, -885.0  # below, the scaled result would leave the normal range: exactly 0
# 1.5 * 2**mantissa rounds to an integer; the rest leaves k + bias + shift in the low bits, where pow2 takes it from
_MAGIC32, _MAGIC64 = 1.5 * 2**23 + (127 + 64), 1.5 * 2**52 + (1023 + 256)
_LOG2E = 1.4426950408889634
# ln 2 in two: the first part times any k that occurs is exact, with FMA or without
_LN2_HI32, _LN2_LO32 = 0.693145751953125, 1.4286068203094172e-06
_LN2_HI64, _LN2_LO64 = 0.6931471805592082, 7.371002565167799e-13

_LN2 = 0.6931471805599453
_ATANH = tuple(1.0 / (2 * k + 3) for k in range(12))  # atanh's series
_ATANH_SHORT = _ATANH[:7]


@inline
def two_diff(a: Any, b: Any) -> Any:
    """a - b as a pair, exactly (Knuth's TwoSum)."""
    s = a - b
    bb = s - a
    return s, (a - (s - bb)) - (b + bb)


@inline
def two_sum(a: Any, b: Any) -> Any:
    """a + b as a pair, exactly (Knuth)."""
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


@inline
def fast_two_sum(a: Any, b: Any) -> Any:
    """The same for |a| >= |b| (Dekker)."""
    s = a + b
    return s, b - (s - a)


@inline
def two_product(a: Any, b: Any) -> Any:
    """a * b as a pair, exactly."""
    p = a * b
    return p, exact_fma(a, b, -p)


@inline
def exp_shifted(s: Any, lo: Any) -> Any:
    """exp(s + lo) * 2**SHIFT for s <= 0 and |lo| <= ulp(s)/2, within 0.9 ulp; exactly 2**SHIFT at 0; 0 at -inf.

    NaN at NaN.

    Taking lo in costs one operation here and five in `two_diff`; it is what brings softmax from 30..130 ulps to under 2.
    """
    t = fma(s, constant(s, _LOG2E, _LOG2E), constant(s, _MAGIC32, _MAGIC64))
    k = t - constant(s, _MAGIC32, _MAGIC64)
    r_hi = fma(k, constant(s, -_LN2_HI32, -_LN2_HI64), s)  # exact
    r_lo = fma(k, constant(s, -_LN2_LO32, -_LN2_LO64), lo)
    r = r_hi + r_lo
    tail = fma(r * r, polynomial(r, _Q32, _Q64), r_lo)
    power = pow2(t)
    value = fma(r_hi + tail, power, power)
    return select(s < constant(s, _LEAST32, _LEAST64), constant(s, 0.0, 0.0), value)


# ---- the sum of a row's exponentials, less one ------------------------------------------------------------------------
# With the maximum subtracted a row's sum is 1 + d, and every loss wants log1p(d): d of a confident row is 1e-20 and must
# keep its digits. So each lane starts at 1 (scaled), which no exponential exceeds: Dekker's fast two-sum is then exact, the
# integers stay in `hi`, whatever is small falls into `lo`, and at the end the ones are taken off again. 4 adds a vector;
# widening every vector to doubles took 5.4 cycles of 13. `lo` itself is moved to doubles every few vectors.
@inline
def lane_start(like: Any) -> Any:
    """(hi, lo) of an empty lane sum."""
    return constant(like, SHIFT32, SHIFT64), constant(like, 0.0, 0.0)


@inline
def lane_add(hi: Any, lo: Any, value: Any) -> Any:
    s = hi + value
    return s, lo + (value - (s - hi))


@inline
def low_start() -> Any:
    """Where `lo` is gathered, as double vectors."""
    return splat(0.0), splat(0.0)


@by_type
def low_add(low, lo):
    """Move `lo` there."""
    if lo == V32:

        def floats(low, lo):
            a, b = widen(lo)
            return low[0] + a, low[1] + b

        return floats
    return lambda low, lo: (low[0] + lo, low[1])


@inline
def _fold(hi: Any, lo: Any, width: Any) -> Any:
    s, error = two_sum(hi, rotate_half(hi, width))
    return fast_two_sum(s, error + (lo + rotate_half(lo, width)))


@inline
def fold_pair(hi: Any, lo: Any) -> Any:
    """The sum over all lanes of a pair of double vectors, as a pair (lanes alike; fixed tree)."""
    hi, lo = fast_two_sum(hi, lo)
    hi, lo = _fold(hi, lo, 4)
    hi, lo = _fold(hi, lo, 2)
    return _fold(hi, lo, 1)


@by_type
def row_sum(hi, low):
    """d over all lanes: a row's sum of exponentials less one, as a pair of double vectors (lanes alike; fixed tree)."""
    if hi == V32:

        def floats(hi, low):
            a, b = widen(hi)  # sums of floats above 1 are exact in doubles
            ones = total(a + b) - 17.0 * SHIFT32
            return splat((ones + total(low[0] + low[1])) * (1.0 / SHIFT32)), splat(0.0)

        return floats

    def doubles(hi, low):
        s, lo = fold_pair(hi - splat(SHIFT64), low[0])
        s, lo = fast_two_sum(s - splat(SHIFT64), lo)
        return s * splat(1.0 / SHIFT64), lo * splat(1.0 / SHIFT64)

    return doubles


@by_type
def lane_sums(hi, low):
    """d of each lane by itself: pairs of double vectors for lanes 0..7 and 8..15 (of doubles: the same 8 lanes twice)."""
    if hi == V32:

        def floats(hi, low):
            a, b = widen(hi)
            ones, unit = splat(2.0 * SHIFT32), splat(1.0 / SHIFT32)
            return (((a - ones) + low[0]) * unit, splat(0.0)), (((b - ones) + low[1]) * unit, splat(0.0))

        return floats

    def doubles(hi, low):
        unit = splat(1.0 / SHIFT64)
        s, lo = two_sum(hi - splat(2.0 * SHIFT64), low[0])
        pair = (s * unit, lo * unit)
        return pair, pair

    return doubles


@by_type
def in_doubles(value):
    """A vector as two of doubles: lanes 0..7 and 8..15 (of doubles: the same twice)."""
    if value == V32:
        return lambda value: widen(value)
    return lambda value: (value, value)


@by_type
def from_doubles(like, low, high):
    """The way back, rounded to `like`'s type."""
    if like.dtype is types.float32:
        return lambda like, low, high: narrow(low, high)
    return lambda like, low, high: low


@by_type
def pair_from_doubles(like, low, high):
    """Two pairs of double vectors as one pair of vectors of `like`'s type."""
    if like.dtype is types.float32:

        def floats(like, low, high):
            hi = narrow(low[0], high[0])
            w0, w1 = widen(hi)
            return hi, narrow((low[0] - w0) + low[1], (high[0] - w1) + high[1])

        return floats
    return lambda like, low, high: low


@by_type
def log1p_pair(like, d_hi, d_lo):
    """log(1 + d) for a pair of double vectors d >= 0, as a pair; NaN at NaN. For doubles within 2**-60, for floats 2**-39."""
    if like.dtype is types.float32:
        return lambda like, d_hi, d_lo: _log1p_short(d_hi, d_lo)
    return lambda like, d_hi, d_lo: _log1p_long(d_hi, d_lo)


@inline
def _log1p_parts(d_hi: Any, d_lo: Any) -> Any:
    """k, r as a pair, and e = 2 + r, with 1 + d = 2**k * (1 + r) and 1 + r within [sqrt(1/2), sqrt(2)).

    Below sqrt(2) - 1, k is 0 and r is d itself: nothing cancels, log1p(1e-300) keeps all its digits.
    """
    u, u_lo = two_sum(splat(1.0), d_hi)
    k, inverse, f = split_exponent(u)
    r, r_lo = fast_two_sum(f - splat(1.0), (u_lo + d_lo) * inverse)
    return k, r, r_lo, splat(2.0) + r


@inline
def _log1p_short(d_hi: Any, d_lo: Any) -> Any:
    """2 atanh(r / (2 + r)) with one division."""
    k, r, _, e = _log1p_parts(d_hi, d_lo)
    s = r / e
    w = s * s
    log = s + s
    log = fma(log * w, polynomial(w, _ATANH_SHORT, _ATANH_SHORT), log)
    return fma(k, splat(_LN2), log), splat(0.0)


@inline
def _log1p_long(d_hi: Any, d_lo: Any) -> Any:
    """The same with the rounding errors carried along."""
    k, r, r_lo, e = _log1p_parts(d_hi, d_lo)
    e_lo = (r - (e - splat(2.0))) + r_lo
    s = r / e
    s_lo = (exact_fma(-s, e, r) + (r_lo - s * e_lo)) / e
    w = s * s
    correction = (s + s) * w * polynomial(w, _ATANH, _ATANH)
    hi, lo = fast_two_sum(s + s, (s_lo + s_lo) + correction)
    k_hi, k_lo = two_sum(k * splat(_LN2_HI64), hi)
    hi, lo = fast_two_sum(k_hi, k_lo + (lo + k * splat(_LN2_LO64)))
    tiny = d_hi < splat(2.0**-64)  # it is its own logarithm; halving a subnormal number would lose its last bit
    return select(tiny, d_hi, hi), select(tiny, d_lo, lo)


@inline
def plus_one(d_hi: Any, d_lo: Any) -> Any:
    """1 + d as a pair."""
    s, error = two_sum(splat(1.0), d_hi)
    return s, error + d_lo


@by_type
def ratio(like, a, s_hi, s_lo):
    """a / (s_hi + s_lo) of double vectors, as a pair; for floats a double has digits enough."""
    if like.dtype is types.float32:
        return lambda like, a, s_hi, s_lo: (a / s_hi, splat(0.0))

    def doubles(like, a, s_hi, s_lo):
        q = a / s_hi
        return q, (exact_fma(-q, s_hi, a) - q * s_lo) / s_hi

    return doubles


# ---- exp in twice the precision of doubles, for gradients that all but cancel ------------------------------------------
# ln 2 in three: the first two times any k that occurs are exact
_LN2_1, _LN2_2, _LN2_3 = 0.6931471803691238, 1.9082149292702925e-10, 2.953162033771554e-23
_T = tuple(1.0 / factorial(k) for k in range(6, 18))
_6TH_LO, _24TH_LO, _120TH_LO = (float(Fraction(1, n) - Fraction(1.0 / n)) for n in (6, 24, 120))  # less their doubles


@inline
def _times_plus(r: Any, r_lo: Any, a: Any, a_lo: Any, c: float, c_lo: float) -> Any:
    """c + r * a of pairs, where c is the larger; the parts of the result may overlap by a few bits."""
    p, error = two_product(r, a)
    s, rest = fast_two_sum(splat(c), p)
    return s, rest + (fma(r, a_lo, fma(r_lo, a, error)) + splat(c_lo))


@inline
def exp_pair(s: Any, lo: Any) -> Any:
    """exp(s + lo) * 2**SHIFT for double vectors s <= 0, as a pair within 2**-69; its low part fades below exp = 1e-290."""
    k = fma(s, splat(_LOG2E), splat(1.5 * 2**52)) - splat(1.5 * 2**52)
    r, error = two_diff(fma(k, splat(-_LN2_1), s), k * splat(_LN2_2))
    r, r_lo = fast_two_sum(r, error + (lo - k * splat(_LN2_3)))
    # expm1(r) = r + r^2 (1/2 + r (1/6 + r (1/24 + r (1/120 + r T(r))))), each step but the first in pairs: the chain of
    # high parts is two operations a step
    a, a_lo = fast_two_sum(splat(1.0 / 120.0), r * polynomial(r, _T, _T))
    a, a_lo = _times_plus(r, r_lo, a, a_lo + splat(_120TH_LO), 1.0 / 24.0, _24TH_LO)
    a, a_lo = _times_plus(r, r_lo, a, a_lo, 1.0 / 6.0, _6TH_LO)
    a, a_lo = _times_plus(r, r_lo, a, a_lo, 0.5, 0.0)
    w, w_lo = two_product(r, r)
    w_lo = fma(r + r, r_lo, w_lo)
    p, p_lo = two_product(w, a)
    y, y_lo = fast_two_sum(r, p)
    y_lo = y_lo + (r_lo + fma(w, a_lo, fma(w_lo, a, p_lo)))
    p, p_lo = fast_two_sum(splat(1.0), y)
    p, p_lo = fast_two_sum(p, p_lo + y_lo)
    power = pow2(k + splat(_MAGIC64))
    outside, zero = s < splat(_LEAST64), splat(0.0)
    return select(outside, zero, p * power), select(outside, zero, p_lo * power)
