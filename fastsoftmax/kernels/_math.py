"""exp and log1p on vectors, sums in twice the precision, and the error-free steps they are made of.

Error bounds are stated with each function and tested against mpmath; `exp` over every float32 in its domain.
A *pair* (hi, lo) is an unevaluated sum of two numbers of one type with |lo| <= ulp(hi)/2 or nearly so.
"""

from __future__ import annotations

from fractions import Fraction
from math import factorial
from typing import Any

import numpy as np
from numba import types

from ._jit import by_type, inline
from ._simd import (
    V32,
    constant,
    eighth,
    exact_fma,
    fma,
    halves,
    horner,
    lanes,
    load,
    load_first,
    narrow,
    polynomial,
    power_of_two,
    rotate_half,
    select,
    shift,
    splat,
    split_exponent,
    store,
    store_first,
    total,
    widen,
)  # fmt: skip
from ._target import FMA

# exp(s) = 2**(k/8) * exp(r) with an integer k and |r| <= ln(2)/8, and exp(r) = 1 + r * P(r): Remez, weighted to the relative
# error of exp: 2**-27.5 and 2**-57.7
_P32 = (0.5000002038905896, 0.1667210414550064, 0.04164175488419537)
_P64 = (
    0.5000000000000007, 0.1666666666669586, 0.04166666666610956, 0.008333333130480098, 0.0013888890103036036,
    0.00019845510929526107, 2.4795693913352882e-05,
)  # fmt: skip
# c * 2**(i/8), i = 0..7. Softmax is the same for every c, so c is one for which all eight are so near to numbers of their type
# that one table has digits enough: 0.11 and 0.04 units of 2**-24 and 2**-53, found by search; 0.5 for c = 1. And a little less
# than 2: times c a number has the digits it had, times 1.09 at times one less (losses of confident rows, float32: 2.4 ulps).
_EIGHTHS32 = (
    1.946491003036499, 2.1226634979248047, 2.3147809505462646, 2.5242865085601807, 2.752753973007202, 3.001899480819702,
    3.273594617843628, 3.569880247116089,
)  # fmt: skip
_EIGHTHS64 = (
    1.8629848670670288, 2.031599403374952, 2.215474859058509, 2.415992465328776, 2.6346584655020298, 2.8731154295619454,
    3.133154592777165, 3.4167293110591648,
)  # fmt: skip
# The same for c = 1
_ROOTS = (
    1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096, 1.4142135623730951, 1.5422108254079407,
    1.681792830507429, 1.8340080864093424,
)  # fmt: skip
_INVERSE32 = 1.0 / _EIGHTHS32[0]
_INVERSE64 = 1.0 / _EIGHTHS64[0], -2.134229522820459e-17  # a pair; the first alone, times the entry, is 1

# Exponentials are kept multiplied by 2**64 (float32) or 2**256 (float64), so that the smallest one that matters is still a
# normal number, and are brought back by the one multiplication that follows anyway: gradual underflow, rounded once.
SHIFT32, SHIFT64 = 2.0**64, 2.0**256
TOP32, TOP64 = _EIGHTHS32[0] * SHIFT32, _EIGHTHS64[0] * SHIFT64  # what stands for exp(0)
START32, START64 = 2.0 * SHIFT32, 2.0 * SHIFT64  # of each lane's sum
_FAR32, _FAR64 = 512.0, 2048.0  # for a maximum m beyond, z - m is exact wherever exp(z - m) is not 0 (Sterbenz)
_ROUND32, _ROUND64 = 1.5 * 2**23, 1.5 * 2**52  # added, it rounds to an integer, which the low bits then hold
_ZERO32, _ZERO64 = _ROUND32 + 8 * 64, _ROUND64 + 8 * 256  # the same, and the eighths of the shift
# The least of these sums, of exp(-131) and exp(-885): below, the shifted result would leave the normal range, and is exactly 0.
_LEAST32, _LEAST64 = _ROUND32 - 1000.0, _ROUND64 - 8166.0
_LOG2E = 1.4426950408889634
# ln(2)/8 in two: the first part times any k that occurs is exact, with FMA or without
_EIGHTH_HI32, _EIGHTH_LO32 = 0.086669921875, -2.6524305212660693e-05
_EIGHTH_HI64, _EIGHTH_LO64 = 0.08664339756978734, 2.0582436978621353e-13

