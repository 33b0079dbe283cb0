// A linear layer in one launch each way, where it is small; and what surrounds the products of
// cuBLAS where it is large: there y, dy are (batch, d); bias, dbias (d,). Formulas in
// reference/linear.py.

#include "common.cuh"
#include "product.cuh"

template <typename T>
__global__ void __launch_bounds__(256) linear_forward(
    const T* x, const T* weight, const T* bias, T* y, int activation, T leaky_slope,
    long long batch, long long n_in, long long n_out) {
    forward_tile(
        x, weight, bias, y, activation, leaky_slope, batch, n_in, n_out, Dense{n_in, n_out});
}

template <typename T>
__global__ void __launch_bounds__(256) linear_backward(
    const T* dy, const T* x, const T* y, const T* weight, T* dx, T* dweight, T* dbias,
    int activation, T leaky_slope, long long batch, long long n_in, long long n_out) {
    backward_tile(
        dy, x, y, weight, dx, dweight, dbias, activation, leaky_slope, batch, n_in, n_out,
        Dense{n_in, n_out});
}

// y = act(y + bias) in place. One block a row.
template <typename T>
__global__ void add_bias_and_activate(
    T* y, const T* bias, int activation, T leaky_slope, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            y[row * d + j] = activate(y[row * d + j] + bias[j], activation, leaky_slope);
        }
    }
}

// da = dy act'(y) in place of dy; dbias += column sums of da. One block a tile of columns.
template <typename T>
__global__ void activate_backward(
    T* dy, const T* y, int activation, T leaky_slope, T* dbias, long long batch, long long d) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;
    if (j < d) {
        for (long long row = threadIdx.y; row < batch; row += blockDim.y) {
            const long long i = row * d + j;
            const T da = dy[i] * activation_derivative(y[i], activation, leaky_slope);
            if (activation != IDENTITY) dy[i] = da;
            sum += da;
        }
    }
    sum = column_sum(sum);
    if (j < d && threadIdx.y == 0) dbias[j] += T(sum);
}
