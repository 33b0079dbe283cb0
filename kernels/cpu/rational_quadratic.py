"""The rational-quadratic spline on the CPU; formulas in reference/rational_quadratic.py.

All is done on columns: up to TILE elements and their params (P, n), with the loops over elements
inside. For a row of many features the part-major params are such a matrix as they lie; several
short rows are gathered into one. Only the numbers of each element's own bin are picked one by one,
the rest is vector code.

Temporary arrays are rows of two buffers, a fixed number of bytes apart. So LLVM sees that they do
not overlap; it gives up vectorising a loop over many arrays that might.
"""

import math

import numpy as np
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.extending import intrinsic, register_jitable
from numpy import ascontiguousarray as as_contiguous

from npflow.kernels.cpu.math import accumulate, exp, log, log1p, sigmoid
from npflow.kernels.cpu.threads import kernel, run

MINIMUM = 1e-3
SHIFT = math.log(math.expm1(1 - MINIMUM))
TILE = 128  # elements at a time: with 8 bins, the buffers take 27 KB in float32

# Kernels that call kernels can have other digits in the process that compiles them than when they
# come from the cache: what is inlined where differs. So all of these are inlined.
_inline = register_jitable(fastmath={"contract"}, error_model="numpy", forceinline=True)


@intrinsic
def _row(typingctx, array, i):
    """array[i] of a matrix whose rows are contiguous: of a slice, Numba does not know it."""
    row = types.Array(array.dtype, 1, "C")

    def codegen(context, builder, signature, args):
        source = context.make_array(array)(context, builder, args[0])
        columns = cgutils.unpack_tuple(builder, source.shape)[1]
        stride = cgutils.unpack_tuple(builder, source.strides)[0]
        start = builder.mul(args[1], stride)
        result = context.make_array(row)(context, builder)
        context.populate_array(
            result,
            data=cgutils.pointer_add(builder, source.data, start, source.data.type),
            shape=[columns],
            strides=[source.itemsize],
            itemsize=source.itemsize,
            meminfo=source.meminfo,
            parent=source.parent,
        )
        return impl_ret_borrowed(context, builder, row, result._getvalue())

    return row(array, types.intp), codegen


# Rows of `bins` (K, 4, TILE), and, for each element's own bin, of `work` (WORK, TILE).
EXP_WIDTH, BEFORE_WIDTH, EXP_HEIGHT, BEFORE_HEIGHT, RAW0, RAW1 = range(6)
# Further rows of `work`.
INDEX, VALUE, PER_WIDTH, PER_HEIGHT, LARGEST, TOTAL, SLOPE, FOUND, D0, D1 = range(6, 16)
DX0, DWIDTH, MEAN_WIDTH, DY0, DHEIGHT, MEAN_HEIGHT, DRAW0, DRAW1 = range(16, 24)
WORK = 24


@_inline
def _exponentials(params, first, bins, row, work, per_exp, rest, n):
    """bins[:, row]: exps of K rows of params from `first` on, over the largest of each column;
    bins[:, row + 1]: for each one, the sum of those before it; work[per_exp] = rest / their sum.
    """
    raw = _row(params, first)
    for i in range(n):
        work[LARGEST, i] = raw[i]
    for k in range(1, len(bins)):
        raw = _row(params, first + k)
        for i in range(n):
            work[LARGEST, i] = max(work[LARGEST, i], raw[i])
    for i in range(n):
        work[TOTAL, i] = 0
    for k in range(len(bins)):
        raw = _row(params, first + k)
        for i in range(n):
            bins[k, row, i] = exp(raw[i] - work[LARGEST, i])
        for i in range(n):
            bins[k, row + 1, i] = work[TOTAL, i]
            work[TOTAL, i] += bins[k, row, i]
    for i in range(n):
        work[per_exp, i] = rest / work[TOTAL, i]