_LN2_HI64, _LN2_LO64 = 0.6931471805592082, 7.371002565167799e-13  # the same of ln(2)
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
def reduced(s: Any, zero_k: Any) -> Any:
    """(zero_k + k, s - k * ln(2)/8) for the integer k that leaves least."""
    t = fma(s, constant(s, 8.0 * _LOG2E, 8.0 * _LOG2E), zero_k)
    k = t - zero_k
    r = fma(k, constant(s, -_EIGHTH_HI32, -_EIGHTH_HI64), s)  # exact
    return t, fma(k, constant(s, -_EIGHTH_LO32, -_EIGHTH_LO64), r)


@inline
def origin(m: Any) -> Any:
    """What `exp_from` takes exponentials of z - m from, for rows with the maximum m.

    z - m itself would be rounded: by that the softmax of others loses 30 to 130 ulps. So z and m are each taken apart, and
    what is left of them subtracted. Where m is too large for that, z - m is exact.
    """
    near = (constant(m, -_FAR32, -_FAR64) < m) & (m < constant(m, _FAR32, _FAR64))
    zero, zero_k = constant(m, 0.0, 0.0), constant(m, _ROUND32, _ROUND64)
    t, r = reduced(select(near, m, zero), zero_k)
    return select(near, zero, m), constant(m, _ZERO32, _ZERO64) - (t - zero_k), r


@inline
def exp_from(z: Any, base: Any) -> Any:
    """exp(z - m) * TOP for base = origin(m), z <= m, within 0.7 ulp; exactly TOP at m, 0 at -inf, NaN at NaN.

    17 operations; with z - m as a pair, and without a table, there were 23 (Zen 4, with sums: 0.31 -> 0.22 ns an element).
    """
    return exp_ended(exp_begun(z, base))


# In two halves: an exponential is a long chain of operations that wait for each other, and only so many that wait find room in
# a CPU. A loop that begins some vectors before it ends those before (`four_begun`, `four_ended`) keeps more of them under way
# (Zen 5, logsumexp, 4,096 classes, float32: 9.8 -> 8.1 cycles a vector).
@inline
def exp_begun(z: Any, base: Any) -> Any:
    offset, zero_k, rest = base
    t, r = reduced(z - offset, zero_k)
    return t, r - rest


@inline
def exp_ended(begun: Any) -> Any:
    return exp_ended_by(begun, _EIGHTHS32, _EIGHTHS64)


@inline
def exp_ended_by(begun: Any, eighths32: Any, eighths64: Any) -> Any:
    """The same with another c and its table, see `_EIGHTHS32`."""
    t, r = begun
    power = power_of_two(t, eighths32, eighths64)
    value = fma(power, fma(r * r, horner(r, _P32, _P64), r), power)
    return select(t < constant(t, _LEAST32, _LEAST64), constant(t, 0.0, 0.0), value)


@inline
def exp_below(s: Any) -> Any:
    """exp(s) * 2**SHIFT for s <= 0, within 1.3 ulps, exactly 2**SHIFT at 0."""
    return exp_below_ended(exp_below_begun(s))


@inline
def exp_below_begun(s: Any) -> Any:
    return exp_begun(s, origin(constant(s, 0.0, 0.0)))


@inline
def exp_below_ended(begun: Any) -> Any:
    return exp_ended_by(begun, _EIGHTHS32, _ROOTS) * constant(begun[0], _INVERSE32, 1.0)


# ---- the sum of a row's exponentials, less one ------------------------------------------------------------------------
# With the maximum subtracted a row's sum is 1 + d, and every loss wants log1p(d): d of a confident row is 1e-20 and must
# keep its digits. So each lane starts at 2 (ones are kept as TOP), which no exponential exceeds: Dekker's fast two-sum is then
# exact, the ones stay in `hi`, whatever is small falls into `lo`, and at the end the ones are taken off again. From 1 on the
# spacing of `hi` would change as the maximum is added, and the two parts cancel where d is as small as that (worst of 240,000
# rows of float64: 4.05 ulps, 2.65 so). 4 adds a vector; widening every vector to doubles took 5.4 cycles of 13. `lo` itself is
# moved to doubles every few vectors of a wide row; for narrow ones see `tile_exact`.
@inline
def lane_start(like: Any) -> Any:
    """(hi, lo) of an empty lane sum."""
    return constant(like, START32, START64), constant(like, 0.0, 0.0)


@inline
def lane_part(hi: Any, value: Any) -> Any:
    """Their sum, and what rounding takes from it."""
    s = hi + value
    return s, value - (s - hi)


@inline
def lane_add(hi: Any, lo: Any, value: Any) -> Any:
    s, lost = lane_part(hi, value)
    return s, lo + lost


