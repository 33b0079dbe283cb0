"""The inverse of an autoregressive network in one pass, and its gradient; see reference/.

A block of rows is held transposed: one row of `state` for each input, unit and parameter, so that
all loops run over whole vectors of the batch. What a unit needs is summed up in three stages. Of
the steps (a step is a feature with the units that are final just before it), 64 make a panel and 8
a run:

    before a panel:   what is final by now goes to the sums of the whole panel
    before a run:     what became final in this panel goes to the sums of the run
    before a step:    what became final in this run

So nearly all of the work is done by the large products before the panels. The gradient walks back
in the same way. Sums are taken in an order that depends neither on the batch nor on the threads.
"""

from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from npflow.kernels.cpu._gemm import (
    _INDEX,
    ROWS,
    VECTOR_BYTES,
    VECTORS,
    _Array,
    _Emitter,
    multiply,
    multiply_transposed,
    pack,
    pack_transposed,
)
from npflow.kernels.cpu.linear import _activate, _activate_backward, _code
from npflow.kernels.cpu.math import exp, tanh
from npflow.kernels.cpu.mixture import sample_column
from npflow.kernels.cpu.rational_quadratic import inverse_backward_column, inverse_column
from npflow.kernels.cpu.threads import kernel, run

MAPS = ("additive", "affine", "rational_quadratic", "bernoulli", "mixture")
ADDITIVE, AFFINE, RATIONAL_QUADRATIC, BERNOULLI, MIXTURE = range(5)

PANEL = 64  # steps
RUN = 8
BLOCK = 4 * VECTORS  # vectors of rows
_FEW = 3  # rows of a product that are not worth a call of multiply
_PRODUCTS = 128  # the unit of work of threads.run, see linear.py; half of them are skipped

# Steps are so short that counting references to slices would take most of their time.
_UNCOUNTED: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}, "_nrt": False}
_uncounted = register_jitable(**_UNCOUNTED)


@intrinsic
def _multiply_few(typingctx, a, b, c):
    """c += a b as in _gemm.multiply, for few rows and any number of whole vectors a row."""

    def codegen(context, builder, signature, args):
        emit = _Emitter(builder, context.get_value_type(signature.args[0].dtype))
        a, b, c = map(_Array, [context] * 3, [builder] * 3, signature.args, args)
        width = builder.mul(c.columns, _INDEX(emit.bytes))
        tile = VECTORS * VECTOR_BYTES
        whole = builder.sub(width, builder.urem(width, _INDEX(tile)))
        for start, stop, step in ((_INDEX(0), whole, tile), (whole, width, VECTOR_BYTES)):
            offsets = range(0, step, VECTOR_BYTES)
            totals = [cgutils.alloca_once(builder, emit.vector) for _ in offsets]
            with (
                cgutils.for_range(builder, c.rows, intp=_INDEX) as row,
                cgutils.for_range_slice(builder, start, stop, _INDEX(step), _INDEX) as (column, _),
            ):
                a_row = emit.at(a.data, row.index, a.row)
                b_column = builder.gep(b.data, [column])
                target = builder.gep(emit.at(c.data, row.index, c.row), [column])
                for total, offset in zip(totals, offsets, strict=True):
                    builder.store(emit.load(emit.at(target, offset, 1)), total)
                with cgutils.for_range(builder, b.rows, intp=_INDEX) as k:
                    number = emit.load_scalar(emit.at(a_row, k.index, a.column))
                    factor = emit.broadcast(number, emit.lanes)
                    b_k = emit.at(b_column, k.index, b.row)
                    for total, offset in zip(totals, offsets, strict=True):
                        loaded = emit.load(emit.at(b_k, offset, 1))
                        added = emit.multiply_add(factor, loaded, builder.load(total))
                        builder.store(added, total)
                for total, offset in zip(totals, offsets, strict=True):
                    emit.store(builder.load(total), emit.at(target, offset, 1))
        return context.get_dummy_value()

    return types.void(a, b, c), codegen


