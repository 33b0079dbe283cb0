// Mixtures of Gaussians; formulas in reference/mixture.py. x, dx (batch, d);
// params, dparams (batch, 3 components d); log_prob, dlog_prob (batch,). One block a row: threads
// take neighbouring features, so reads of a part-major parameter are coalesced.

#include "common.cuh"
#include "mixture.cuh"

// One component at x: its log-density up to -log(2 pi) / 2, 1 / sigma, and u = (x - mean) / sigma.
// Where sigma underflows, both stop at a limit whose square is finite, so that e^(-u^2/2) is 0.
template <typename T>
struct Gaussian {
    T precision, u, log_density;

    __device__ Gaussian(T x, T mean, T log_scale) {
        const T limit = sizeof(T) == 4 ? T(0x1p63) : T(0x1p511);  // sqrt(max) / 2
        precision = exp(-log_scale);
        precision = precision > limit ? limit : precision;
        u = (x - mean) * precision;
        u = u > limit ? limit : u < -limit ? -limit : u;
        log_density = -log_scale - T(0.5) * u * u;
    }
};

// Weight k is e^(logit_k - highest) / total, and responsibility k e^(joint_k - peak) / total_joint,
// where joint_k = logit_k - highest + log_density_k.
template <typename T>
struct Sums {
    T highest, total, peak, total_joint;

    __device__ Sums(T x, const T* logits, long long stride, int components) {
        const T *means = logits + components * stride, *log_scales = means + components * stride;
        highest = logits[0];
        for (int k = 1; k < components; ++k) highest = larger(logits[k * stride], highest);
        total = 0;
        for (int k = 0; k < components; ++k) {
            const Gaussian<T> gaussian(x, means[k * stride], log_scales[k * stride]);
            const T logit = logits[k * stride] - highest;
            const T joint = logit + gaussian.log_density;
            total += exp(logit);
            if (k == 0) {
                peak = joint;
                total_joint = 1;
            } else {  // the sum so far is relative to the largest term so far
                const T e = exp(-fabs(joint - peak));
                total_joint = joint > peak ? total_joint * e + 1 : total_joint + e;
                peak = larger(joint, peak);
            }
        }
    }
};

template <typename T>
__global__ void mixture_log_prob(
    const T* x, const T* params, T* log_prob, long long batch, long long d, int components) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        double sum = 0;
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const Sums<T> sums(x[row * d + j], params + row * 3 * components * d + j, d, components);
            sum += sums.peak + (log(sums.total_joint) - log(sums.total));
        }
        sum = block_sum(sum);
        const double log_two_pi = 1.8378770664093454836;
        if (threadIdx.x == 0) log_prob[row] = T(sum - 0.5 * d * log_two_pi);
    }
}

template <typename T>
__global__ void mixture_backward(
    const T* x, const T* params, const T* dlog_prob, T* dx, T* dparams, long long batch,
    long long d, int components) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x)
        for (long long j = threadIdx.x; j < d; j += blockDim.x) {
            const T x_j = x[row * d + j], dlog_density = dlog_prob[row];
            const long long offset = row * 3 * components * d + j, part = components * d;
            const T *logits = params + offset, *means = logits + part, *log_scales = means + part;
            const Sums<T> sums(x_j, logits, d, components);
            T dx_j = 0;
            for (int k = 0; k < components; ++k) {
                const Gaussian<T> gaussian(x_j, means[k * d], log_scales[k * d]);
                const T logit = logits[k * d] - sums.highest, u = gaussian.u;
                const T e = exp(logit + gaussian.log_density - sums.peak);
                const T responsibility = dlog_density * (e / sums.total_joint);
                const T dmean = responsibility * u * gaussian.precision;
                T* dparam = dparams + offset + k * d;
                dparam[0] = responsibility - dlog_density * (exp(logit) / sums.total);
                dparam[part] = dmean;
                dparam[2 * part] = responsibility * (u * u - 1);
                dx_j -= dmean;
            }
            dx[row * d + j] = dx_j;
        }
}