@_inline
def _find_bin(axis, value, params, bound, bins, work):
    """Rows 0 to PER_HEIGHT of work, for the bin in which value (n,), an x for axis 0 and a z for
    axis 1, lies when it is moved to the edge of the box.

    A bin is minimum + PER_WIDTH * EXP_WIDTH wide, and begins as much after the sizes before it.
    """
    n, count, real = len(value), len(bins), value.dtype.type
    zero, one, low, high = real(0), real(1), real(-bound), real(bound)
    minimum, rest = real(2 * bound * MINIMUM), real(2 * bound * (1 - count * MINIMUM))
    _exponentials(params, 0, bins, EXP_WIDTH, work, PER_WIDTH, rest, n)
    _exponentials(params, count, bins, EXP_HEIGHT, work, PER_HEIGHT, rest, n)
    per_exp, before = PER_WIDTH + axis, BEFORE_WIDTH + 2 * axis
    for i in range(n):
        work[VALUE, i] = _clip(value[i], low, high)
        work[INDEX, i] = zero
    for k in range(1, count):
        start = real(k) * minimum + low
        for i in range(n):
            edge = start + work[per_exp, i] * bins[k, before, i]
            work[INDEX, i] += one if work[VALUE, i] >= edge else zero
    for i in range(n):
        k = int(work[INDEX, i])
        for row in range(4):
            work[row, i] = bins[k, row, i]
        work[RAW0, i] = params[2 * count + k - 1, i] if k > 0 else zero
        work[RAW1, i] = params[2 * count + k, i] if k + 1 < count else zero
    for i in range(n):
        work[D0, i] = _derivative(work[RAW0, i], real(MINIMUM), real(SHIFT), zero)
    for i in range(n):
        work[D1, i] = _derivative(work[RAW1, i], real(MINIMUM), real(SHIFT), zero)


@_inline
def _box(work, i, minimum, low):
    """x0, width, y0, height of the bin of element i."""
    start = work[INDEX, i] * minimum + low
    x0 = start + work[PER_WIDTH, i] * work[BEFORE_WIDTH, i]
    y0 = start + work[PER_HEIGHT, i] * work[BEFORE_HEIGHT, i]
    width = minimum + work[PER_WIDTH, i] * work[EXP_WIDTH, i]
    height = minimum + work[PER_HEIGHT, i] * work[EXP_HEIGHT, i]
    return x0, width, y0, height


@_inline
def _clip(x, low, high):
    x = low if x < low else x
    return high if x > high else x


@_inline
def _derivative(raw, least, shift, zero):
    t = raw + shift
    return least + ((t if t > zero else zero) + log1p(exp(-abs(t))))


@_inline
def _evaluate(xi, s, d0, d1, one, two):
    """q, z'(x), the denominator of q and the factor p of z'(x)."""
    eta = one - xi
    denominator = s * (xi * xi + eta * eta) + (d0 + d1) * (xi * eta)
    q = xi * (s * xi + d0 * eta) / denominator
    p = d1 * (xi * xi) + two * s * (xi * eta) + d0 * (eta * eta)
    ratio = s / denominator
    return q, ratio * (p * ratio), denominator, p


@_inline
def _solve(q, s, d0, d1, zero, one, two):
    """xi at q."""
    per_size = one / (s + d0 + d1)
    rest, t = one - q, two * s * per_size
    e = (d0 * rest - d1 * q) * per_size
    g = abs(e) + np.sqrt(e * e + t * t * (q * rest))
    small = t * q if e >= zero else g
    return small / (small + (g if e >= zero else t * rest))


@_inline
def _apply(axis, value, params, bound, found, log_slope):
    """Axis 0: found = z, at x = value (n,), n <= TILE; axis 1: x, at z. And log z'(x) for both."""
    n, count, real = len(value), (len(params) + 1) // 3, value.dtype.type
    zero, one, two, low, high = real(0), real(1), real(2), real(-bound), real(bound)
    minimum = real(2 * bound * MINIMUM)
    bins, work = np.empty((count, 4, TILE), value.dtype), np.empty((WORK, TILE), value.dtype)
    _find_bin(axis, value, params, bound, bins, work)
    if axis == 0:
        for i in range(n):
            x0, width, y0, height = _box(work, i, minimum, low)
            s, d0, d1 = height / width, work[D0, i], work[D1, i]
            xi = _clip((work[VALUE, i] - x0) / width, zero, one)
            q, slope, _, _ = _evaluate(xi, s, d0, d1, one, two)
            work[FOUND, i] = y0 + height * q
            work[SLOPE, i] = slope
    else:
        for i in range(n):
            x0, width, y0, height = _box(work, i, minimum, low)
            s, d0, d1 = height / width, work[D0, i], work[D1, i]
            xi = _solve(_clip((work[VALUE, i] - y0) / height, zero, one), s, d0, d1, zero, one, two)
            _, slope, _, _ = _evaluate(xi, s, d0, d1, one, two)
            work[FOUND, i] = x0 + width * xi
            work[SLOPE, i] = slope
    for i in range(n):
        found[i] = work[FOUND, i] if abs(value[i]) < high else value[i]
    for i in range(n):
        log_slope[i] = log(work[SLOPE, i] if abs(work[VALUE, i]) < high else one)


