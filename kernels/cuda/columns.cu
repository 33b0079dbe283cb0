// Splitting and merging the features of a coupling, and adding up log-dets; see
// reference/columns.py. One block a row, except in add_up.

#include "arrays.cuh"

// x_a = x[:, kept] (batch, a), x_b = x[:, transformed] (batch, b).
template <typename T>
__global__ void split(
    const T* x, const long long* kept, const long long* transformed, T* x_a, T* x_b,
    long long batch, long long d, long long a, long long b) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        for (long long j = threadIdx.x; j < a; j += blockDim.x)
            x_a[row * a + j] = x[row * d + kept[j]];
        for (long long j = threadIdx.x; j < b; j += blockDim.x)
            x_b[row * b + j] = x[row * d + transformed[j]];
    }
}

// x[:, kept] = x_a, x[:, transformed] = x_b.
template <typename T>
__global__ void merge(
    const T* x_a, const T* x_b, const long long* kept, const long long* transformed, T* x,
    long long batch, long long a, long long b) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        for (long long j = threadIdx.x; j < a; j += blockDim.x)
            x[row * (a + b) + kept[j]] = x_a[row * a + j];
        for (long long j = threadIdx.x; j < b; j += blockDim.x)
            x[row * (a + b) + transformed[j]] = x_b[row * b + j];
    }
}

// x[:, kept] = x_a + y_a, x[:, transformed] = x_b.
template <typename T>
__global__ void merge_add(
    const T* x_a, const T* y_a, const T* x_b, const long long* kept, const long long* transformed,
    T* x, long long batch, long long a, long long b) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x) {
        for (long long j = threadIdx.x; j < a; j += blockDim.x)
            x[row * (a + b) + kept[j]] = x_a[row * a + j] + y_a[row * a + j];
        for (long long j = threadIdx.x; j < b; j += blockDim.x)
            x[row * (a + b) + transformed[j]] = x_b[row * b + j];
    }
}

// out = x[:, indices] (batch, n).
template <typename T>
__global__ void permute(
    const T* x, const long long* indices, T* out, long long batch, long long d, long long n) {
    for (long long row = blockIdx.x; row < batch; row += gridDim.x)
        for (long long j = threadIdx.x; j < n; j += blockDim.x)
            out[row * n + j] = x[row * d + indices[j]];
}

// total = the sum of `count` arrays of n elements.
template <typename T>
__global__ void add_up(
    const __grid_constant__ Arrays<T> arrays, T* total, int count, long long n) {
    const long long start = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long i = start; i < n; i += stride) {
        T sum = arrays.at[0][i];
        for (int k = 1; k < count; ++k) sum += arrays.at[k][i];
        total[i] = sum;
    }
}
