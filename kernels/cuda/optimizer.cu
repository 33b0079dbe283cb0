// Updates over whole flat buffers of n elements; formulas in reference/optimizer.py.

#include "common.cuh"

// partial[b] = sum of block b's squares, in double.
template <typename T>
__global__ void squares(const T* grads, double* partial, long long n) {
    const long long start = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long stride = (long long)gridDim.x * blockDim.x;
    double sum = 0;
    for (long long i = start; i < n; i += stride) sum += double(grads[i]) * grads[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// norm[0] = sqrt(sum of the n partial sums). One block.
template <typename T>
__global__ void root_of_sum(const double* partial, T* norm, long long n) {
    double sum = 0;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) norm[0] = T(sqrt(sum));
}

// rate1 = 1 - beta1, correction1 = 1 - beta1^step, likewise 2: the caller takes these differences in
// double, since 1 - 0.999 in float is wrong in the fifth digit.
template <typename T>
__global__ void adam_step(
    T* values, const T* grads, T* m, T* v, const T* norm, T max_norm, T learning_rate,
    T rate1, T rate2, T correction1, T correction2, T epsilon, T weight_decay, long long n) {
    const T length = norm[0];
    if (!isfinite(length)) return;
    const T clip = length > max_norm ? max_norm / length : T(1);
    const long long start = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = start; i < n; i += stride) {
        const T g = grads[i] * clip;
        const T m_i = m[i] + rate1 * (g - m[i]);
        const T v_i = v[i] + rate2 * (g * g - v[i]);
        const T step = m_i / correction1 / (sqrt(v_i / correction2) + epsilon);
        m[i] = m_i;
        v[i] = v_i;
        values[i] -= learning_rate * (step + weight_decay * values[i]);
    }
}

// average += rate (values - average), rate = 1 - decay.
template <typename T>
__global__ void ema_update(T* average, const T* values, T rate, long long n) {
    const long long start = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = start; i < n; i += stride) average[i] += rate * (values[i] - average[i]);
}
