// What a linear layer does around its matrix products; formulas in reference/linear.py.
// y, dy (batch, d); bias, dbias (d,).

#include "common.cuh"

// The order of ACTIVATIONS in gpu/linear.py.
enum { IDENTITY, RELU, LEAKY_RELU, TANH, ELU };

// y = act(y + bias) in place. One block a row.
template <typename T>
__global__ void add_bias_and_activate(
    T* y, const T* bias, int activation, T leaky_slope, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            T a = y[row * d + j] + bias[j];
            switch (activation) {
                case RELU: a = a < 0 ? T(0) : a; break;  // keeps a NaN
                case LEAKY_RELU: a = a > 0 ? a : leaky_slope * a; break;
                case TANH: a = tanh(a); break;
                case ELU: a = a > 0 ? a : expm1(a); break;
            }
            y[row * d + j] = a;
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
            T da = dy[i];
            switch (activation) {
                case RELU: da *= y[i] > 0 ? T(1) : T(0); break;
                case LEAKY_RELU: da *= y[i] > 0 ? T(1) : leaky_slope; break;
                case TANH: da *= (1 - y[i]) * (1 + y[i]); break;  // exact near 1
                case ELU: da *= y[i] > 0 ? T(1) : y[i] + 1; break;
            }
            if (activation != IDENTITY) dy[i] = da;
            sum += da;
        }
    }
    sum = column_sum(sum);
    if (j < d && threadIdx.y == 0) dbias[j] += T(sum);
}