@inline
def four_added(hi: Any, lo: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The same of four, in fewer roundings one after the other."""
    hi, a = lane_part(hi, a)
    hi, b = lane_part(hi, b)
    hi, c = lane_part(hi, c)
    hi, d = lane_part(hi, d)
    return hi, lo + ((a + c) + (b + d))


@inline
def four_begun(z: Any, j: int, base: Any) -> Any:
    """The first halves of four vectors' exponentials."""
    step = lanes(z)
    a, b = exp_begun(load(z, j), base), exp_begun(load(z, j + step), base)
    return a, b, exp_begun(load(z, j + 2 * step), base), exp_begun(load(z, j + 3 * step), base)


@inline
def four_ended(begun: Any, e: Any, j: int, keep: bool, hi: Any, lo: Any) -> Any:
    """Their second halves, kept at e[j] if they are to be, and the lanes' sums with them."""
    step = lanes(e)
    a, b, c, d = exp_ended(begun[0]), exp_ended(begun[1]), exp_ended(begun[2]), exp_ended(begun[3])
    if keep:
        store(e, j, a)
        store(e, j + step, b)
        store(e, j + 2 * step, c)
        store(e, j + 3 * step, d)
    return four_added(hi, lo, a, b, c, d)


@inline
def rest_begun(z: Any, j: int, k: int, base: Any) -> Any:
    """`four_begun` of k elements, at most four vectors; what is missing is -inf, whose exponential is 0.

    In halves too, and no vector by itself (float32, 100 classes: 124 -> 108 cycles a row, before `rows_across`).
    """
    step, none = lanes(z), constant(z, -np.inf, -np.inf)
    a, b = exp_begun(load_first(z, j, k, none), base), exp_begun(load_first(z, j + step, k - step, none), base)
    c, d = a, b
    if k > 2 * step:
        c = exp_begun(load_first(z, j + 2 * step, k - 2 * step, none), base)
        d = exp_begun(load_first(z, j + 3 * step, k - 3 * step, none), base)
    return a, b, c, d


@inline
def rest_ended(begun: Any, e: Any, j: int, k: int, keep: bool, hi: Any, lo: Any) -> Any:
    """`four_ended` of them."""
    step = lanes(e)
    a, b = exp_ended(begun[0]), exp_ended(begun[1])
    if keep:
        store_first(e, j, a, k)
        store_first(e, j + step, b, k - step)
    c, d = constant(a, 0.0, 0.0), constant(a, 0.0, 0.0)
    if k > 2 * step:
        c, d = exp_ended(begun[2]), exp_ended(begun[3])
        if keep:
            store_first(e, j + 2 * step, c, k - 2 * step)
            store_first(e, j + 3 * step, d, k - 3 * step)
    return four_added(hi, lo, a, b, c, d)


@inline
def low_start() -> Any:
    """Where `lo` is gathered, as double vectors."""
    return splat(0.0), splat(0.0)


@by_type
def low_add(low, lo):
    """Move `lo` there: of doubles there is only one sum, a pair."""
    if lo == V32:

        def floats(low, lo):
            a, b = widen(lo)
            return low[0] + a, low[1] + b

        return floats

    def doubles(low, lo):
        s, error = two_sum(low[0], lo)
        return s, low[1] + error

    return doubles


@inline
def low_moved(low: Any, lo: Any, exact: bool) -> Any:
    """The same if d is to be exact, and what is left of `lo`. The sum alone needs no more digits of its small part."""
    if exact:
        return low_add(low, lo), constant(lo, 0.0, 0.0)
    return low, lo


@inline
def fold(hi: Any, lo: Any, width: Any) -> Any:
    """Each lane of a pair plus the lane `width` on; the parts of the result may overlap."""
    s, error = two_sum(hi, rotate_half(hi, width))
    return s, error + (lo + rotate_half(lo, width))


@inline
def fold_pair(hi: Any, lo: Any) -> Any:
    """The sum over all lanes of a pair of double vectors, as a pair (lanes alike; fixed tree)."""
    hi, lo = fast_two_sum(*fold(hi, lo, 4))
    hi, lo = fast_two_sum(*fold(hi, lo, 2))
    return fast_two_sum(*fold(hi, lo, 1))


@inline
def times_unit(hi: Any, lo: Any) -> Any:
    """A pair of double vectors divided by TOP64."""
    p, error = two_product(hi, splat(_INVERSE64[0]))
    error = error + fma(hi, splat(_INVERSE64[1]), lo * splat(_INVERSE64[0]))
    return p * splat(1.0 / SHIFT64), error * splat(1.0 / SHIFT64)


@by_type
def sum_parts(hi, low):
    """What is to be added up over all lanes of a row, as a pair of double vectors."""
    if hi == V32:

        def floats(hi, low):
            a, b = widen(hi)  # sums of floats above 1 are exact in doubles
            return a + b, low[0] + low[1]

        return floats

    return lambda hi, low: pair_less(hi, low[0] + low[1], splat(START64))


@by_type
def sum_ended(like, hi, lo):
    """d: what they add up to, less one."""
    if like.dtype is types.float32:
        return lambda like, hi, lo: (((hi - splat(16.0 * START32 + TOP32)) + lo) * splat(_INVERSE32 / SHIFT32), splat(0.0))
    return lambda like, hi, lo: times_unit(*pair_less(hi, lo, splat(TOP64)))


@inline
def pair_less(hi: Any, lo: Any, number: Any) -> Any:
    """A pair of double vectors less a number, as a pair."""
    s, error = two_diff(hi, number)
    return fast_two_sum(s, error + lo)


@by_type
def row_sum(hi, low):
    """d over all lanes: a row's sum of exponentials less one, as a pair of double vectors (lanes alike; fixed tree)."""
    if hi == V32:

        def floats(hi, low):
            ones, rest = sum_parts(hi, low)
            return sum_ended(hi, splat(total(ones)), splat(total(rest)))

        return floats

    return lambda hi, low: sum_ended(hi, *fold_pair(*sum_parts(hi, low)))


@inline
def eight_pairs(hi: Any, lo: Any) -> Any:
    """`fold_pair` of the eight pairs of vectors at hi and lo, in lanes 0..7: a third of the operations."""
    return folded(four_pairs(hi, lo), four_pairs(shift(hi, 32), shift(lo, 32)), 2)


@inline
def four_pairs(hi: Any, lo: Any) -> Any:
    a = folded((load(hi, 0), load(lo, 0)), (load(hi, 8), load(lo, 8)), 8)
    return folded(a, folded((load(hi, 16), load(lo, 16)), (load(hi, 24), load(lo, 24)), 8), 4)


@inline
def folded(a: Any, b: Any, width: Any) -> Any:
    """A level of that tree for two vectors of pairs: the halves of each run of `width` lanes are added."""
    x, y = halves(a[0], b[0], width)
    x_lo, y_lo = halves(a[1], b[1], width)
    s, error = two_sum(x, y)
    return fast_two_sum(s, error + (x_lo + y_lo))


@by_type
def lane_sums(hi, low):
    """d of each lane by itself: pairs of double vectors for lanes 0..7 and 8..15 (of doubles: the same 8 lanes twice)."""
    if hi == V32:

        def floats(hi, low):
            a, b = widen(hi)
            ones, unit = splat(START32 + TOP32), splat(_INVERSE32 / SHIFT32)
            return (((a - ones) + low[0]) * unit, splat(0.0)), (((b - ones) + low[1]) * unit, splat(0.0))

        return floats

    def doubles(hi, low):
        pair = times_unit(*pair_less(hi, low[0] + low[1], splat(START64 + TOP64)))
        return pair, pair

    return doubles


@by_type
def low_sums(like, low):
    """What is gathered there, as `lane_sums` gives d."""
    if like == V32:

        def floats(like, low):
            unit = splat(_INVERSE32 / SHIFT32)
            return (low[0] * unit, splat(0.0)), (low[1] * unit, splat(0.0))

        return floats

    def doubles(like, low):
        pair = times_unit(*fast_two_sum(low[0], low[1]))
        return pair, pair

    return doubles


@by_type
def reciprocal(hi, lo):
    """SHIFT over a lane sum whose small part was never moved, as a pair: what makes its exponentials probabilities (`scaled`).

    In floats where there is FMA: in doubles it took a quarter of the softmax of 8192 x 10.
    """
    if hi == V32 and not FMA:

        def through_doubles(hi, lo):
            d, e = lane_sums(hi, low_add(low_start(), lo))
            return multiplier(hi, ratio(hi, splat(1.0), *plus_one(d[0], d[1])), ratio(hi, splat(1.0), *plus_one(e[0], e[1])))

        return through_doubles

    def directly(hi, lo):
        shift, start = constant(hi, SHIFT32, SHIFT64), constant(hi, START32, START64)
        s = hi - start
        s, lo = fast_two_sum(s, ((hi - s) - start) + lo)
        q = shift / s
        rest = exact_fma(-q, s, shift)
        return q, fma(-q, lo, rest) * (q * constant(hi, 1.0 / SHIFT32, 1.0 / SHIFT64))

    return directly


@by_type
def exponentials(value):
    """A vector of exponentials as two of doubles, as `in_doubles`; exactly 1 where it is TOP."""
    if value == V32:

        def floats(value):
            a, b = widen(value)
            return a * splat(_INVERSE32 / SHIFT32), b * splat(_INVERSE32 / SHIFT32)

        return floats

    def doubles(value):
        e = value * splat(_INVERSE64[0]) * splat(1.0 / SHIFT64)
        return e, e

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
def multiplier(like, low, high):
    """Two pairs of double vectors as one of `like`'s type, to multiply exponentials with: `scaled` then takes SHIFT off."""
    if like.dtype is types.float32:

        def floats(like, low, high):
            unit = splat(_INVERSE32)
            return pair_from_doubles(like, (low[0] * unit, low[1]), (high[0] * unit, high[1]))

        return floats

    def doubles(like, low, high):
        p, error = two_product(low[0], splat(_INVERSE64[0]))
        return p, error + fma(low[0], splat(_INVERSE64[1]), low[1] * splat(_INVERSE64[0]))

    return doubles


@by_type
def scaled(value, q_hi, q_lo):
    """value * 2**-SHIFT * (q_hi + q_lo), rounded once in the normal range and again only below it."""
    if value == V32 and not FMA:  # a product and a sum would be rounded: 2.03 ulps in all, not under 2

        def floats(value, q_hi, q_lo):
            a, b = widen(value)
            h0, h1 = widen(q_hi)
            l0, l1 = widen(q_lo)
            return narrow(a * (h0 + l0), b * (h1 + l1)) * splat(np.float32(1.0 / SHIFT32))

        return floats
    return lambda value, q_hi, q_lo: (
        fma(value, q_hi, value * q_lo) * constant(value, 1.0 / SHIFT32, 1.0 / SHIFT64)
    )


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
# ln(2)/8 in three: the first two times any k that occurs are exact
_EIGHTH_1, _EIGHTH_2, _EIGHTH_3 = _EIGHTH_HI64, 2.0582436978583079e-13, 3.827300920023315e-25
# What 2**(i/8) has beyond `_ROOTS`, as a part of it
_ROOTS_LO = (
    0.0, -2.7939114859515733e-17, 3.3484623336251524e-17, 1.9572585293112036e-17, -6.835808657661922e-17,
    5.1548301170786783e-17, 4.875160526227062e-17, 1.790126907604513e-17,
)  # fmt: skip
_T = tuple(1.0 / factorial(k) for k in range(4, 12))
_6TH_LO = float(Fraction(1, 6) - Fraction(1.0 / 6.0))  # less its double


@inline
def exp_pair(s: Any, lo: Any) -> Any:
    """exp(s + lo) * 2**SHIFT for double vectors s <= 0, as a pair within 2**-74.

    The low part is an ulp of the high one at most, and fades below exp = 1e-290.
    """
    return exp_pair_ended(exp_pair_begun(s, lo))


@inline
def exp_pair_begun(s: Any, lo: Any) -> Any:
    """Its first half, see `exp_begun`."""
    t = fma(s, splat(8.0 * _LOG2E), splat(_ZERO64))
    k = t - splat(_ZERO64)
    r, error = two_diff(fma(k, splat(-_EIGHTH_1), s), k * splat(_EIGHTH_2))
    r, r_lo = fast_two_sum(r, error + (lo - k * splat(_EIGHTH_3)))
    # expm1(r) = r + r^2 (1/2 + r (1/6 + r T(r))), in pairs but for T; then 2^(k/8) times one more
    a, a_lo = fast_two_sum(splat(1.0 / 6.0), r * polynomial(r, _T, _T))
    return t, r, r_lo, a, a_lo


@inline
def exp_pair_ended(begun: Any) -> Any:
    t, r, r_lo, a, a_lo = begun
    p, error = two_product(r, a)
    b, b_lo = fast_two_sum(splat(0.5), p)
    b_lo = b_lo + fma(r, a_lo + splat(_6TH_LO), fma(r_lo, a, error))
    w, w_lo = two_product(r, r)
    w_lo = fma(r + r, r_lo, w_lo)
    p, error = two_product(w, b)
    y, y_lo = fast_two_sum(r, p)
    y_lo = y_lo + (r_lo + fma(w, b_lo, fma(w_lo, b, error)))
    power, missing = power_of_two(t, _ROOTS, _ROOTS), eighth(t, _ROOTS_LO)
    y_lo = y_lo + fma(missing, y, missing)
    p, error = two_product(power, y)
    value, rest = fast_two_sum(power, p)
    rest = rest + fma(power, y_lo, error)
    outside, zero = t < splat(_LEAST64), splat(0.0)
    return select(outside, zero, value), select(outside, zero, rest)
