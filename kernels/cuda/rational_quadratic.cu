// The rational-quadratic spline; formulas in reference/rational_quadratic.py.
// x, z (batch, d); params (batch, (3 bins - 1) d), part-major; log_det (batch,).

#include "common.cuh"
#include "rational_quadratic.cuh"

// One block a row.
template <typename T>
__global__ void rational_quadratic_forward(
    const T* x, const T* params, T bound, T* z, T* log_det, long long batch, long long d,
    int bins) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        const T* raw = params + row * (3 * bins - 1) * d;
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            T log_slope;
            z[row * d + j] = rq_forward(x[row * d + j], raw + j, d, bins, bound, &log_slope);
            sum += log_slope;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_det[row] = T(sum);
    }
}

// One block a row.
template <typename T>
__global__ void rational_quadratic_inverse(
    const T* z, const T* params, T bound, T* x, T* log_det, long long batch, long long d,
    int bins) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        const T* raw = params + row * (3 * bins - 1) * d;
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            T log_slope;
            x[row * d + j] = rq_inverse(z[row * d + j], raw + j, d, bins, bound, &log_slope);
            sum -= log_slope;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_det[row] = T(sum);
    }
}

// One thread an element.
template <typename T>
__global__ void rational_quadratic_backward(
    const T* dz, const T* dlog_det, const T* x, const T* params, T bound, T* dx, T* dparams,
    long long batch, long long d, int bins) {
    const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (long long i = first; i < batch * d; i += (long long)gridDim.x * blockDim.x) {
        const long long row = i / d, start = row * (3 * bins - 1) * d + i % d;
        dx[i] = rq_backward<false>(
            dz[i], dlog_det[row], x[i], params + start, d, bins, bound, dparams + start, d);
    }
}

// One thread an element.
template <typename T>
__global__ void rational_quadratic_inverse_backward(
    const T* dx, const T* dlog_det, const T* x, const T* params, T bound, T* dz, T* dparams,
    long long batch, long long d, int bins) {
    const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    for (long long i = first; i < batch * d; i += (long long)gridDim.x * blockDim.x) {
        const long long row = i / d, start = row * (3 * bins - 1) * d + i % d;
        dz[i] = rq_backward<true>(
            dx[i], dlog_det[row], x[i], params + start, d, bins, bound, dparams + start, d);
    }
}