@_inline
def _pull_back(sign, given, dlog_det, x, params, bound, out, dparams):
    """given and out are dz and dx for sign 1, dx and dz for sign -1; all (n,), n <= TILE."""
    n, count, real = len(x), (len(params) + 1) // 3, x.dtype.type
    zero, one, two, low, high = real(0), real(1), real(2), real(-bound), real(bound)
    minimum, per_rest = real(2 * bound * MINIMUM), real(1 / (2 * bound * (1 - count * MINIMUM)))
    sign = real(sign)
    bins, work = np.empty((count, 4, TILE), x.dtype), np.empty((WORK, TILE), x.dtype)
    _find_bin(0, x, params, bound, bins, work)
    for i in range(n):
        work[DRAW0, i] = sigmoid(work[RAW0, i] + real(SHIFT))
    for i in range(n):
        work[DRAW1, i] = sigmoid(work[RAW1, i] + real(SHIFT))
    for i in range(n):
        x0, width, _, height = _box(work, i, minimum, low)
        s, d0, d1 = height / width, work[D0, i], work[D1, i]
        xi = _clip((work[VALUE, i] - x0) / width, zero, one)
        eta = one - xi
        q, slope, denominator, p = _evaluate(xi, s, d0, d1, one, two)
        per_width, per_denominator, per_p = one / width, one / denominator, one / p
        curvature = ((d1 - s) * xi + (s - d0) * eta) * per_p
        curvature -= (d0 + d1 - two * s) * (eta - xi) * per_denominator
        curvature *= two * per_width
        dlog, g = dlog_det[i], given[i]
        dz = g if sign > 0 else (g - dlog * curvature) / slope
        dx = g * slope + dlog * curvature if sign > 0 else g
        work[FOUND, i] = dx if sign > 0 else dz

        mix = xi * eta * per_denominator
        both = dz * height * mix
        ds = both * ((d1 * (xi * xi) - d0 * (eta * eta)) * per_denominator)
        ds += dlog * two * (one / s + xi * eta * per_p - (xi * xi + eta * eta) * per_denominator)
        dd0 = both * (one - q) + dlog * (eta * eta * per_p - two * mix)
        dd1 = dlog * (xi * xi * per_p - two * mix) - both * q

        # Zero outside of the box; the inverse has the opposite sign.
        inside = abs(work[VALUE, i]) < high
        dx, dz = sign * dx if inside else zero, sign * dz if inside else zero
        ds = sign * ds if inside else zero
        dwidth, dheight = -(dx * xi + ds * s * per_width), dz * q + ds * per_width
        work[DX0, i], work[DWIDTH, i] = -dx, dwidth
        work[DY0, i], work[DHEIGHT, i] = dz, dheight
        mean = work[EXP_WIDTH, i] * dwidth - work[BEFORE_WIDTH, i] * dx
        work[MEAN_WIDTH, i] = work[PER_WIDTH, i] * per_rest * mean
        mean = work[EXP_HEIGHT, i] * dheight + work[BEFORE_HEIGHT, i] * dz
        work[MEAN_HEIGHT, i] = work[PER_HEIGHT, i] * per_rest * mean
        work[DRAW0, i] = sign * dd0 * work[DRAW0, i] if inside else zero
        work[DRAW1, i] = sign * dd1 * work[DRAW1, i] if inside else zero
    for i in range(n):
        out[i] = work[FOUND, i] if abs(x[i]) < high else given[i]
    for a in range(2):
        dedge, dsize, mean = DX0 + 3 * a, DWIDTH + 3 * a, MEAN_WIDTH + 3 * a
        for k in range(count):
            row, here = _row(dparams, a * count + k), real(k)
            for i in range(n):
                index = work[INDEX, i]
                d = work[dedge, i] if here < index else zero
                d = work[dsize, i] if here == index else d
                row[i] = work[PER_WIDTH + a, i] * bins[k, 2 * a, i] * (d - work[mean, i])
    for k in range(count - 1):
        row, left, right = _row(dparams, 2 * count + k), real(k), real(k + 1)
        for i in range(n):
            d = work[DRAW1, i] if work[INDEX, i] == left else zero
            row[i] = work[DRAW0, i] if work[INDEX, i] == right else d


@_inline
def inverse_column(z, params, bound, x):
    """x (n,) = spline^-1(z) (n,) for one feature of n rows, with params (3K-1, n)."""
    log_slope = np.empty(min(len(z), TILE), z.dtype)
    for i in range(0, len(z), TILE):
        j = min(i + TILE, len(z))
        _apply(1, z[i:j], params[:, i:j], bound, x[i:j], log_slope[: j - i])


@_inline
def inverse_backward_column(dx, dlog_det, x, params, bound, dparams):
    """dparams (3K-1, n) of the inverse, given its output x and dx, dlog_det, all (n,)."""
    dz = np.empty(min(len(x), TILE), x.dtype)
    for i in range(0, len(x), TILE):
        j = min(i + TILE, len(x))
        columns, dcolumns = params[:, i:j], dparams[:, i:j]
        _pull_back(-1, dx[i:j], dlog_det[i:j], x[i:j], columns, bound, dz[: j - i], dcolumns)


