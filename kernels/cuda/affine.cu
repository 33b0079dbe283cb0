// The affine map z = x e^s + shift with s = bound * tanh(raw); formulas in reference/affine.py.
// x, z (batch, d); params = [shift | raw] (batch, 2 d); bound (d,); log_det (batch,).

#include "common.cuh"

// One block a row.
template <typename T>
__global__ void affine_forward(
    const T* x, const T* params, const T* bound, T* z, T* log_det, T* tanh_raw,
    long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        const T* shift = params + row * 2 * d;
        const T* raw = shift + d;
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const long long i = row * d + j;
            const T t = tanh(raw[j]);
            const T log_scale = bound[j] * t;
            tanh_raw[i] = t;
            z[i] = x[i] * exp(log_scale) + shift[j];
            sum += log_scale;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_det[row] = T(sum);
    }
}

// One block a row.
template <typename T>
__global__ void affine_inverse(
    const T* z, const T* params, const T* bound, T* x, T* log_det, T* tanh_raw,
    long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        const T* shift = params + row * 2 * d;
        const T* raw = shift + d;
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const long long i = row * d + j;
            const T t = tanh(raw[j]);
            const T log_scale = bound[j] * t;
            tanh_raw[i] = t;
            x[i] = (z[i] - shift[j]) * exp(-log_scale);
            sum -= log_scale;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_det[row] = T(sum);
    }
}

// One block a tile of columns.
template <typename T>
__global__ void affine_backward(
    const T* dz, const T* dlog_det, const T* x, const T* tanh_raw, const T* bound,
    T* dx, T* dparams, T* dbound, long long batch, long long d) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;
    if (j < d) {
        for (long long row = threadIdx.y; row < batch; row += blockDim.y) {
            const long long i = row * d + j;
            const T t = tanh_raw[i];
            const T dx_i = dz[i] * exp(bound[j] * t);
            const T dlog_scale = dx_i * x[i] + dlog_det[row];
            dx[i] = dx_i;
            dparams[row * 2 * d + j] = dz[i];
            dparams[row * 2 * d + d + j] = dlog_scale * bound[j] * (1 - t) * (1 + t);
            sum += dlog_scale * t;
        }
    }
    sum = column_sum(sum);
    if (j < d && threadIdx.y == 0) dbound[j] += T(sum);
}

// One block a tile of columns.
template <typename T>
__global__ void affine_inverse_backward(
    const T* dx, const T* dlog_det, const T* x, const T* tanh_raw, const T* bound,
    T* dz, T* dparams, T* dbound, long long batch, long long d) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;
    if (j < d) {
        for (long long row = threadIdx.y; row < batch; row += blockDim.y) {
            const long long i = row * d + j;
            const T t = tanh_raw[i];
            const T dz_i = dx[i] * exp(-bound[j] * t);
            const T dlog_scale = -dx[i] * x[i] - dlog_det[row];
            dz[i] = dz_i;
            dparams[row * 2 * d + j] = -dz_i;
            dparams[row * 2 * d + d + j] = dlog_scale * bound[j] * (1 - t) * (1 + t);
            sum += dlog_scale * t;
        }
    }
    sum = column_sum(sum);
    if (j < d && threadIdx.y == 0) dbound[j] += T(sum);
}
