"""Building blocks of a matrix product, written as LLVM vector code.

LLVM does not find the register tile of a fast matrix product in a loop over scalars, so `multiply`
spells it out: a tile of ROWS x (VECTORS x lanes) sums stays in registers while k runs; each step
loads one row of b, and broadcasts ROWS numbers of a. LLVM chooses the instructions for the CPU
(AVX-512, AVX2, NEON, ...): only ROWS and the length of a vector are fitted to it here, and any
choice is right. Source: Goto and van de Geijn, Anatomy of High-Performance Matrix Multiplication,
2008.

The functions are for compiled code, take two-dimensional arrays of one dtype, and do not check
shapes. Except for `a`, the rows of the arrays are contiguous; no other stride is asked for.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_, _cpu, _features = cpu_target.target_context.codegen().magic_tuple()
# On other CPUs with AVX-512, LLVM splits 512-bit vectors in two.
_zen = _cpu.startswith("znver") and "+avx512f" in _features.split(",")
VECTOR_BYTES = 64 if _zen else 32
# The sums take 24 of 32 registers, or 12 of 16. ROWS is a power of 2, at most the lanes.
ROWS = 8 if _zen else 4
VECTORS = 3

_INDEX = ir.IntType(types.intp.bitwidth)
_BYTE_POINTER = ir.IntType(8).as_pointer()


class _Array:
    """Memory, shape and strides (in bytes) of a two-dimensional array."""

    def __init__(self, context: Any, builder: ir.IRBuilder, kind: types.Array, value: ir.Value):
        array = context.make_array(kind)(context, builder, value)
        self.data = builder.bitcast(array.data, _BYTE_POINTER)
        self.rows, self.columns = cgutils.unpack_tuple(builder, array.shape)
        self.row, self.column = cgutils.unpack_tuple(builder, array.strides)


class _Emitter:
    """The instructions in use, for vectors of one scalar type."""

    def __init__(self, builder: ir.IRBuilder, scalar: ir.Type):
        self.builder, self.scalar = builder, scalar
        self.bytes = 4 if isinstance(scalar, ir.FloatType) else 8
        self.lanes = VECTOR_BYTES // self.bytes
        self.vector = ir.VectorType(scalar, self.lanes)

    def less(self, a: int, b: ir.Value) -> ir.Value:
        return self.builder.icmp_signed("<", _INDEX(a), b)

    def minimum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    def at(self, base: ir.Value, index: ir.Value | int, stride: ir.Value | int) -> ir.Value:
        """The address of element `index` from base, `stride` bytes apart."""
        index, stride = (_INDEX(n) if isinstance(n, int) else n for n in (index, stride))
        return self.builder.gep(base, [self.builder.mul(index, stride)])

    def call(self, name: str, result: ir.Type, *args: ir.Value) -> ir.Value:
        kind = ir.FunctionType(result, [arg.type for arg in args])
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, args)

    def name(self, operation: str, vector: ir.VectorType) -> str:
        return f"llvm.{operation}.v{vector.count}f{8 * self.bytes}"

    def load_scalar(self, address: ir.Value) -> ir.Value:
        return self.builder.load(self.builder.bitcast(address, self.scalar.as_pointer()))

    def load(self, address: ir.Value, mask: ir.Value | None = None) -> ir.Value:
        """A vector, with zeros where the mask is off."""
        source = self.builder.bitcast(address, self.vector.as_pointer())
        if mask is None:
            value = self.builder.load(source)
            value.align = self.bytes
            return value
        name = self.name("masked.load", self.vector) + ".p0"
        zero = ir.Constant(self.vector, None)
        return self.call(name, self.vector, source, ir.IntType(32)(self.bytes), mask, zero)

    def store(self, value: ir.Value, address: ir.Value, mask: ir.Value | None = None) -> None:
        target = self.builder.bitcast(address, value.type.as_pointer())
        if mask is None:
            self.builder.store(value, target).align = self.bytes
            return
        name = self.name("masked.store", value.type) + ".p0"
        self.call(name, ir.VoidType(), value, target, ir.IntType(32)(self.bytes), mask)

    def prefetch(self, address: ir.Value, write: bool) -> None:
        """Into the first cache to write, into the second to read."""
        flags = (ir.IntType(32)(flag) for flag in (int(write), 2 + int(write), 1))
        self.call("llvm.prefetch.p0", ir.VoidType(), address, *flags)

    def multiply_add(self, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
        """a b + total: one rounding where the CPU has the instruction, else two."""
        return self.call(self.name("fmuladd", self.vector), self.vector, a, b, total)

    def shuffle(self, a: ir.Value, b: ir.Value, pattern: list[int]) -> ir.Value:
        mask = ir.Constant(ir.VectorType(ir.IntType(32), len(pattern)), pattern)
        return self.builder.shuffle_vector(a, b, mask)

    def broadcast(self, value: ir.Value, lanes: int) -> ir.Value:
        undefined = ir.Constant(ir.VectorType(value.type, lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, value, ir.IntType(32)(0))
        return self.shuffle(first, undefined, [0] * lanes)

    def mask(self, lanes: int, valid: ir.Value, first: int = 0) -> ir.Value:
        """first + lane < valid, for each lane."""
        numbers = ir.Constant(ir.VectorType(_INDEX, lanes), list(range(first, first + lanes)))
        return self.builder.icmp_signed("<", numbers, self.broadcast(valid, lanes))

    def transpose(self, vectors: list[ir.Value]) -> list[ir.Value]:
        """ROWS vectors of `lanes` numbers into `lanes` vectors of ROWS numbers.

        A perfect shuffle zips vector i with vector i + ROWS/2; log2(ROWS) of them in a row leave
        the columns one after the other.
        """
        zipped = [n for lane in range(self.lanes) for n in (lane, self.lanes + lane)]
        halves = zipped[: self.lanes], zipped[self.lanes :]
        for _ in range(ROWS.bit_length() - 1):
            pairs = zip(vectors[: ROWS // 2], vectors[ROWS // 2 :], strict=True)
            vectors = [self.shuffle(a, b, half) for a, b in pairs for half in halves]
        return [
            self.shuffle(vector, vector, list(range(start, start + ROWS)))
            for vector in vectors
            for start in range(0, self.lanes, ROWS)
        ]


def _emit_multiply(emit: _Emitter, vectors: int, transposed: bool, *args: ir.Value) -> None:
    """The body of `multiply` for panels of at most `vectors` vectors a row."""
    builder = emit.builder
    a, a_row, a_column, b, b_row, c, c_row, rows, columns, depth, *rest = args
    zero = ir.Constant(emit.vector, None)
    sums = [[cgutils.alloca_once(builder, emit.vector) for _ in range(vectors)]
            for _ in range(ROWS)]  # fmt: skip
    with cgutils.for_range_slice(builder, _INDEX(0), rows, _INDEX(ROWS), _INDEX) as (top, tile):
        # Rows that are not there repeat the last one and are not stored.
        left = builder.sub(rows, top)
        last = builder.sub(left, _INDEX(1))
        start = emit.at(a, top, a_row)
        a_rows = [emit.at(start, emit.minimum(_INDEX(i), last), a_row) for i in range(ROWS)]
        for total in (total for row in sums for total in row):
            builder.store(zero, total)
        if not transposed:
            d, d_row, ahead, ahead_row, ahead_columns = rest
            c_rows = [emit.at(c, builder.add(top, _INDEX(i)), c_row) for i in range(ROWS)]
            d_rows = [emit.at(d, builder.add(top, _INDEX(i)), d_row) for i in range(ROWS)]
            for i in range(ROWS):
                for q in range(vectors):
                    emit.prefetch(emit.at(c_rows[i], q, VECTOR_BYTES), write=True)
            fetched = builder.mul(tile, _INDEX(emit.lanes))
            wanted = builder.icmp_signed("<", fetched, ahead_columns)
            ahead_start = builder.select(wanted, emit.at(ahead, fetched, emit.bytes), b)
            ahead_step = builder.select(wanted, ahead_row, _INDEX(0))

        with cgutils.for_range(builder, depth, intp=_INDEX) as loop:
            b_k = emit.at(b, loop.index, b_row)
            b_loaded = [emit.load(emit.at(b_k, q, VECTOR_BYTES)) for q in range(vectors)]
            if not transposed:
                emit.prefetch(emit.at(ahead_start, loop.index, ahead_step), write=False)
            for a_start, row in zip(a_rows, sums, strict=True):
                number = emit.load_scalar(emit.at(a_start, loop.index, a_column))
                factor = emit.broadcast(number, emit.lanes)
                for total, loaded in zip(row, b_loaded, strict=True):
                    builder.store(emit.multiply_add(factor, loaded, builder.load(total)), total)

        if transposed:
            target = emit.at(c, top, emit.bytes)
            mask = emit.mask(ROWS, left)
            for q in range(vectors):
                block = emit.transpose([builder.load(row[q]) for row in sums])
                for j, column in enumerate(block, start=q * emit.lanes):
                    with builder.if_then(emit.less(j, columns)):
                        emit.store(column, emit.at(target, j, c_row), mask)
            return
        masks = [emit.mask(emit.lanes, columns, q * emit.lanes) for q in range(vectors)]
        for i, row in enumerate(sums):
            with builder.if_then(emit.less(i, left)):
                for q, (total, mask) in enumerate(zip(row, masks, strict=True)):
                    added = emit.load(emit.at(d_rows[i], q, VECTOR_BYTES), mask)
                    value = builder.fadd(builder.load(total), added)
                    emit.store(value, emit.at(c_rows[i], q, VECTOR_BYTES), mask)


def _multiply(transposed: bool) -> Callable[..., Any]:
    def codegen(context, builder, signature, args):
        scalar = context.get_value_type(signature.args[0].dtype)
        a, b, c, *rest = (
            _Array(context, builder, kind, value)
            for kind, value in zip(signature.args, args, strict=True)
        )
        rows, columns = (c.columns, c.rows) if transposed else (c.rows, c.columns)
        values = [
            a.data, a.row, a.column, b.data, b.row, c.data, c.row, rows, columns, a.columns
        ]  # fmt: skip
        if not transposed:
            d, ahead = rest
            one_row = builder.icmp_signed("==", d.rows, _INDEX(1))
            d_row = builder.select(one_row, _INDEX(0), d.row)
            values += [d.data, d_row, ahead.data, ahead.row, ahead.columns]

        emit = _Emitter(builder, scalar)
        vectors = builder.sdiv(builder.add(columns, _INDEX(emit.lanes - 1)), _INDEX(emit.lanes))
        end = builder.append_basic_block("multiplied")
        switch = builder.switch(vectors, end)
        for n in range(1, VECTORS + 1):
            # A function of its own, so that the caller's variables take no registers in the loop.
            name = f"npflow_multiply_{transposed:d}_{n}_f{8 * emit.bytes}"
            function = builder.module.globals.get(name)
            if function is None:
                kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
                function = ir.Function(builder.module, kind, name)
                function.linkage = "internal"
                function.attributes.add("noinline")
                body = ir.IRBuilder(function.append_basic_block("entry"))
                _emit_multiply(_Emitter(body, scalar), n, transposed, *function.args)
                body.ret_void()
            case = builder.append_basic_block(f"multiply_{n}")
            switch.add_case(_INDEX(n), case)
            with builder.goto_block(case):
                builder.call(function, values)
                builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return codegen


def _same_dtype(*arrays: types.Array) -> None:
    if len({array.dtype for array in arrays}) > 1:
        raise TypingError(f"expected arrays of one dtype, got {[str(a.dtype) for a in arrays]}")


@intrinsic
def multiply(typingctx, a, b, c, d, ahead):
    """c = a b + d.

    a (rows, depth), of any strides; b (depth, ...): a panel as `pack` makes it; c (rows, columns)
    with 0 < columns <= VECTORS x lanes; d (rows, columns), c itself perhaps, or (1, columns): the
    same for all rows. Meanwhile the columns of `ahead` (depth, ...), `lanes` of them with every
    ROWS rows of c, are fetched into the cache.
    """
    _same_dtype(a, b, c, d, ahead)
    return types.void(a, b, c, d, ahead), _multiply(transposed=False)


@intrinsic
def multiply_transposed(typingctx, a, b, c):
    """c = (a b)^T, c (columns, rows); else as in `multiply`."""
    _same_dtype(a, b, c)
    return types.void(a, b, c), _multiply(transposed=True)


@intrinsic
def pack(typingctx, source, panel):
    """panel[:, :columns] = source (depth, columns), columns <= VECTORS x lanes; zeros behind."""
    _same_dtype(source, panel)

    def codegen(context, builder, signature, args):
        emit = _Emitter(builder, context.get_value_type(signature.args[0].dtype))
        source, panel = map(_Array, [context] * 2, [builder] * 2, signature.args, args)
        masks = [emit.mask(emit.lanes, source.columns, q * emit.lanes) for q in range(VECTORS)]
        with cgutils.for_range(builder, source.rows, intp=_INDEX) as loop:
            start = emit.at(source.data, loop.index, source.row)
            target = emit.at(panel.data, loop.index, panel.row)
            for q, mask in enumerate(masks):
                loaded = emit.load(emit.at(start, q, VECTOR_BYTES), mask)
                emit.store(loaded, emit.at(target, q, VECTOR_BYTES))
        return context.get_dummy_value()

    return types.void(source, panel), codegen


@intrinsic
def pack_transposed(typingctx, source, panel):
    """panel[:, :rows] = source^T, source (rows, depth); copies of the last row behind."""
    _same_dtype(source, panel)

    def codegen(context, builder, signature, args):
        emit = _Emitter(builder, context.get_value_type(signature.args[0].dtype))
        source, panel = map(_Array, [context] * 2, [builder] * 2, signature.args, args)
        zero, last = _INDEX(0), builder.sub(source.rows, _INDEX(1))
        # Whole vectors are read from a panel: rows up to the next multiple of `lanes`.
        height = builder.and_(builder.add(last, _INDEX(emit.lanes)), _INDEX(-emit.lanes))
        with cgutils.for_range_slice(builder, zero, height, _INDEX(ROWS), _INDEX) as (i, _):
            rows = [emit.minimum(builder.add(i, _INDEX(r)), last) for r in range(ROWS)]
            starts = [emit.at(source.data, row, source.row) for row in rows]
            target = emit.at(panel.data, i, emit.bytes)
            with cgutils.for_range_slice(
                builder, zero, source.columns, _INDEX(emit.lanes), _INDEX
            ) as (j, _):
                left = builder.sub(source.columns, j)
                mask = emit.mask(emit.lanes, left)
                loaded = [emit.load(emit.at(start, j, emit.bytes), mask) for start in starts]
                for lane, column in enumerate(emit.transpose(loaded)):
                    with builder.if_then(emit.less(lane, left)):
                        place = emit.at(emit.at(target, j, panel.row), lane, panel.row)
                        emit.store(column, place)
        return context.get_dummy_value()

    return types.void(source, panel), codegen


def _move(add: bool) -> Callable[..., Any]:
    def codegen(context, builder, signature, args):
        emit = _Emitter(builder, context.get_value_type(signature.args[0].dtype))
        source, target = map(_Array, [context] * 2, [builder] * 2, signature.args, args)
        for q in range(VECTORS):
            with builder.if_then(emit.less(q * emit.lanes, source.columns)):
                mask = emit.mask(emit.lanes, source.columns, q * emit.lanes)
                with cgutils.for_range(builder, source.rows, intp=_INDEX) as loop:
                    start = emit.at(source.data, loop.index, source.row)
                    place = emit.at(target.data, loop.index, target.row)
                    place = emit.at(place, q, VECTOR_BYTES)
                    value = emit.load(emit.at(start, q, VECTOR_BYTES), mask)
                    if add:
                        value = builder.fadd(emit.load(place, mask), value)
                    emit.store(value, place, mask)
        return context.get_dummy_value()

    return codegen


@intrinsic
def copy_rows(typingctx, source, target):
    """target = source, both (rows, columns), columns <= VECTORS x lanes."""
    _same_dtype(source, target)
    return types.void(source, target), _move(add=False)


@intrinsic
def add_rows(typingctx, source, target):
    """target += source, likewise. Rows of target may overlap, but are better apart."""
    _same_dtype(source, target)
    return types.void(source, target), _move(add=True)
