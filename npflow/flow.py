"""A normalizing flow: a base distribution and a bijection from data to its latents.

    log p(x) = log p_base(z) + log|det dz/dx|,   z = forward(x)          (arXiv:1605.08803, eq. 2)

A training step reads from top to bottom: `Flow.loss_and_grad`, `Chain.training_forward`,
`Coupling.forward`, `MLP.forward`, `Affine.forward`, the kernels; then the base's log_prob and its
gradient; then the same files backwards; then `Adam.step` over the flat buffer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from npflow import checkpoint
from npflow.backend import Array, Backend, get_backend
from npflow.bijections.bijection import Bijection
from npflow.bijections.chain import (
    RECOMPUTE,
    STORE,
    Chain,
    ChainCache,
    Memory,
    as_memory,
    check_drift,
)
from npflow.dequantization import Dequantized, VariationalDequantization
from npflow.distributions import Distribution
from npflow.errors import (
    ConfigurationError,
    DtypeError,
    NonFiniteError,
    OutOfMemoryError,
    ShapeError,
    SingularMatrixError,
)
from npflow.networks.made import MADE
from npflow.params import Component, ParamStore, from_config, to_config, walk
from npflow.random import Stream

FORMAT = "npflow.flow"
STATISTICS_STEP = 2**31  # of the noise on rows that statistics are taken over


class Flow:
    """base + bijection on one backend, with all parameters in one flat buffer.

    base             : distribution of the latents
    bijection        : data -> latents; anything but a Chain is put into one
    backend          : a name ("auto", "reference", "numpy", "cupy") or a Backend
    dtype            : "float32" (default) or "float64"
    seed             : initial parameters
    context_features : features of the context a row, 0 for an unconditional flow
    shape            : the shape of one x; (base.features,) unless the bijection changes it
    dequantizer      : learned noise for integer rows; None: the caller adds uniform noise
    """

    def __init__(
        self,
        base: Distribution,
        bijection: Bijection,
        *,
        backend: str | Backend = "auto",
        dtype: Any = None,
        seed: int = 0,
        context_features: int = 0,
        shape: tuple[int, ...] | None = None,
        dequantizer: VariationalDequantization | None = None,
    ):
        self.base = base
        self.bijection = bijection if isinstance(bijection, Chain) else Chain((bijection,))
        self.backend = get_backend(backend, dtype)
        self.context_features = context_features
        self.shape = (base.features,) if shape is None else tuple(shape)
        self.dequantizer = dequantizer
        if dequantizer is not None and dequantizer.shape != self.shape:
            raise ConfigurationError(
                f"the dequantizer is for rows of shape {dequantizer.shape}; the flow's are "
                f"{self.shape}"
            )
        model = _Model(base, self.bijection, dequantizer)
        self.params = ParamStore(model, self.backend, seed)
        self._networks = [m for _, m in walk(model) if isinstance(m, MADE)]
        self._walks: dict[Chain, ChainCache] = {}  # whose drift is not checked yet
        self._drifts: dict[Chain, float] = {}

    @property
    def features(self) -> int:
        """The number of dimensions of one x."""
        return int(np.prod(self.shape))

    def log_prob(self, x: Array, context: Array | None = None) -> Array:
        """log p(x) in nats, (B,).

        x: (B, *shape) floating-point. Raises ShapeError, DtypeError, or NonFiniteError naming the
        input or the first layer that is not finite.
        """
        x, context = self._check_input(x, context)
        log_prob = self._log_prob(x, context)
        self._require_finite(log_prob, x, context)
        return log_prob

    def log_prob_and_grad(self, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        """log p(x) in nats (B,) and d log p(x) / dx (B, *shape), as log_prob sees x.

        Leaves `params.grads` zero. Raises as log_prob.
        """
        x, context = self._check_input(x, context)
        self.check_domain(x)
        log_prob, dx, _ = self._log_prob_and_grad(self.bijection.forward, x, context, 1.0)
        for result in (log_prob, dx):
            self._require_finite(result, x, context)
        self.params.zero_grads()
        return log_prob, dx

    def bound(
        self,
        values: Array,
        context: Array | None = None,
        seed: int = 0,
        step: int = 0,
        stream: Stream = Stream.DEQUANTIZE_EVALUATION,
    ) -> Array:
        """log p(v + u) - log q(u|v) in nats, (B,), for one draw of the dequantizer's noise.

        values: (B, *shape) integers v. Its mean over u is a lower bound of log P(v), the mean of
        its exponential is P(v) (docs/dequantization.md). Raises as log_prob does, and
        ConfigurationError if the flow has no dequantizer.
        """
        values = self._check_values(values)
        context = self.check_context(len(values), context)
        x, log_q, _ = self._dequantize(values, seed, step, stream)
        bound = self._log_prob(x, context) - log_q
        self._require_finite(bound, values, context, seed, step, stream)
        return bound

    def nll_and_grad(
        self, x: Array, context: Array | None = None, memory: str | Memory = STORE
    ) -> float:
        """The mean of -log p(x) over the batch, in nats, as training sees it.

        Its gradient is left in `params.grads`. Raises as log_prob, and InversionDriftError if the
        `invert` schedule strayed too far.
        """
        x, context = self._check_input(x, context)
        self.check_domain(x)
        memory = as_memory(memory)
        with explain_out_of_memory(len(x), memory):
            loss = float(self.loss_and_grad(x, context, memory))
        if not np.isfinite(loss):
            raise self.non_finite_error(x, context)
        self.check_drift()
        return loss

    def loss_and_grad(
        self, x: Array, context: Array | None = None, memory: str | Memory = STORE
    ) -> Array:
        """nll_and_grad without checks and without waiting for a device: a 0-d float64 array."""
        forward = self.bijection.training_forward
        log_prob, _, _ = self._log_prob_and_grad(
            forward, x, context, -1 / len(x), as_memory(memory)
        )
        return self.backend.xp.sum(log_prob, dtype=np.float64) / -len(x)

    def bound_and_grad(
        self,
        values: Array,
        context: Array | None,
        seed: int,
        step: int,
        stream: Stream,
        memory: str | Memory = STORE,
    ) -> Array:
        """Minus the mean of `bound` over the batch, and its gradient, as loss_and_grad.

        The gradient with respect to v + u goes on through the sampling into the dequantizer.
        """
        memory = as_memory(memory)
        x, log_q, cache = self._dequantize(values, seed, step, stream, memory)
        forward = self.bijection.training_forward
        log_prob, dx, dlog_prob = self._log_prob_and_grad(forward, x, context, -1 / len(x), memory)
        assert self.dequantizer is not None
        self.dequantizer.backward(cache, dx, -dlog_prob)
        self._keep_drift(self.dequantizer.bijection, cache.bijection)
        return self.backend.xp.sum(log_prob - log_q, dtype=np.float64) / -len(x)

    def sample(
        self, n: int, seed: int = 0, temperature: float = 1.0, context: Array | None = None
    ) -> Array:
        """n samples (n, *shape): latents scaled by temperature and mapped back to data.

        The same seed gives the same samples on every backend, up to rounding.
        """
        context = self.check_context(n, context)
        z = self.base.sample(n, seed, 0, temperature, context)
        return self.from_latent(z, context)

    def sample_and_log_prob(
        self, n: int, seed: int = 0, context: Array | None = None
    ) -> tuple[Array, Array]:
        """n samples and their log p, (n, *shape) and (n,), in one pass."""
        context = self.check_context(n, context)
        z = self.base.sample(n, seed, context=context)
        z = self._check_array("z", z, (self.base.features,))
        x, log_det = self._inverse(z, context)
        return x, self.base.log_prob(z, context) - log_det

    def reverse_kl_and_grad(
        self,
        target: Callable[[Array], tuple[Array, Array]],
        n: int,
        seed: int,
        step: int = 0,
        context: Array | None = None,
        memory: str | Memory = STORE,
    ) -> float:
        """E_{x ~ q}[log q(x) - log p(x)] over n samples, and its gradient in `params.grads`.

        target : x (n, *shape) -> log p(x) (n,) up to a constant, and its gradient (n, *shape)
        step   : which n samples of the seed's stream to take

        With x = inverse(z) the gradient goes through sampling (arXiv:1505.05770, eq. 15):
        log q(x) = log p_base(z) - log_det, so dlog_det = -1/n and dx = -(d log p / dx) / n.
        """
        if any(name.startswith("base.") for name in self.params.table):
            raise ConfigurationError(
                "the reverse KL is through samples of a base without parameters; this one has some"
            )
        xp = self.backend.xp
        context = self.check_context(n, context)
        memory = as_memory(memory)
        self.params.zero_grads()
        with explain_out_of_memory(n, memory):
            z = self._check_array("z", self.base.sample(n, seed, step), (self.base.features,))
            x, log_det, cache = self.bijection.inverse(z, context, memory)
            log_p, dlog_p = target(x)
            log_q = self.base.log_prob(z, context) - log_det
            dx = self.backend.array(dlog_p) * (-1 / n)
            self.bijection.inverse_backward(cache, dx, xp.full(n, -1 / n, self.backend.dtype))
        self._keep_drift(self.bijection, cache)
        self.check_drift()
        loss = float(xp.mean(log_q - log_p, dtype=np.float64))
        if not np.isfinite(loss):
            raise self._singular_error() or NonFiniteError(
                f"the reverse KL is {loss}: the target's log-density or a layer overflowed on one "
                "of the samples; lower the learning rate or bound the target's tails"
            )
        return loss

    def use_masks(self, number: int) -> None:
        """In networks that are one of many (MADE with `masks` other than 1), take draw `number`."""
        for network in self._networks:
            network.use_masks(number)

    def to_latent(self, x: Array, context: Array | None = None) -> Array:
        """z = forward(x)."""
        x, context = self._check_input(x, context)
        return self.bijection.forward(x, context, RECOMPUTE)[0]

    def from_latent(self, z: Array, context: Array | None = None) -> Array:
        """x = inverse(z)."""
        z = self._check_array("z", z, (self.base.features,))
        return self._inverse(z, self.check_context(len(z), context))[0]

    def initialize(self, x: Array, context: Array | None = None, seed: int = 0) -> None:
        """Set data-dependent parameters and statistics from one batch, layer by layer.

        Integer rows of a flow with a dequantizer get uniform noise, and set the dequantizer too.
        """
        if self.dequantizer is not None and self.dequantizes(x):
            x = self.dequantizer.initialize(self._check_values(x), seed)
        x, context = self._check_input(x, context)
        self.bijection.initialize(x, context)

    def update_statistics(self, x: Array, context: Array | None = None, seed: int = 0) -> None:
        """Set stored statistics (of batch normalisation) from x, layer by layer.

        Integer rows of a flow with a dequantizer get its noise; its own layers stay as they are.
        """
        if self.dequantizes(x):
            stream = Stream.DEQUANTIZE_EVALUATION
            x = self._dequantize(self._check_values(x), seed, STATISTICS_STEP, stream).x
        x, context = self._check_input(x, context)
        self.bijection.update_statistics(x, context)

    def dequantizes(self, rows: Array) -> bool:
        """Whether these are integers to which the flow adds its own noise."""
        xp = self.backend.xp
        return self.dequantizer is not None and xp.asarray(rows).dtype.kind in "iu"

    @property
    def drift(self) -> float:
        """The largest error, relative to 1 + |x|, of the last `invert` walk back that was checked;
        on a device, of all those between two checks.
        """
        return max(self._drifts.values(), default=0.0)

    def check_drift(self) -> None:
        """Look at the drift of the walks back since the last check; a device is waited for.

        Raises InversionDriftError if one of them strayed too far.
        """
        walks, self._walks = self._walks, {}
        self._drifts |= {chain: check_drift(chain, walk) for chain, walk in walks.items()}

    def config(self) -> dict[str, Any]:
        """All that is needed, with the parameters, to build this flow again; plain JSON values."""
        config = {
            "base": to_config(self.base),
            "bijection": to_config(self.bijection),
            "shape": list(self.shape),
            "context_features": self.context_features,
        }
        if self.dequantizer is not None:
            config["dequantizer"] = to_config(self.dequantizer)
        return config

    def save(self, path: str | os.PathLike) -> None:
        """Write the flow to one safetensors file that rebuilds it by itself.

        The file is written whole or not at all. Raises CheckpointError if it cannot be written.
        """
        checkpoint.write(path, self.params.to_numpy(), FORMAT, {"flow": self.config()})

    @classmethod
    def load(
        cls, path: str | os.PathLike, backend: str | Backend = "auto", dtype: Any = None
    ) -> Flow:
        """Read a flow written by `save`, on any backend; dtype is the file's unless given.

        Nothing in the file is executed. Raises CheckpointError if it is missing, damaged or
        foreign.
        """
        arrays, header = checkpoint.read(Path(path), FORMAT)
        config = header["flow"]
        stored = next(iter(arrays.values())).dtype if arrays else np.dtype("float32")
        flow = cls(
            from_config(config["base"]),
            from_config(config["bijection"]),
            backend=backend,
            dtype=stored if dtype is None else dtype,
            context_features=config["context_features"],
            shape=tuple(config["shape"]),
            dequantizer=from_config(config.get("dequantizer")),
        )
        flow.params.load(arrays)
        return flow

    def non_finite_error(
        self, x: Array, context: Array | None = None, *noise: Any
    ) -> NonFiniteError:
        """The error that names the first thing that is not finite when x goes through the flow.

        noise: the seed, step and stream of the dequantizer's draw, for integers x
        """
        isfinite, advice = self.backend.xp.isfinite, "lower the learning rate or clip the gradient"
        for what, name in ((x, "the data"), (context, "the context")):
            if what is not None and not isfinite(what).all():
                return NonFiniteError(f"{name} has NaN or infinite values; remove or replace them")
        for name in self.params.table:
            if not isfinite(self.params.value(name)).all():
                return NonFiniteError(f"parameter {name} is not finite; {advice}")
        if self.dequantizer is not None and self.dequantizes(x):
            number = self.dequantizer.non_finite_layer(x, *noise)
            if number is not None:
                kind = type(self.dequantizer.bijection.layers[number]).__name__
                return NonFiniteError(
                    f"layer {number} ({kind}) of the dequantizer, inverse, gives values that are "
                    f"not finite; {advice}"
                )
            x, log_q, _ = self.dequantizer.sample(x, *noise)
            if not isfinite(log_q).all():
                return NonFiniteError(f"the dequantizer's log-density is not finite; {advice}")
        for k, z, log_det in self.bijection.trace(x, context):
            layer = self.bijection.layers[k]
            if not (isfinite(z).all() and isfinite(log_det).all()):
                return self._singular_error(k) or NonFiniteError(
                    f"layer {k} ({type(layer).__name__}) forward gives values that are not finite "
                    f"from finite input; check the range of the data, {advice}"
                )
        z, _, _ = self.bijection.training_forward(x, context)
        if not isfinite(self.base.forward(z, context)[0]).all():
            return NonFiniteError(f"the base distribution's log-density is not finite; {advice}")
        if singular := self._singular_error():
            return singular  # one that only inverts its matrix to walk back
        # backward starts at the last layer, and ends in the dequantizer, from its first layer on
        noise_names = [name for name in self.params.table if name.startswith("dequantizer.")]
        flow_names = [name for name in self.params.table if name not in noise_names]
        for name in [*reversed(flow_names), *noise_names]:
            if not isfinite(self.params.grad(name)).all():
                return NonFiniteError(f"backward: the gradient of {name} is not finite; {advice}")
        return NonFiniteError(f"the norm of the gradient overflows; {advice}")

    def _singular_error(self, number: int | None = None) -> SingularMatrixError | None:
        """The error that names the first layer (or this one) which cannot be inverted, if any."""
        for k, layer in enumerate(self.bijection.layers):
            for name, member in walk(layer, f"layer {k}") if number in (k, None) else ():
                reason = member.singular() if isinstance(member, Bijection) else None
                if reason is not None:
                    return SingularMatrixError(f"{name} ({type(member).__name__}) {reason}")
        return None

    def _inverse(self, z: Array, context: Array | None) -> tuple[Array, Array]:
        """x = inverse(z) and its log_det. Raises SingularMatrixError, naming the layer."""
        x, log_det, _ = self.bijection.inverse(z, context, RECOMPUTE)
        if not self.backend.xp.isfinite(x).all():
            singular = self._singular_error()
            if singular is not None:
                raise singular
        return x, log_det

    def _log_prob(self, x: Array, context: Array | None) -> Array:
        z, log_det, _ = self.bijection.forward(x, context, RECOMPUTE)
        return self.base.log_prob(z, context) + log_det

    def _log_prob_and_grad(
        self,
        forward: Callable[..., tuple[Array, Array, Any]],
        x: Array,
        context: Array | None,
        weight: float,
        memory: Memory = STORE,
    ) -> tuple[Array, Array, Array]:
        """log p(x) by that forward of the chain, and dx and dlog_prob of L = weight sum log p(x).

        The gradient of the parameters is in params.grads.
        """
        self.params.zero_grads()
        z, log_det, cache = forward(x, context, memory)
        log_base, base_cache = self.base.forward(z, context)
        dlog_prob = self.backend.xp.full(len(x), weight, self.backend.dtype)
        dz, _ = self.base.backward(base_cache, dlog_prob)
        dx, _ = self.bijection.backward(cache, dz, dlog_prob)
        self._keep_drift(self.bijection, cache)
        return log_base + log_det, dx, dlog_prob

    def _keep_drift(self, chain: Chain, cache: ChainCache) -> None:
        """For check_drift, which follows at once where no device has to be waited for."""
        walk = cache._replace(kept={}, end=None, probes=None, context=None)
        before = self._walks.get(chain)
        if before is not None and before.drift is not None and walk.drift is not None:
            walk = walk._replace(drift=self.backend.xp.maximum(before.drift, walk.drift))
        self._walks[chain] = walk
        if not self.backend.on_device:
            self.check_drift()

    def _dequantize(
        self, values: Array, seed: int, step: int, stream: Stream, memory: Memory = STORE
    ) -> Dequantized:
        if self.dequantizer is None:
            raise ConfigurationError(
                "this flow has no dequantizer; build it with dequantizer=..., or add uniform "
                "noise: npflow.dequantize(backend, values, seed, step)"
            )
        return self.dequantizer.sample(values, seed, step, stream, memory)

    def _require_finite(
        self, log_prob: Array, x: Array, context: Array | None, *noise: Any
    ) -> None:
        if not self.backend.xp.isfinite(log_prob).all():
            raise self.non_finite_error(x, context, *noise)

    def _check_input(self, x: Array, context: Array | None) -> tuple[Array, Array | None]:
        x = self._check_array("x", x, self.shape)
        return x, self.check_context(len(x), context)

    def check_domain(self, x: Array) -> None:
        """Raise DomainError if x has values that the base, with no layer before it, lacks."""
        if not self.bijection.layers:
            self.base.check(x)

    def check_context(self, rows: int, context: Array | None) -> Array | None:
        """The context on the backend. Raises if it does not fit the flow and a batch of rows."""
        if not self.context_features:
            if context is not None:
                raise ShapeError(
                    "this flow takes no context (context_features=0), but one is given"
                )
            return None
        if context is None:
            raise ShapeError(
                f"this flow needs a context of shape ({rows}, {self.context_features})"
            )
        context = self._check_array("context", context, (self.context_features,))
        if len(context) != rows:
            raise ShapeError(f"context has {len(context)} rows for {rows} rows of data")
        return context

    def _check_shape(self, name: str, array: Array, shape: tuple[int, ...]) -> Array:
        array = self.backend.xp.asarray(array)
        if array.shape[1:] != shape or array.ndim == 0:
            raise ShapeError(f"{name} has shape {array.shape}; expected (batch, {_list(shape)})")
        if len(array) == 0:
            raise ShapeError(f"{name} is an empty batch; expected one row or more")
        return array

    def _check_values(self, values: Array) -> Array:
        values = self._check_shape("values", values, self.shape)
        if values.dtype.kind not in "iu":
            raise DtypeError(
                f"values has dtype {values.dtype}; expected integers, to which the dequantizer "
                "adds noise. Of floating-point data take log_prob"
            )
        return values

    def _check_array(self, name: str, array: Array, shape: tuple[int, ...]) -> Array:
        array = self._check_shape(name, array, shape)
        if array.dtype.kind != "f":
            raise DtypeError(
                f"{name} has dtype {array.dtype}; expected floating-point. For integer data such "
                "as 8-bit images add uniform noise first: npflow.dequantize(backend, x, seed, step)"
            )
        with np.errstate(over="ignore"):  # of a cast to float32; the next line reports it
            array = self.backend.xp.ascontiguousarray(array, dtype=self.backend.dtype)
        if not self.backend.xp.isfinite(array).all():
            raise NonFiniteError(
                f"{name} has NaN or infinite values (in {self.backend.dtype}); "
                "remove or replace them"
            )
        return array


class _Model(Component):
    """The root of the component tree: names start with "base", "bijection" and "dequantizer"."""

    def __init__(
        self,
        base: Distribution,
        bijection: Bijection,
        dequantizer: VariationalDequantization | None,
    ):
        self.base = base
        self.bijection = bijection
        self.dequantizer = dequantizer


@contextmanager
def explain_out_of_memory(rows: int, memory: Memory | None = None) -> Iterator[None]:
    """Within it, a MemoryError becomes an OutOfMemoryError that says what would need less.

    memory: what a chain keeps for the gradient; None: there is no gradient
    """
    try:
        yield
    except MemoryError as error:
        advice = f"use a batch_size below {rows}"
        if memory is not None:
            schedules = ("store", "recompute", "invert")  # from the most memory to the least
            leaner = schedules[schedules.index(memory.schedule) + 1 :]
            options = [*(f"memory={name!r}" for name in leaner), f"a batch_size below {rows}"]
            advice = f"memory={memory.schedule!r} is in use; use {' or '.join(options)}"
        cause = str(error).rstrip(".") or "out of memory"
        raise OutOfMemoryError(f"a batch of {rows} rows is too large: {cause}; {advice}") from error


def _list(shape: tuple[int, ...]) -> str:
    return ", ".join(str(n) for n in shape)
