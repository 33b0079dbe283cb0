// Log-densities of factorised distributions; formulas in reference/densities.py.
// z, dz, x, logits, dlogits (batch, d); log_prob, dlog_prob (batch,). One block a row in all kernels.

#include "common.cuh"

template <typename T>
__global__ void normal_log_prob(const T* z, T* log_prob, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T z_i = z[row * d + j];
            sum += z_i * z_i;
        }
        sum = block_sum(sum);
        const double log_two_pi = 1.8378770664093454836;
        if (threadIdx.x == 0) log_prob[row] = T(-0.5 * sum - 0.5 * d * log_two_pi);
    }
}

template <typename T>
__global__ void normal_log_prob_backward(
    const T* z, const T* dlog_prob, T* dz, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x)
        for (long long j = threadIdx.x; j < d; j += blockDim.x)
            dz[row * d + j] = -z[row * d + j] * dlog_prob[row];
}

template <typename T>
__global__ void logistic_log_prob(const T* z, T* log_prob, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T absolute = fabs(z[row * d + j]);
            sum -= absolute + 2 * log1p(exp(-absolute));
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_prob[row] = T(sum);
    }
}

template <typename T>
__global__ void logistic_log_prob_backward(
    const T* z, const T* dlog_prob, T* dz, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x)
        for (long long j = threadIdx.x; j < d; j += blockDim.x)
            dz[row * d + j] = -tanh(z[row * d + j] / 2) * dlog_prob[row];
}

template <typename T>
__global__ void bernoulli_log_prob(
    const T* x, const T* logits, T* log_prob, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T logit = logits[row * d + j];
            sum += x[row * d + j] * logit - (logit < 0 ? 0 : logit) - log1p(exp(-fabs(logit)));
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) log_prob[row] = T(sum);
    }
}

template <typename T>
__global__ void bernoulli_backward(
    const T* x, const T* logits, const T* dlog_prob, T* dlogits, long long batch, long long d) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x)
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T e = exp(-fabs(logits[row * d + j]));
            const T probability = (logits[row * d + j] < 0 ? e : 1) / (1 + e);
            dlogits[row * d + j] = (x[row * d + j] - probability) * dlog_prob[row];
        }
}
