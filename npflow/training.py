"""Training by maximum likelihood: epochs, validation, checkpoints, and bit-identical resuming.

Nothing that is random has a state: the order of epoch e and the noise of step s are functions of
(seed, e) and (seed, s). So a checkpoint is the parameters, Adam's moments, the averages and a few
counters, and a run that was killed at any moment and resumed ends with the same bits as one that
was not.
"""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from npflow import checkpoint, optim, random
from npflow.backend import Array
from npflow.bijections import binarize, dequantize
from npflow.bijections.chain import as_memory
from npflow.errors import (
    CheckpointError,
    ConfigurationError,
    DtypeError,
    NonFiniteError,
    ShapeError,
)
from npflow.flow import STATISTICS_STEP, Flow, explain_out_of_memory
from npflow.metrics import bits_per_dim

FORMAT = "npflow.training"
CHECKPOINT = "checkpoint.safetensors"
METRICS = "metrics.jsonl"
STATISTICS_ROWS = 10_000  # training rows that stored statistics are taken over
FETCH_EVERY = 50  # steps between two looks at the loss, if it is shown
INTEGERS = {"dequantize": dequantize, "binarize": binarize}  # what integer rows become


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    epochs        : passes over the training data
    batch_size    : rows a step; the last, smaller batch of an epoch is left out
    learning_rate : Adam's step size before the schedule
    schedule      : "constant", "exponential" (times `decay` every epoch) or "cosine" (to zero)
    decay         : of the exponential schedule
    warm_up_steps : steps over which the learning rate rises linearly
    max_norm      : clip the gradient's global norm to this; None: do not
    weight_decay  : decoupled weight decay
    average       : decay of the moving average of the weights, which is then what is validated and
                    kept; None: no average
    patience      : stop after this many epochs without a better validation; None: never
    memory        : the chain's memory schedule
    integers      : what integer rows (8-bit images) become: "dequantize" adds uniform noise, or
                    that of the flow's dequantizer; "binarize" draws black or white; all anew each
                    time they are used
    seed          : order of the batches and dequantization noise
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: str = "constant"
    decay: float = 0.99
    warm_up_steps: int = 0
    max_norm: float | None = None
    weight_decay: float = 0.0
    average: float | None = None
    patience: int | None = None
    memory: str = "store"
    integers: str = "dequantize"
    seed: int = 0

    def __post_init__(self):
        for name, smallest in (("epochs", 1), ("batch_size", 1), ("warm_up_steps", 0), ("seed", 0)):
            if getattr(self, name) < smallest:
                raise ConfigurationError(
                    f"{name} is {getattr(self, name)}; expected {smallest} or more"
                )
        if self.schedule not in ("constant", "exponential", "cosine"):
            raise ConfigurationError(
                f"unknown schedule {self.schedule!r}; choose constant, exponential or cosine"
            )
        if not 0 < self.decay <= 1:
            raise ConfigurationError(f"decay is {self.decay}; expected 0 < decay <= 1")
        if self.patience is not None and self.patience < 1:
            raise ConfigurationError(f"patience is {self.patience}; expected 1 or more, or None")
        as_memory(self.memory)
        if self.integers not in INTEGERS:
            raise ConfigurationError(
                f"integers is {self.integers!r}; choose one of {', '.join(INTEGERS)}"
            )


@dataclass
class Data:
    """Rows to train or validate on, on the flow's backend, with an optional context.

    Integer rows (8-bit images) are dequantized with fresh uniform noise each time they are used;
    a density fitted to integers themselves can be made infinite. Or else they are binarized. A flow
    with a dequantizer takes them as they are, and adds the noise itself.
    """

    rows: Array
    context: Array | None = None
    integers: str = "dequantize"

    @classmethod
    def on(
        cls, flow: Flow, rows: Array, context: Array | None = None, integers: str = "dequantize"
    ) -> Data:
        """rows and context checked and moved to the flow's backend."""
        if integers == "binarize" and flow.dequantizer is not None:
            raise ConfigurationError(
                "integers='binarize' leaves nothing to dequantize, but this flow has a "
                "dequantizer; take one of the two away"
            )
        xp = flow.backend.xp
        rows = xp.asarray(rows)
        if rows.shape[1:] != flow.shape or len(rows) == 0:
            expected = ", ".join(str(n) for n in flow.shape)
            raise ShapeError(f"data has shape {rows.shape}; expected (1 row or more, {expected})")
        if rows.dtype.kind not in "fiu":
            raise DtypeError(
                f"data has dtype {rows.dtype}; expected floating-point numbers, or integers to be "
                "dequantized"
            )
        if rows.dtype.kind == "f" and not xp.isfinite(rows).all():
            raise NonFiniteError("the data has NaN or infinite values; remove or replace them")
        if rows.dtype.kind == "f":
            flow.check_domain(rows)
        return cls(rows, flow.check_context(len(rows), context), integers)

    def batch(
        self, flow: Flow, indices: Array | slice, seed: int, step: int, stream: random.Stream
    ) -> tuple[Array, Array | None]:
        """The rows of those indices as x, integers if flow.dequantizes(x), and their context."""
        rows = self.rows[indices]
        if flow.dequantizes(rows) and self.integers == "dequantize":
            x = rows
        elif rows.dtype.kind != "f":
            x = INTEGERS[self.integers](flow.backend, rows, seed, step, stream)
        else:
            x = flow.backend.array(rows)
        return x, None if self.context is None else self.context[indices]


