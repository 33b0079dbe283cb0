// Logit of bounded data: y = log p - log(1 - p) with p = lam + slope x; formulas in
// reference/logit.py. x, y (batch, d); log_det (batch,). One block a row in all kernels.

#include "common.cuh"

template <typename T>
__global__ void logit_forward(
    const T* x, T lam, T slope, T levels, T log_slope, T* y, T* log_det, long long batch,
    long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T x_i = x[row * d + j];
            const T log_p = log(lam + slope * x_i), log_q = log(lam + slope * (levels - x_i));
            y[row * d + j] = log_p - log_q;
            sum += log_slope - log_p - log_q;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_det[row] = T(sum);
    }
}

template <typename T>
__global__ void logit_inverse(
    const T* y, T lam, T slope, T log_slope, T* x, T* log_det, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T y_i = y[row * d + j], absolute = fabs(y_i);
            const T p = 1 / (1 + exp(-y_i));
            x[row * d + j] = (p - lam) / slope;
            sum += -absolute - 2 * log1p(exp(-absolute)) - log_slope;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_det[row] = T(sum);
    }
}

template <typename T>
__global__ void logit_backward(
    const T* dy, const T* dlog_det, const T* y, T slope, T* dx, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const long long i = row * d + j;
            const T half = y[i] / 2, c = cosh(half);
            dx[i] = 4 * slope * c * c * (dy[i] + dlog_det[row] * tanh(half));
        }
    }
}

template <typename T>
__global__ void logit_inverse_backward(
    const T* dx, const T* dlog_det, const T* y, T slope, T* dy, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const long long i = row * d + j;
            const T half = y[i] / 2, c = cosh(half);
            dy[i] = dx[i] / (4 * slope * c * c) - dlog_det[row] * tanh(half);
        }
    }
}
