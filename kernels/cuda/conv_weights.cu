// The weights of convolutions; formulas in reference/conv_weights.py. A weight is a matrix of `rows`
// rows and n output channels. One block a tile of columns, see per_column.

#include "common.cuh"

// The sum of value(i) over the elements i = row n + j of this thread's column j.
template <typename Value>
__device__ double sum_of_column(long long j, long long rows, long long n, Value value) {
    double sum = 0;
    if (j < n)
        for (long long row = threadIdx.y; row < rows; row += blockDim.y) sum += value(row * n + j);
    return column_sum(sum);
}

// w = gain v / |v|
template <typename T>
__global__ void normalized_weight(
    const T* v, const T* gain, T* w, long long rows, long long n) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const T norm = T(sqrt(sum_of_column(j, rows, n, [&](long long i) { return double(v[i]) * v[i]; })));
    if (j >= n) return;
    for (long long row = threadIdx.y; row < rows; row += blockDim.y)
        w[row * n + j] = gain[j] * (v[row * n + j] / norm);
}

// dgain += along = sum dw v/|v|; dv += gain/|v| (dw - v/|v| along)
template <typename T>
__global__ void normalized_weight_backward(
    const T* dw, const T* v, const T* gain, T* dv, T* dgain, long long rows, long long n) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const T norm = T(sqrt(sum_of_column(j, rows, n, [&](long long i) { return double(v[i]) * v[i]; })));
    const T along = T(sum_of_column(j, rows, n, [&](long long i) { return double(dw[i]) * (v[i] / norm); }));
    if (j >= n) return;
    for (long long row = threadIdx.y; row < rows; row += blockDim.y) {
        const long long i = row * n + j;
        dv[i] += gain[j] / norm * (dw[i] - v[i] / norm * along);
    }
    if (threadIdx.y == 0) dgain[j] += along;
}

// w = e^(factor log_gain) weight, b = e^(factor log_gain) bias
template <typename T>
__global__ void scaled_weight(
    const T* weight, const T* bias, const T* log_gain, T factor, T* w, T* b,
    long long rows, long long n) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= n) return;
    const T gain = exp(factor * log_gain[j]);
    for (long long row = threadIdx.y; row < rows; row += blockDim.y)
        w[row * n + j] = gain * weight[row * n + j];
    if (threadIdx.y == 0) b[j] = gain * bias[j];
}

// dweight += e^(factor log_gain) dw, likewise dbias; dlog_gain += factor (sum dw w + db b)
template <typename T>
__global__ void scaled_weight_backward(
    const T* dw, const T* db, const T* weight, const T* bias, const T* log_gain, T factor,
    T* dweight, T* dbias, T* dlog_gain, long long rows, long long n) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const double sum =
        sum_of_column(j, rows, n, [&](long long i) { return double(dw[i]) * weight[i]; });
    if (j >= n) return;
    const T gain = exp(factor * log_gain[j]);
    for (long long row = threadIdx.y; row < rows; row += blockDim.y)
        dweight[row * n + j] += gain * dw[row * n + j];
    if (threadIdx.y == 0) {
        dbias[j] += gain * db[j];
        dlog_gain[j] += factor * gain * T(sum + double(db[j]) * bias[j]);
    }
}