def evaluate(
    flow: Flow,
    rows: Array,
    context: Array | None = None,
    *,
    batch_size: int = 1000,
    integers: str = "dequantize",
    seed: int = 0,
    samples: int = 1,
) -> np.ndarray:
    """-log p of every row in nats, (rows,) float64; for integer rows v, a bound of -log P(v):

        -log 1/K sum_k p(v + u_k) / q(u_k | v),  K = samples draws of noise,  q = 1 if uniform

    The bound holds in the mean over the noise, and is the tighter the larger K is
    (arXiv:1509.00519, theorem 1). Raises as Flow.log_prob, OutOfMemoryError, and ConfigurationError
    if there is no noise to draw K times.
    """
    data = rows if isinstance(rows, Data) else Data.on(flow, rows, context, integers)
    dequantized = data.rows.dtype.kind != "f" and data.integers == "dequantize"
    if samples < 1 or (samples > 1 and not dequantized):
        raise ConfigurationError(
            f"samples is {samples}; expected 1 or more, and 1 for rows that are not dequantized"
        )
    nll = []
    starts = range(0, len(data.rows), batch_size)
    for batch, start in enumerate(starts):
        rows_of_batch = slice(start, start + batch_size)
        total = np.array(-np.inf)
        for draw in range(samples):
            noise = seed, batch + draw * len(starts), random.Stream.DEQUANTIZE_EVALUATION
            with explain_out_of_memory(batch_size):
                x, c = data.batch(flow, rows_of_batch, *noise)
                if flow.dequantizes(x):
                    log_weight = flow.bound(x, c, *noise)
                else:
                    log_weight = flow.log_prob(x, c)
            total = np.logaddexp(total, flow.backend.to_numpy(log_weight).astype(np.float64))
        nll.append(-(total - math.log(samples)))
    return np.concatenate(nll)


@dataclass
class Progress:
    """The counters of a run; with the arrays of a checkpoint they are all its state."""

    epoch: int = 0  # epochs completed
    step: int = 0  # steps completed, in all
    loss_sum: float = 0.0  # of the steps of the epoch under way
    best_nll: float = math.inf
    best_epoch: int = 0
    seconds: float = 0.0


