"""Branch-free exp, tanh, sigmoid, log and log1p that LLVM vectorises inside a loop.

Numba calls the C library's exp and tanh one element at a time, and a call in a loop keeps the
loop scalar. The functions here are straight-line arithmetic with selects, so the loop around them
becomes AVX2 or AVX-512 code. They follow fdlibm and Cephes: reduce the argument by a power of two
(Cody and Waite), evaluate a short series, put the power of two back into the exponent bits.

Each takes a float32 or float64 scalar in compiled code, over the whole range: overflow to inf,
gradual underflow, NaN stays NaN, zeros keep their sign. tests/test_kernels_cpu.py holds bounds on
the errors. Of fast-math, only the contraction of a*b + c into a fused multiply-add is allowed.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload, register_jitable

_LOOP: dict[str, Any] = {"fastmath": {"contract"}, "error_model": "numpy"}
_INLINE: dict[str, Any] = {**_LOOP, "forceinline": True}

# Bits of the mantissa and of the whole number.
_BITS = {types.float32: (23, 32), types.float64: (52, 64)}


@intrinsic
def _shift_to_exponent(typingctx, x):
    """The number whose exponent field holds the lowest bits of x's mantissa."""

    def codegen(context, builder, signature, args):
        mantissa, width = _BITS[x]
        integer = ir.IntType(width)
        bits = builder.bitcast(args[0], integer)
        bits = builder.shl(bits, ir.Constant(integer, mantissa))
        return builder.bitcast(bits, args[0].type)

    return x(x), codegen


@intrinsic
def _split_exponent(typingctx, x, low):
    """(m, t) with x = m 2^e and low <= m < 2 low, for a normal x > 0 and 1/2 < low < 1.

    t = 2^mantissa + bias + e: subtracting the constant gives e without a conversion from integers,
    which AVX2 lacks for 64 bits.
    """

    def codegen(context, builder, signature, args):
        mantissa, width = _BITS[x]
        integer = ir.IntType(width)
        bias = 2 ** (width - mantissa - 2) - 1
        one = ir.Constant(integer, bias << mantissa)
        low_bits = builder.bitcast(args[1], integer)
        bits = builder.add(builder.bitcast(args[0], integer), builder.sub(one, low_bits))
        e = builder.lshr(bits, ir.Constant(integer, mantissa))
        t = builder.or_(e, ir.Constant(integer, (bias + mantissa) << mantissa))
        m = builder.and_(bits, ir.Constant(integer, (1 << mantissa) - 1))
        m = builder.add(m, low_bits)
        pair = [builder.bitcast(m, args[0].type), builder.bitcast(t, args[0].type)]
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(x, 2)(x, x), codegen


@intrinsic
def _copysign(typingctx, x, sign):
    """|x| with the sign of `sign`."""

    def codegen(context, builder, signature, args):
        real = args[0].type
        function = ir.FunctionType(real, (real, real))
        return builder.call(
            builder.module.declare_intrinsic("llvm.copysign", (real,), function), args
        )

    return x(x, x), codegen


@intrinsic
def accumulate(typingctx, total, x):
    """total + x in float64, as the one addition that the compiler may reorder.

    A sum along a row vectorises only so: into partial sums, the same ones at every call.
    """

    def codegen(context, builder, signature, args):
        addend = context.cast(builder, args[1], x, types.float64)
        return builder.fadd(args[0], addend, flags=("reassoc", "nsz", "contract"))

    return types.float64(types.float64, x), codegen


