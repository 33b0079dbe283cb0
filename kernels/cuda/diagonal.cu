// Diagonal scaling z = x e^s with one log-scale a column; formulas in reference/diagonal.py.
// x, z (batch, d); log_scale (d,); log_det (batch,). sign is 1 for the map, -1 for its inverse.

#include "common.cuh"

// out = in exp(sign log_scale). One block a row.
template <typename T>
__global__ void diagonal_scale(
    const T* in, const T* log_scale, T sign, T* out, T* log_det, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T s = sign * log_scale[j];
            out[row * d + j] = in[row * d + j] * exp(s);
            sum += s;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_det[row] = T(sum);
    }
}

// din = dout exp(sign log_scale), with x the side of the data in both directions: the product that
// differentiates the scaling is dx x. One block a tile of columns.
template <typename T>
__global__ void diagonal_scale_backward(
    const T* dout, const T* dlog_det, const T* x, const T* log_scale, T sign,
    T* din, T* dlog_scale, long long batch, long long d) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;
    if (j < d) {
        const T scale = exp(sign * log_scale[j]);
        for (long long row = threadIdx.y; row < batch; row += blockDim.y) {
            const long long i = row * d + j;
            const T dout_i = dout[i], din_i = dout_i * scale;
            const T dx = sign > 0 ? din_i : dout_i;
            din[i] = din_i;
            sum += dx * x[i] + dlog_det[row];
        }
    }
    sum = column_sum(sum);
    if (j < d && threadIdx.y == 0) dlog_scale[j] += sign * T(sum);
}