class Trainer:
    """One run: the optimizer, the counters and the best weights so far."""

    def __init__(self, flow: Flow, options: TrainingOptions, rows: int):
        self.flow = flow
        self.options = options
        self.batch_size = min(options.batch_size, rows)
        self.rows = rows
        self.steps_per_epoch = rows // self.batch_size
        self.adam = optim.Adam(
            flow.params,
            options.learning_rate,
            weight_decay=options.weight_decay,
            max_norm=options.max_norm,
        )
        self.average = (
            None if options.average is None else optim.WeightAverage(flow.params, options.average)
        )
        self.schedule = self._schedule()
        self.progress = Progress()
        # Sums over steps that a device is not asked for in every step: the loss over those of the
        # epoch under way, the gradient's norm over all.
        self.loss_sum = flow.backend.xp.zeros((), np.float64)
        self.norm_sum = flow.backend.xp.zeros(1, np.float64)
        self.best_values = flow.params.values.copy()
        self.best_state = flow.params.state.copy()

    def train_step(self, x: Array, context: Array | None) -> Array:
        """One update from one batch; its mean nll as a 0-d array.

        On a device nothing waits for the result: `check` tells later if it was not finite.
        """
        flow, memory = self.flow, self.options.memory
        flow.use_masks(self.progress.step)
        if flow.dequantizes(x):
            loss = flow.bound_and_grad(x, context, *self.noise(), memory)
        else:
            loss = flow.loss_and_grad(x, context, memory)
        if not flow.backend.on_device:
            self.require_finite(loss, x, context)
        self.adam.step(self.schedule(self.progress.step))
        if self.options.max_norm is not None:  # Adam leaves all as it is if the norm is not finite
            if flow.backend.on_device:
                self.norm_sum += self.adam.norm
            else:
                self.require_finite(self.adam.norm[0], x, context)
        self.loss_sum += loss
        self.progress.step += 1
        if self.average is not None:
            self.average.update(self.progress.step)
        return loss

    def require_finite(self, number: Array, x: Array, context: Array | None) -> None:
        """Raise NonFiniteError unless this result of the step under way is finite."""
        if not math.isfinite(number):
            error = self.flow.non_finite_error(x, context, *self.noise())
            raise NonFiniteError(f"training step {self.progress.step + 1}: {error}")

    def check(self, loss: Array, x: Array, context: Array | None, since: int) -> None:
        """Raise NonFiniteError unless all that the steps after step `since` left is finite, and
        InversionDriftError if one of them strayed too far.

        loss, x, context : of the last of these steps
        """
        values_are_finite = bool(self.flow.backend.xp.isfinite(self.flow.params.values).all())
        sums_are_finite = math.isfinite(self.loss_sum) and math.isfinite(self.norm_sum[0])
        if values_are_finite and sums_are_finite:
            self.flow.check_drift()
            return
        last = self.progress.step
        steps = f"step {last}" if since + 1 == last else f"steps {since + 1} to {last}"
        last_is_finite = math.isfinite(loss) and math.isfinite(self.adam.norm[0])
        if values_are_finite and last_is_finite:
            raise NonFiniteError(
                f"training {steps}: the loss or the gradient's norm was not finite before the last "
                "of them; lower the learning rate, or resume with backend 'numpy', which names the "
                "step and the layer"
            )
        error = self.flow.non_finite_error(x, context, *self.noise(last - 1))
        raise NonFiniteError(f"training {steps}: {error}")

    def noise(self, step: int | None = None) -> tuple[int, int, random.Stream]:
        """The seed, step and stream of the noise of that step, or of the one under way."""
        step = self.progress.step if step is None else step
        return self.options.seed, step, random.Stream.DEQUANTIZE

    def validate(self, data: Data | None, statistics: Data) -> float | None:
        """The validation nll of the averaged weights (or the weights); keeps the best of them."""
        params = self.flow.params
        self.flow.use_masks(0)
        if self.average is not None:
            self.average.swap()
        if params.state_table:
            rows = slice(0, STATISTICS_ROWS)
            stream = random.Stream.DEQUANTIZE_EVALUATION
            self.flow.update_statistics(
                *statistics.batch(self.flow, rows, self.options.seed, STATISTICS_STEP, stream),
                self.options.seed,
            )
        nll = None if data is None else float(evaluate(self.flow, data).mean())
        if nll is None or nll < self.progress.best_nll:
            self.progress.best_nll = math.inf if nll is None else nll
            self.progress.best_epoch = self.progress.epoch
            self.best_values[...] = params.values
            self.best_state[...] = params.state
        if self.average is not None:
            self.average.swap()
        return nll

    def keep_best(self) -> None:
        """Leave the best weights in the flow."""
        self.flow.params.values[...] = self.best_values
        self.flow.params.state[...] = self.best_state

    def save(self, path: Path) -> None:
        """Write the whole state of the run."""
        header = {
            "flow": self.flow.config(),
            "options": asdict(self.options),
            "rows": self.rows,
            "progress": asdict(self.progress),
        }
        arrays = {name: self.flow.backend.to_numpy(a) for name, a in self._arrays().items()}
        checkpoint.write(path, arrays, FORMAT, header)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint of the same run; only `epochs` may differ, and that only if
        the schedule does not depend on it.

        Raises CheckpointError, before anything is changed, if the file is not of such a run.
        """
        arrays, header = checkpoint.read(path, FORMAT)
        if header["flow"] != json.loads(json.dumps(self.flow.config())):
            raise CheckpointError(f"{path} is of another model; resume with the options it had")
        mine, theirs = asdict(self.options), header["options"]
        free = set() if self.options.schedule == "cosine" else {"epochs"}  # cosine ends there
        for name in sorted(mine.keys() - free):
            if mine[name] != theirs.get(name):
                raise CheckpointError(
                    f"{path} was trained with {name}={theirs.get(name)!r}, not {mine[name]!r}; "
                    "resume with the options it had, or start a new run"
                )
        if header["rows"] != self.rows:
            raise CheckpointError(
                f"{path} was trained on {header['rows']} rows, this run has {self.rows}"
            )
        buffers = self._arrays()
        for name, buffer in buffers.items():
            stored = arrays.get(name)
            if stored is None or stored.shape != buffer.shape or stored.dtype != buffer.dtype:
                raise CheckpointError(
                    f"{path}: array {name!r} does not fit this run's {buffer.dtype}"
                )
        for name, buffer in buffers.items():
            buffer[...] = self.flow.backend.array(arrays[name])
        self.progress = Progress(**header["progress"])
        self.adam.steps = self.progress.step

    def _arrays(self) -> dict[str, Array]:
        params = self.flow.params
        arrays = {"values": params.values, "state": params.state}
        arrays |= {"adam.m": self.adam.m, "adam.v": self.adam.v}
        arrays |= {"best.values": self.best_values, "best.state": self.best_state}
        if self.average is not None:
            arrays["average"] = self.average.average
        return arrays

    def _schedule(self) -> optim.Schedule:
        options = self.options
        schedules = {
            "constant": optim.constant(),
            "exponential": optim.exponential(options.decay, self.steps_per_epoch),
            "cosine": optim.cosine(options.epochs * self.steps_per_epoch),
        }
        return optim.warm_up(options.warm_up_steps, schedules[options.schedule])


def fit(
    flow: Flow,
    train: Array,
    validation: Array | None = None,
    *,
    options: TrainingOptions,
    context: Array | None = None,
    validation_context: Array | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[int, Flow], None] | None = None,
    progress_bar: bool = True,
) -> list[dict[str, Any]]:
    """Train flow by maximum likelihood; it ends with the weights of the best validation.

    train, validation : (rows, *flow.shape); integer rows are dequantized with fresh noise, that of
                        flow.dequantizer if there is one: the nll is then a bound
    out               : a folder for metrics.jsonl and checkpoint.safetensors, written every epoch
    resume            : continue the run in `out`; its parameters will be those, to the bit, of a
                        run that was never stopped
    on_epoch          : called after every epoch with its number and the flow

    Returns one dictionary an epoch, as in metrics.jsonl. Ctrl-C ends the step under way, writes a
    checkpoint and raises KeyboardInterrupt. Raises NonFiniteError or OutOfMemoryError (the last
    checkpoint stays), ShapeError, CheckpointError or ConfigurationError. On a device NonFiniteError
    comes at the end of the epoch, or when the progress bar next shows the loss.
    """
    flow.bijection.check_memory(as_memory(options.memory))
    if flow.dequantizer is not None:
        flow.dequantizer.bijection.check_memory(as_memory(options.memory))
    integers = options.integers
    train_data = Data.on(flow, train, context, integers)
    validation_data = None
    if validation is not None:
        validation_data = Data.on(flow, validation, validation_context, integers)
    trainer = Trainer(flow, options, len(train_data.rows))
    history = _open_run(trainer, Path(out) if out is not None else None, resume)
    progress = trainer.progress
    with (
        _interrupt_flag() as interrupted,
        tqdm(
            total=options.epochs * trainer.steps_per_epoch,
            initial=progress.step,
            disable=not progress_bar,
            dynamic_ncols=True,
            unit="step",
        ) as bar,
    ):
        while progress.epoch < options.epochs and not _out_of_patience(options, progress):
            started = time.perf_counter()
            finished = _train_epoch(trainer, train_data, bar, interrupted)
            if not finished:
                progress.seconds += time.perf_counter() - started
                if out is not None:
                    trainer.save(Path(out) / CHECKPOINT)
                raise KeyboardInterrupt
            progress.epoch += 1
            record = _validate_epoch(trainer, train_data, validation_data, started)
            history.append(record)
            if out is not None:
                _append_metrics(Path(out) / METRICS, record)
                trainer.save(Path(out) / CHECKPOINT)
            if progress_bar:
                bar.write(_line(record))
            if on_epoch is not None:
                on_epoch(progress.epoch, flow)
            if interrupted.is_set():
                raise KeyboardInterrupt
    trainer.keep_best()
    return history


def _train_epoch(trainer: Trainer, data: Data, bar: tqdm, interrupted: threading.Event) -> bool:
    """The rest of the epoch under way; False if it was interrupted between two steps."""
    flow, options, progress = trainer.flow, trainer.options, trainer.progress
    size, memory = trainer.batch_size, as_memory(options.memory)
    order = flow.backend.xp.asarray(
        random.permutation(trainer.rows, options.seed, random.Stream.ORDER, progress.epoch)
    )
    trainer.loss_sum.fill(progress.loss_sum)
    checked = progress.step
    first = progress.step - progress.epoch * trainer.steps_per_epoch
    for k in range(first, trainer.steps_per_epoch):
        with explain_out_of_memory(size, memory):
            x, context = data.batch(flow, order[k * size : (k + 1) * size], *trainer.noise())
            loss = trainer.train_step(x, context)
        bar.update()
        if not bar.disable and (k + 1) % FETCH_EVERY == 0:
            trainer.check(loss, x, context, since=checked)
            checked = progress.step
            nll = float(trainer.loss_sum) / (k + 1)
            bar.set_postfix_str(_nats_and_bits(flow, nll), refresh=False)
        if interrupted.is_set() and k + 1 < trainer.steps_per_epoch:
            break
    trainer.check(loss, x, context, since=checked)
    progress.loss_sum = float(trainer.loss_sum)
    return k + 1 == trainer.steps_per_epoch


def _validate_epoch(
    trainer: Trainer, train: Data, validation: Data | None, started: float
) -> dict[str, Any]:
    flow, progress = trainer.flow, trainer.progress
    train_nll = progress.loss_sum / trainer.steps_per_epoch
    progress.loss_sum = 0.0
    nll = trainer.validate(validation, train)
    progress.seconds += time.perf_counter() - started
    record: dict[str, Any] = {"epoch": progress.epoch, "step": progress.step}
    record |= {"train_nll": train_nll, "train_bits_per_dim": bits_per_dim(train_nll, flow.features)}
    if nll is not None:
        record |= {"validation_nll": nll}
        record |= {"validation_bits_per_dim": bits_per_dim(nll, flow.features)}
    factor = trainer.schedule(progress.step - 1)
    record |= {"learning_rate": trainer.options.learning_rate * factor}
    if trainer.options.memory == "invert":
        record |= {"drift": flow.drift}
    return record | {"seconds": round(progress.seconds, 3)}


def _out_of_patience(options: TrainingOptions, progress: Progress) -> bool:
    waited = progress.epoch - progress.best_epoch
    return options.patience is not None and waited >= options.patience


def _open_run(trainer: Trainer, out: Path | None, resume: bool) -> list[dict[str, Any]]:
    """Make or read the folder of a run. Returns the records of the epochs it has completed."""
    if out is None:
        if resume:
            raise ConfigurationError("resume needs the folder of the run to resume: give out")
        return []
    if not resume:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the folder {out}: {error.strerror}") from None
        trainer.save(out / CHECKPOINT)  # a run killed in its first epoch can be resumed too
        checkpoint.write_bytes(out / METRICS, b"")
        return []
    if not (out / CHECKPOINT).is_file():
        raise CheckpointError(
            f"there is nothing to resume in {out}: no {CHECKPOINT}; start without resume"
        )
    trainer.load(out / CHECKPOINT)
    # A run killed between the two writes has one line more than its checkpoint knows of.
    lines = (out / METRICS).read_text().splitlines(keepends=True)[: trainer.progress.epoch]
    checkpoint.write_bytes(out / METRICS, "".join(lines).encode())
    return [json.loads(line) for line in lines]


def _append_metrics(path: Path, record: dict[str, Any]) -> None:
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror}") from None


def _nats_and_bits(flow: Flow, nll: float) -> str:
    return f"{nll:.3f} nats, {bits_per_dim(nll, flow.features):.4f} bits/dim"


def _line(record: dict[str, Any]) -> str:
    text = f"epoch {record['epoch']}: train {record['train_nll']:.4f} nats"
    text += f" ({record['train_bits_per_dim']:.4f} bits/dim)"
    if "validation_nll" in record:
        text += f", validation {record['validation_nll']:.4f}"
        text += f" ({record['validation_bits_per_dim']:.4f})"
    return text


@contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """Within it, Ctrl-C sets a flag and lets the step finish; a second one acts at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = signal.getsignal(signal.SIGINT)

    def set_flag(number: int, frame: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, set_flag)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
