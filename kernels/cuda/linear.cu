// What a linear layer does around its matrix products; formulas in reference/linear.py.
// y, dy (batch, d); bias, dbias (d,).

#include "activation.cuh"
#include "common.cuh"

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