@_uncounted
def _add_product(a, source, target):
    """target (n, width) += a (n, depth) source (depth, width)."""
    if len(a) <= _FEW:
        _multiply_few(a, source, target)
        return
    full = VECTORS * (VECTOR_BYTES // source.itemsize)
    for r in range(0, source.shape[1], full):
        tiles = target[:, r : r + full]
        multiply(a, source[:, r : r + full], tiles, tiles, source[:, :0])


@register_jitable(**_UNCOUNTED, forceinline=True)
def _gather(weight, low, high, source, target, parts, first, last, rows, panel):
    """target += weight[low:high]^T source, for the columns first..last of each part.

    weight (n_in, parts n); source (high - low, width), of which `rows` columns are wanted; target
    (n parts, width) has the parts of a column side by side.
    """
    n_in, n_out = weight.shape
    n, full = n_out // parts, panel.shape[1]
    if low == high or first == last:
        return
    if last - first < parts:
        for i in range(first, last):
            a = weight[low:high, i::n].T
            _add_product(a, source, target[i * parts : (i + 1) * parts])
        return
    for p in range(parts):
        for i in range(first, last, full):
            end = min(i + full, last)
            columns = weight[low:high, p * n + i : p * n + end]
            sums = target[i * parts + p : end * parts : parts]
            if end - i < ROWS:
                _add_product(columns.T, source, sums)
            elif rows < full and (high - 1) * n_out + p * n + i + full <= n_in * n_out:
                # So few rows that packing is not worth it. Whole vectors are read, also of the
                # last row of columns: there is enough behind it.
                added = panel[: end - i, :rows]
                multiply_transposed(source[:, :rows].T, columns, added)
                for u in range(end - i):
                    for r in range(rows):
                        sums[u, r] += added[u, r]
            else:
                pack(columns, panel)
                _add_product(panel[: high - low, : end - i].T, source, sums)


@_uncounted
def _scatter(weight, source, target, parts, first, last):
    """target += weight[:, columns] source, for the columns first..last of each part.

    weight (n_in, parts n); source (n parts, width), as the target of _gather; target (n_in, width).
    """
    n = weight.shape[1] // parts
    if len(weight) == 0 or first == last:
        return
    if last - first < parts:
        for i in range(first, last):
            _add_product(weight[:, i::n], source[i * parts : (i + 1) * parts], target)
        return
    for p in range(parts):
        a = weight[:, p * n + first : p * n + last]
        _add_product(a, source[first * parts + p : last * parts : parts], target)


@_uncounted
def _advance(network, state, since, i, end, own, rows, panel):
    """Adds what became final in the steps since..i to the sums of the steps i..end.

    since = -1 is from the context on. With `own` the sums are complete, and the units are made of
    them, layer after layer: what step i still needs of its own units is added too.
    """
    weights, direct, offsets, counts, parts, activation = network
    layers = len(weights)
    for layer in range(layers):
        low, high = counts[layer, since + 1], counts[layer, i + 1 + (own and layer > 0)]
        first, last = counts[layer + 1, i + 1], counts[layer + 1, end + 1]
        source = state[offsets[layer] + low : offsets[layer] + high]
        target = state[offsets[layer + 1] : offsets[layer + 2]]
        p = parts if layer == layers - 1 else 1
        _gather(weights[layer], low, high, source, target, p, first, last, rows, panel)
        if layer == layers - 1 and len(direct) > 0:
            low, high = counts[0, since + 1], counts[0, i + 1]
            _gather(direct, low, high, state[low:high], target, p, first, last, rows, panel)
        elif own and layer < layers - 1:
            for j in range(first, last):
                _activate(target[j], activation)


@_uncounted
def _retreat(network, dstate, layer, begin, end, until, own):
    """Adds, through one layer, the gradients of the steps end..until to those of begin..end.

    With `own`, step `begin` has given its own units of the next layer theirs, which count too.
    """
    weights, direct, offsets, counts, parts, _ = network
    layers = len(weights)
    low, high = counts[layer, begin + 1], counts[layer, end + 1]
    first, last = counts[layer + 1, (begin if own else end) + 1], counts[layer + 1, until + 1]
    source = dstate[offsets[layer + 1] : offsets[layer + 2]]
    target = dstate[offsets[layer] + low : offsets[layer] + high]
    p = parts if layer == layers - 1 else 1
    _scatter(weights[layer][low:high], source, target, p, first, last)
    if layer == 0 and len(direct) > 0:
        dparams = dstate[offsets[layers] :]
        _scatter(direct[low:high], dparams, target, parts, end, until)


@kernel
def _inverse_column(map, z, params, constants, x):
    """x (width,) of one feature from z (Q, width), params (P, width) and constants (n,)."""
    zero, one = x.dtype.type(0), x.dtype.type(1)
    noise, shift = z[0], params[0]
    if map == ADDITIVE:
        for r in range(len(x)):
            x[r] = noise[r] - shift[r]
    elif map == AFFINE:
        bound, raw = constants[0], params[1]
        for r in range(len(x)):
            x[r] = -bound * tanh(raw[r])
        for r in range(len(x)):
            x[r] = (noise[r] - shift[r]) * exp(x[r])
    elif map == BERNOULLI:
        for r in range(len(x)):
            x[r] = one if noise[r] < shift[r] else zero
    elif map == RATIONAL_QUADRATIC:
        inverse_column(noise, params, constants[0], x)
    else:
        sample_column(z, params, x)


@kernel
def _inverse_backward_column(map, dx, dlog_det, x, params, constants, dparams):
    """dparams (P, width) of one feature, from the whole dx (width,)."""
    one = x.dtype.type(1)
    dshift = dparams[0]
    if map == ADDITIVE:
        for r in range(len(x)):
            dshift[r] = -dx[r]
    elif map == RATIONAL_QUADRATIC:
        inverse_backward_column(dx, dlog_det, x, params, constants[0], dparams)
    else:
        bound, raw, draw = constants[0], params[1], dparams[1]
        for r in range(len(x)):
            draw[r] = tanh(raw[r])
        for r in range(len(x)):
            dshift[r] = -dx[r] * exp(-bound * draw[r])
        for r in range(len(x)):
            dlog_scale = -dx[r] * x[r] - dlog_det[r]
            draw[r] = dlog_scale * bound * (one - draw[r] * draw[r])


@kernel
def _unpack(state, rows):
    """rows (n, size) = the first n columns of state (size, width), transposed."""
    n, size = rows.shape
    lanes = VECTOR_BYTES // rows.itemsize
    whole = size - size % lanes
    for first in range(0, n, ROWS):  # so few that each row is written from left to right
        last = min(first + ROWS, n)
        pack_transposed(state[:whole, first:last], rows[first:last, :whole])
    for i in range(n):
        for j in range(whole, size):
            rows[i, j] = state[j, i]


@kernel
def _cut(start, stop, block, blocks, batch, lanes):
    """The rows of a block, and its width: [start, stop) vectors of rows are shared out evenly."""
    first = start + (stop - start) * block // blocks
    last = start + (stop - start) * (block + 1) // blocks
    return first * lanes, min(last * lanes, batch), (last - first) * lanes


@kernel
def _inverse(start, stop, network, z, context, bias, map, constants, outputs):
    """[start, stop) counts vectors of rows. outputs: x, the activations and params."""
    weights, _, offsets, counts, parts, _ = network
    layers, features = len(weights), constants.shape[0]
    numbers = z.shape[1] // features
    lanes = VECTOR_BYTES // z.itemsize
    size = offsets[-1] + z.shape[1]
    memory = np.empty(size * BLOCK * lanes, z.dtype)
    panel = np.empty((np.max(np.diff(offsets[:-1])), VECTORS * lanes), z.dtype)
    blocks = -(-(stop - start) // BLOCK)
    for block in range(blocks):
        top, bottom, width = _cut(start, stop, block, blocks, len(z), lanes)
        rows = bottom - top
        both = memory[: size * width].reshape(size, width)
        state, noise = both[: offsets[-1]], both[offsets[-1] :]
        params = state[offsets[layers] :]
        pack_transposed(context[top:bottom], state)
        for q in range(numbers):
            part = z[top:bottom, q * features : (q + 1) * features]
            pack_transposed(part, noise[q::numbers])
        for j in range(len(bias)):
            state[offsets[1] + j] = bias[j]
        for a in range(0, features, PANEL):
            b = min(a + PANEL, features)
            _advance(network, state, -1, a, b, False, rows, panel)
            for c in range(a, b, RUN):
                d = min(c + RUN, b)
                _advance(network, state, a, c, d, False, rows, panel)
                for i in range(c, d):
                    _advance(network, state, c, i, i + 1, True, rows, panel)
                    z_i = noise[i * numbers : (i + 1) * numbers]
                    params_i = params[i * parts : (i + 1) * parts]
                    _inverse_column(map, z_i, params_i, constants[i], state[counts[0, i + 1]])
        _unpack(state[counts[0, 1] : offsets[1]], outputs[0][top:bottom])
        for layer in range(1, layers):
            _unpack(state[offsets[layer] : offsets[layer + 1]], outputs[layer][top:bottom])
        for p in range(parts):
            part = outputs[layers][top:bottom, p * features : (p + 1) * features]
            _unpack(params[p::parts], part)


@kernel
def _inverse_backward(start, stop, network, dx, dlog_det, inputs, map, constants, dx_total):
    """[start, stop) counts vectors of rows. inputs: [context | x], the activations and params."""
    weights, _, offsets, counts, parts, activation = network
    layers, features = len(weights), constants.shape[0]
    lanes = VECTOR_BYTES // dx.itemsize
    size = offsets[-1]
    memory = np.empty((2 * size + 1) * BLOCK * lanes, dx.dtype)
    blocks = -(-(stop - start) // BLOCK)
    for block in range(blocks):
        top, bottom, width = _cut(start, stop, block, blocks, len(dx), lanes)
        both = memory[: (2 * size + 1) * width].reshape(2 * size + 1, width)
        state, dstate, dlog = both[:size], both[size:-1], both[-1:]
        params, dparams = state[offsets[layers] :], dstate[offsets[layers] :]
        for layer in range(layers):
            pack_transposed(inputs[layer][top:bottom], state[offsets[layer] :])
        for p in range(parts):
            part = inputs[layers][top:bottom, p * features : (p + 1) * features]
            pack_transposed(part, params[p::parts])
        pack_transposed(dlog_det[top:bottom], dlog)
        pack_transposed(dx[top:bottom], dstate[counts[0, 1] :])
        dstate[offsets[1] : offsets[layers]] = 0
        for b in range(features, 0, -PANEL):
            a = max(b - PANEL, 0)
            for layer in range(layers):
                _retreat(network, dstate, layer, a, b, features, False)
            for d in range(b, a, -RUN):
                c = max(d - RUN, a)
                for layer in range(layers):
                    _retreat(network, dstate, layer, c, d, b, False)
                for i in range(d - 1, c - 1, -1):
                    _retreat(network, dstate, 0, i, i + 1, d, False)
                    x, own = counts[0, i + 1], slice(i * parts, (i + 1) * parts)
                    _inverse_backward_column(
                        map, dstate[x], dlog[0], state[x], params[own], constants[i], dparams[own]
                    )
                    for layer in range(layers - 1, 0, -1):
                        _retreat(network, dstate, layer, i, i + 1, d, True)
                        units = offsets[layer] + counts[layer, i + 1 : i + 3]
                        for j in range(units[0], units[1]):
                            _activate_backward(dstate[j], state[j], activation, dstate[j])
        _unpack(dstate[counts[0, 1] : offsets[1]], dx_total[top:bottom])


def autoregressive_inverse(
    z, context, weights, biases, direct, reaches, ends, activation, map, constants
):
    network, constants = _prepare(weights, direct, ends, activation, map, constants)
    features, sizes = len(constants), [weight.shape[1] for weight in weights]
    numbers = 2 if map == "mixture" else 1
    z, context, *biases = (np.ascontiguousarray(a) for a in (z, context, *biases))
    _check((z, context), len(z), (numbers * features, len(weights[0]) - features))
    _check([bias.reshape(1, -1) for bias in biases], 1, sizes)
    bias = np.concatenate([*biases[:-1], biases[-1].reshape(-1, features).T.reshape(-1)])
    outputs = tuple(np.empty((len(z), size), z.dtype) for size in (features, *sizes))
    _run(_inverse, network, z, context, bias, MAPS.index(map), constants, outputs)
    return outputs[0], outputs[1:-1], outputs[-1]


def autoregressive_inverse_backward(
    dx, dlog_det, x, activations, params, weights, direct, reaches, ends, activation, map, constants
):
    if map in ("bernoulli", "mixture"):
        raise ValueError(f"the map {map!r} has no gradient")
    network, constants = _prepare(weights, direct, ends, activation, map, constants)
    sizes = [len(weights[0]), *(weight.shape[1] for weight in weights)]
    inputs = tuple(np.ascontiguousarray(a) for a in (x, *activations, params))
    dx, dlog_det = np.ascontiguousarray(dx), np.ascontiguousarray(dlog_det).reshape(-1, 1)
    _check((*inputs, dx, dlog_det), len(dx), (*sizes, len(constants), 1))
    dx_total = np.empty_like(dx)
    _run(_inverse_backward, network, dx, dlog_det, inputs, MAPS.index(map), constants, dx_total)
    return dx_total


def _run(function, network, first, *others):
    """function on all vectors of rows of its first array."""
    vectors = -(-len(first) * first.itemsize // VECTOR_BYTES)
    work = len(first) * sum(weight.size for weight in network[0]) // _PRODUCTS
    run(function, vectors, work, network, first, *others)


def _prepare(weights, direct, ends, activation, map, constants):
    """The network as compiled code wants it, and constants (D, n).

    [context | x], the hidden layers and params follow one another in the state of a block of rows:
    layer l is rows offsets[l]..offsets[l + 1], of which the first counts[l, i + 1] are final before
    step i; counts[l, 0] = 0. All of it is checked: compiled code would read past the ends.
    """
    if map not in MAPS:
        raise ValueError(f"unknown map {map!r}")
    weights = tuple(np.ascontiguousarray(weight) for weight in weights)
    features = constants.shape[1]
    sizes = [len(weights[0]), *(weight.shape[1] for weight in weights)]
    counts = np.zeros((len(sizes), features + 2), np.int64)
    counts[0, 1:] = np.arange(sizes[0] - features, sizes[0] + 1)
    for count, end in zip(counts[1:-1], ends, strict=True):
        count[2:] = end
    counts[-1, 1:] = np.arange(features + 1)
    parts, rest = divmod(sizes[-1], features)
    suits = {
        "additive": parts == 1,
        "affine": parts == 2 and len(constants) == 1,
        "rational_quadratic": parts % 3 == 2 and len(constants) == 1,
        "bernoulli": parts == 1,
        "mixture": parts % 3 == 0,
    }
    if (
        not suits[map]
        or rest
        or any(len(weight) != size for weight, size in zip(weights, sizes, strict=False))
        or direct.shape not in ((sizes[0], sizes[-1]), (0, sizes[-1]))
        or any(counts[1:-1, -1] != sizes[1:-1])
        or (np.diff(counts) < 0).any()
    ):
        raise ValueError(
            f"weights {[weight.shape for weight in weights]}, direct {direct.shape}, ends "
            f"{[end.tolist() for end in ends]} and constants {constants.shape} do not fit together "
            f"for the map {map!r}"
        )
    offsets = np.cumsum([0, *sizes])
    network = weights, np.ascontiguousarray(direct), offsets, counts, parts, _code(activation)
    return network, np.ascontiguousarray(constants.T)


def _check(arrays, rows, columns):
    """Each array has these rows, and its number of columns."""
    given, expected = [a.shape for a in arrays], [(rows, n) for n in columns]
    if given != expected:
        raise ValueError(f"shapes {given} do not fit; expected {expected}")
