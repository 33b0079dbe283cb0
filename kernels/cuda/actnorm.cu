// Activation normalisation z = x e^s + b, channel by channel; formulas in reference/actnorm.py.
// x, z (rows, c), rows = batch pixels; log_scale, shift (c,); log_det (batch,). sign is 1 for the
// map, -1 for its inverse.

#include "common.cuh"

// One thread an element.
template <typename T>
__global__ void actnorm_apply(
    const T* in, const T* log_scale, const T* shift, T sign, T* out, T* log_det,
    long long batch, long long pixels, long long c) {
    const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = first; i < batch * pixels * c; i += step) {
        const T scale = exp(sign * log_scale[i % c]), b = shift[i % c];
        out[i] = sign > 0 ? in[i] * scale + b : (in[i] - b) * scale;
    }
    if (first >= batch) return;
    double sum = 0;
    for (long long j = 0; j < c; ++j) sum += log_scale[j];
    for (long long row = first; row < batch; row += step) log_det[row] = T(sign * pixels * sum);
}

// din = dout exp(sign log_scale). x is the side of the data in both directions. A block has a tile
// of columns (blockIdx.x) and every gridDim.y-th group of rows; its sums of dout x and of dout go to
// parts (gridDim.y, 2, c).
template <typename T>
__global__ void actnorm_backward(
    const T* dout, const T* x, const T* log_scale, T sign, T* din, double* parts,
    long long rows, long long c) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long first = (long long)blockIdx.y * blockDim.y + threadIdx.y;
    double products = 0, sum = 0;
    if (j < c) {
        const T scale = exp(sign * log_scale[j]);
        for (long long row = first; row < rows; row += (long long)gridDim.y * blockDim.y) {
            const T dout_i = dout[row * c + j];
            din[row * c + j] = dout_i * scale;
            products += dout_i * x[row * c + j];
            sum += dout_i;
        }
    }
    products = column_sum(products);
    sum = column_sum(sum);
    if (j < c && threadIdx.y == 0) {
        parts[2 * blockIdx.y * c + j] = products;
        parts[(2 * blockIdx.y + 1) * c + j] = sum;
    }
}

// Adds the sums of parts (blocks, 2, c) and of dlog_det to the parameters' gradients. One block a
// tile of columns.
template <typename T>
__global__ void actnorm_add_sums(
    const double* parts, const T* dlog_det, const T* log_scale, T sign, T* dlog_scale, T* dshift,
    long long blocks, long long batch, long long pixels, long long c) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    double products = 0, sum = 0, dlog_det_sum = 0;
    if (j < c) {
        for (long long block = threadIdx.y; block < blocks; block += blockDim.y) {
            products += parts[2 * block * c + j];
            sum += parts[(2 * block + 1) * c + j];
        }
        for (long long row = threadIdx.y; row < batch; row += blockDim.y)
            dlog_det_sum += dlog_det[row];
    }
    products = column_sum(products);
    sum = column_sum(sum);
    dlog_det_sum = pixels * column_sum(dlog_det_sum);
    if (j >= c || threadIdx.y > 0) return;  // no barrier follows
    const double scale = exp(double(sign * log_scale[j]));
    if (sign > 0) {
        dlog_scale[j] += T(scale * products + dlog_det_sum);
        dshift[j] += T(sum);
    } else {
        dlog_scale[j] -= T(products + dlog_det_sum);
        dshift[j] -= T(scale * sum);
    }
}
