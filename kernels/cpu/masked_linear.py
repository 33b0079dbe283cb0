"""A linear layer masked by a staircase, on the CPU; formulas in reference/masked_linear.py.

The code is that of linear.py, which leaves out the blocks of W that are zero.
"""

from npflow.kernels.cpu.linear import backward, forward


def masked_linear_forward(x, weight, bias, reach, activation):
    _check(weight, reach, bias)
    return forward(x, weight, bias, reach, activation)


def masked_linear_backward(dy, x, y, weight, reach, activation, dweight, dbias):
    _check(weight, reach, dbias)
    rows = len(x), weight.shape[1]
    if dy.shape != rows or y.shape != rows:
        raise ValueError(f"dy is {dy.shape} and y {y.shape}; expected {rows}")
    if dweight.shape != weight.shape or not dweight.flags.c_contiguous:
        raise ValueError(
            f"dweight is {dweight.shape} with strides {dweight.strides}; "
            f"expected {weight.shape}, C-contiguous"
        )
    return backward(dy, x, y, weight, reach, activation, dweight, dbias)


def _check(weight, reach, bias):
    n_in, n_out = weight.shape
    n = reach.size
    if reach.ndim != 1 or n == 0 or n_out % n or bias.shape != (n_out,):
        raise ValueError(
            f"weight is {weight.shape}, reach {reach.shape} and bias {bias.shape}; expected "
            f"{n_out} numbers of bias, and of reach a number that divides {n_out}"
        )
    if reach[0] < 0 or reach[-1] > n_in:
        raise ValueError(f"reach is {reach[0]} to {reach[-1]}; expected 0 to {n_in}")