@_inline
def _tile(d):
    """Rows and columns of a tile of a matrix with d columns."""
    pieces = -(-d // TILE)
    return max(1, TILE // d), -(-d // pieces)


@_inline
def _gather(params, columns, d):
    """columns (P, rows d) = params (rows, P d) of several rows."""
    for p in range(len(columns)):
        for r in range(len(params)):
            for j in range(d):
                columns[p, r * d + j] = params[r, p * d + j]


@_inline
def _scatter(columns, params, d):
    """The inverse of _gather."""
    for r in range(len(params)):
        for p in range(len(columns)):
            for j in range(d):
                params[r, p * d + j] = columns[p, r * d + j]


@kernel
def _apply_tiles(start, stop, axis, value, params, bound, found, log_det):
    d = value.shape[1]
    rows, columns = _tile(d)
    count = params.shape[1] // d
    buffer = np.empty((count, TILE), value.dtype)
    log_slope = np.empty(TILE, value.dtype)
    totals = np.empty(rows)
    for tile in range(start, stop):
        first, last = tile * rows, min((tile + 1) * rows, len(value))
        totals[:] = 0
        for left in range(0, d, columns):
            right = min(left + columns, d)
            width = right - left
            n = (last - first) * width
            if rows > 1:
                _gather(params[first:last], buffer, d)
                piece = buffer[:, :n]
            else:
                piece = params[first].reshape(count, d)[:, left:right]
            here = slice(first * d + left, first * d + left + n)
            given, out = value.reshape(-1)[here], found.reshape(-1)[here]
            _apply(axis, given, piece, bound, out, log_slope[:n])
            for r in range(last - first):
                for j in range(width):
                    totals[r] = accumulate(totals[r], log_slope[r * width + j])
        for r in range(last - first):
            log_det[first + r] = totals[r] if axis == 0 else -totals[r]


@kernel
def _backward_tiles(start, stop, sign, given, dlog_det, x, params, bound, out, dparams):
    d = x.shape[1]
    rows, columns = _tile(d)
    count = params.shape[1] // d
    buffer, dbuffer = np.empty((count, TILE), x.dtype), np.empty((count, TILE), x.dtype)
    dlog = np.empty(TILE, x.dtype)
    for tile in range(start, stop):
        first, last = tile * rows, min((tile + 1) * rows, len(x))
        for left in range(0, d, columns):
            right = min(left + columns, d)
            width = right - left
            n = (last - first) * width
            for r in range(last - first):
                for j in range(width):
                    dlog[r * width + j] = dlog_det[first + r]
            if rows > 1:
                _gather(params[first:last], buffer, d)
                piece, dpiece = buffer[:, :n], dbuffer[:, :n]
            else:
                piece = params[first].reshape(count, d)[:, left:right]
                dpiece = dparams[first].reshape(count, d)[:, left:right]
            here = slice(first * d + left, first * d + left + n)
            g, at, dout = given.reshape(-1)[here], x.reshape(-1)[here], out.reshape(-1)[here]
            _pull_back(sign, g, dlog[:n], at, piece, bound, dout, dpiece)
            if rows > 1:
                _scatter(dbuffer, dparams[first:last], d)


def _tile_count(x):
    rows, columns = x.shape
    return -(-rows // max(1, TILE // columns))


def _run_apply(axis, value, params, bound):
    value, params = as_contiguous(value), as_contiguous(params)
    found, log_det = np.empty_like(value), np.empty(len(value), value.dtype)
    args = axis, value, params, float(bound), found, log_det
    run(_apply_tiles, _tile_count(value), params.size, *args)
    return found, log_det


def _run_backward(sign, given, dlog_det, x, params, bound):
    given, dlog_det = as_contiguous(given), as_contiguous(dlog_det)
    x, params = as_contiguous(x), as_contiguous(params)
    out, dparams = np.empty_like(x), np.empty_like(params)
    args = sign, given, dlog_det, x, params, float(bound), out, dparams
    run(_backward_tiles, _tile_count(x), params.size, *args)
    return out, dparams


def rational_quadratic_forward(x, params, bound):
    return _run_apply(0, x, params, bound)


def rational_quadratic_inverse(z, params, bound):
    return _run_apply(1, z, params, bound)


def rational_quadratic_backward(dz, dlog_det, x, params, bound):
    return _run_backward(1, dz, dlog_det, x, params, bound)


def rational_quadratic_inverse_backward(dx, dlog_det, x, params, bound):
    return _run_backward(-1, dx, dlog_det, x, params, bound)
