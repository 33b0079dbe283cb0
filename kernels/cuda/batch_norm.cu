// Batch normalisation z = gamma (x - mean) / sigma + beta; formulas in reference/batch_norm.py.
// x, z (batch, d); mean, var, log_gamma, beta (d,); log_det (batch,).

#include "common.cuh"

// One block a tile of columns; x is read twice, so that the variance does not cancel.
template <typename T>
__global__ void moments(const T* x, T* mean, T* var, long long batch, long long d) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;
    if (j < d)
        for (long long row = threadIdx.y; row < batch; row += blockDim.y) sum += x[row * d + j];
    const double center = column_sum(sum) / batch;
    double squares = 0;
    if (j < d) {
        for (long long row = threadIdx.y; row < batch; row += blockDim.y) {
            const T difference = T(x[row * d + j] - center);
            squares += difference * difference;
        }
    }
    squares = column_sum(squares);
    if (j < d && threadIdx.y == 0) {
        mean[j] = T(center);
        var[j] = T(squares / batch);
    }
}

// One block a row.
template <typename T>
__global__ void batch_norm_forward(
    const T* x, const T* mean, const T* var, const T* log_gamma, const T* beta, T epsilon,
    T* z, T* log_det, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T log_scale = log_gamma[j] - T(0.5) * log(var[j] + epsilon);
            z[row * d + j] = (x[row * d + j] - mean[j]) * exp(log_scale) + beta[j];
            sum += log_scale;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_det[row] = T(sum);
    }
}

// One block a row.
template <typename T>
__global__ void batch_norm_inverse(
    const T* z, const T* mean, const T* var, const T* log_gamma, const T* beta, T epsilon,
    T* x, T* log_det, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T log_scale = log_gamma[j] - T(0.5) * log(var[j] + epsilon);
            x[row * d + j] = (z[row * d + j] - beta[j]) * exp(-log_scale) + mean[j];
            sum -= log_scale;
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_det[row] = T(sum);
    }
}

// One block a tile of columns: all the rows of a column are in one block, so that dx can follow the
// sums in the same launch. own: mean and var are x's own moments.
template <typename T>
__global__ void batch_norm_backward(
    const T* dz, const T* dlog_det, const T* x, const T* mean, const T* var, const T* log_gamma,
    T epsilon, int own, T* dx, T* dlog_gamma, T* dbeta, long long batch, long long d) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const T sigma = j < d ? sqrt(var[j] + epsilon) : T(1);
    const T gamma = j < d ? exp(log_gamma[j]) : T(0);
    const T center = j < d ? mean[j] : T(0);
    double dz_sum = 0, dscale_sum = 0;  // dscale = dx_hat x_hat + dlog_det
    if (j < d) {
        for (long long row = threadIdx.y; row < batch; row += blockDim.y) {
            const T dz_i = dz[row * d + j];
            dz_sum += dz_i;
            dscale_sum += dz_i * gamma * ((x[row * d + j] - center) / sigma) + dlog_det[row];
        }
    }
    dz_sum = column_sum(dz_sum);
    dscale_sum = column_sum(dscale_sum);
    if (j >= d) return;  // no barrier follows
    if (threadIdx.y == 0) {
        dlog_gamma[j] += T(dscale_sum);
        dbeta[j] += T(dz_sum);
    }
    const T dx_hat_mean = own ? gamma * T(dz_sum / batch) : T(0);
    const T dscale_mean = own ? T(dscale_sum / batch) : T(0);
    for (long long row = threadIdx.y; row < batch; row += blockDim.y) {
        const long long i = row * d + j;
        const T x_hat = (x[i] - center) / sigma;
        dx[i] = (dz[i] * gamma - dx_hat_mean - x_hat * dscale_mean) / sigma;
    }
}

// One block a tile of columns.
template <typename T>
__global__ void batch_norm_inverse_backward(
    const T* dx, const T* dlog_det, const T* x, const T* mean, const T* var, const T* log_gamma,
    T epsilon, T* dz, T* dlog_gamma, T* dbeta, long long batch, long long d) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    double dz_sum = 0, dscale_sum = 0;
    if (j < d) {
        const T scale = exp(T(0.5) * log(var[j] + epsilon) - log_gamma[j]);
        for (long long row = threadIdx.y; row < batch; row += blockDim.y) {
            const long long i = row * d + j;
            const T dx_i = dx[i], dz_i = dx_i * scale;
            dz[i] = dz_i;
            dz_sum += dz_i;
            dscale_sum += dx_i * (x[i] - mean[j]) + dlog_det[row];
        }
    }
    dz_sum = column_sum(dz_sum);
    dscale_sum = column_sum(dscale_sum);
    if (j < d && threadIdx.y == 0) {
        dlog_gamma[j] -= T(dscale_sum);
        dbeta[j] -= T(dz_sum);
    }
}