def _define(dtype: type[np.floating[Any]]) -> dict[str, Callable[..., Any]]:
    """The functions for one dtype. All constants have it: a float64 literal would widen float32."""
    inline = register_jitable(**_INLINE)
    single = dtype is np.float32
    info = np.finfo(dtype)
    zero, half, one, two, inf, nan = map(dtype, (0, 0.5, 1, 2, np.inf, np.nan))
    bias = info.maxexp - 1
    # Makes a subnormal number normal.
    tiny, grow, log_grow = info.tiny, dtype(2**info.nmant), dtype(info.nmant * math.log(2))

    # Adding `round_` leaves the nearest integer in the lowest bits; `biased` adds the bias as well.
    round_, biased = dtype(1.5 * 2**info.nmant), dtype(1.5 * 2**info.nmant + bias)
    exponent_zero = dtype(2**info.nmant + bias)
    log2_e, sqrt_half = dtype(1 / math.log(2)), dtype(math.sqrt(0.5))
    # ln 2 in two parts; the first is so short that its product with an exponent is exact (fdlibm).
    ln2_high = dtype(6.9314575195e-01 if single else 6.93147180369123816490e-01)
    ln2_low = dtype(1.4286067653e-06 if single else 1.90821492927058770002e-10)
    # e^x is 0 below, inf above, and tanh(x / 2) rounds to 1 above.
    lowest, highest, saturated = map(dtype, (-104, 89, 40) if single else (-746, 710, 40))

    # (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2: the Taylor series to below a tenth of an ulp.
    exp_series = tuple(dtype(1 / math.factorial(k)) for k in range(2, 8 if single else 14))
    # Minimax for log((1 + s) / (1 - s)) / s - 2 in powers of s^2 (fdlibm, e_logf.c and e_log.c).
    log_series = tuple(
        map(
            dtype,
            (0.66666662693, 0.40000972152, 0.28498786688, 0.24279078841)
            if single
            else (
                6.666666666666735130e-01,
                3.999999999940941908e-01,
                2.857142874366239149e-01,
                2.222219843214978396e-01,
                1.818357216161805012e-01,
                1.531383769920937332e-01,
                1.479819860511658591e-01,
            ),
        )
    )

    @inline
    def polynomial(x, coefficients):
        result = coefficients[-1]
        for k in range(len(coefficients) - 2, -1, -1):
            result = result * x + coefficients[k]
        return result

    @inline
    def reduce_exp(x):
        """n and q with e^x = 2^n (1 + q)."""
        n = (x * log2_e + round_) - round_
        r = (x - n * ln2_high) - n * ln2_low
        return n, r + r * r * polynomial(r, exp_series)

    def exp(x):
        x = lowest if x < lowest else x
        x = highest if x > highest else x
        n, q = reduce_exp(x)
        # Two factors, since 2^n itself may be out of range where e^x is not.
        first = (n * half + round_) - round_
        scaled = (one + q) * _shift_to_exponent(first + biased)
        return scaled * _shift_to_exponent((n - first) + biased)

    exp_ = inline(exp)

    @inline
    def expm1(x):
        """e^x - 1 for |x| <= saturated."""
        n, q = reduce_exp(x)
        power = _shift_to_exponent(n + biased)
        return power * q + (power - one)

    def tanh(x):
        y = two * abs(x)
        t = expm1(saturated if y > saturated else y)
        return _copysign(t / (t + two), x)

    def sigmoid(x):
        e = exp_(-abs(x))
        return (one if x >= zero else e) / (one + e)

    @inline
    def log_sum(u, c):
        """log(u) + c for a normal u > 0 and a small correction c."""
        m, t = _split_exponent(u, sqrt_half)
        e = t - exponent_zero
        f = m - one
        s = f / (two + f)
        s2 = s * s
        h = half * f * f
        tail = s * (h + s2 * polynomial(s2, log_series)) + (e * ln2_low + c)
        return e * ln2_high + ((tail - h) + f)

    def log(x):
        subnormal = x < tiny
        result = log_sum(x * grow if subnormal else x, -log_grow if subnormal else zero)
        result = result if x < inf else x  # inf and NaN
        return result if x > zero else (-inf if x == zero else nan)

    def log1p(x):
        u = one + x
        lost = (one - (u - x)) if x > one else (x - (u - one))  # 1 + x - u, exactly
        result = log_sum(u, lost / u)
        result = result if x < inf else x
        result = x if u == one else result
        return result if x > -one else (-inf if x == -one else nan)

    def logistic_log_density(x):
        absolute = abs(x)
        e = exp_(-absolute)
        u = one + e
        return -absolute - two * log_sum(u, (e - (u - one)) / u)

    functions = exp, tanh, sigmoid, log, log1p, logistic_log_density
    return {function.__name__: function for function in functions}


_DEFINITIONS = {types.float32: _define(np.float32), types.float64: _define(np.float64)}


def _public(function: Callable[..., Any]) -> Callable[..., Any]:
    """Makes compiled calls of this function take the definition for the argument's type."""

    @overload(function, jit_options=_INLINE)
    def _(x):
        return _DEFINITIONS[x][function.__name__] if x in _DEFINITIONS else None

    return function


@_public
def exp(x):
    """e^x."""


@_public
def tanh(x):
    """(e^2x - 1) / (e^2x + 1), relatively exact near 0."""


@_public
def sigmoid(x):
    """1 / (1 + e^-x), relatively exact in both tails."""


@_public
def log(x):
    """The natural logarithm: -inf at 0, NaN below."""


@_public
def log1p(x):
    """log(1 + x), relatively exact near 0: -inf at -1, NaN below."""


@_public
def logistic_log_density(x):
    """log(sigmoid(x) sigmoid(-x)), without cancellation."""


@njit(**_LOOP)
def exp_in_place(block):
    """block = exp(block) for contiguous rows, as one flat loop: full vectors for short rows too."""
    flat = block.reshape(block.size)
    for k in range(flat.size):
        flat[k] = exp(flat[k])


@njit(**_LOOP)
def tanh_in_place(block):
    """block = tanh(block), likewise."""
    flat = block.reshape(block.size)
    for k in range(flat.size):
        flat[k] = tanh(flat[k])
