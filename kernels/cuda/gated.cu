// The pieces of a gated residual network; formulas in reference/gated.py.
// A row is a pixel of c channels; y of concat_elu and params = [v | g] have 2c.

#include "common.cuh"

// Sum of value over the threads of a warp, the same in every thread.
__device__ inline double warp_sum(double value) {
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_xor_sync(0xffffffff, value, offset);
    return value;
}

// y = [elu(x) | elu(-x)]. One thread an element of x.
template <typename T>
__global__ void concat_elu_forward(const T* x, T* y, long long n, long long c) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const T x_i = x[i], negative = expm1(-fabs(x_i));
        const long long at = 2 * (i - i % c) + i % c;
        y[at] = x_i > 0 ? x_i : negative;
        y[at + c] = x_i < 0 ? -x_i : negative;
    }
}

// dx = dp elu'(x) - dn elu'(-x), [p | n] = y. One thread an element of dx.
template <typename T>
__global__ void concat_elu_backward(const T* dy, const T* y, T* dx, long long n, long long c) {
    const long long step = (long long)gridDim.x * blockDim.x;
    for (long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += step) {
        const long long at = 2 * (i - i % c) + i % c;
        const T positive = y[at], negative = y[at + c];
        dx[i] = dy[at] * (positive > 0 ? T(1) : positive + 1) -
                dy[at + c] * (negative > 0 ? T(1) : negative + 1);
    }
}

template <typename T>
__device__ T sigmoid(T x) {
    const T e = exp(-fabs(x));
    return (x >= 0 ? T(1) : e) / (1 + e);
}

// s_hat of one row, by one warp: s = h + v sigmoid(g), less its mean, by its deviation sigma.
// Returns 1 / sigma. A thread reads and writes the channels lane, lane + 32, ... alone.
template <typename T>
__device__ T normalize(const T* h, const T* params, T epsilon, T* s_hat, long long c) {
    const int lane = threadIdx.x % 32;
    double sum = 0, squares = 0;
    for (long long j = lane; j < c; j += 32) {
        s_hat[j] = h[j] + params[j] * sigmoid(params[c + j]);
        sum += s_hat[j];
    }
    const T mean = T(warp_sum(sum) / c);
    for (long long j = lane; j < c; j += 32) {
        s_hat[j] -= mean;
        squares += s_hat[j] * s_hat[j];
    }
    const T per_sigma = T(1 / sqrt(warp_sum(squares) / c + epsilon));
    for (long long j = lane; j < c; j += 32) s_hat[j] *= per_sigma;
    return per_sigma;
}

// y = gain s_hat + shift. One warp a row.
template <typename T>
__global__ void gated_norm_forward(
    const T* h, const T* params, const T* gain, const T* shift, T epsilon, T* y,
    long long rows, long long c) {
    const long long warps = blockDim.x / 32, step = gridDim.x * warps;
    for (long long row = blockIdx.x * warps + threadIdx.x / 32; row < rows; row += step) {
        T* y_row = y + row * c;
        normalize(h + row * c, params + 2 * row * c, epsilon, y_row, c);
        for (long long j = threadIdx.x % 32; j < c; j += 32)
            y_row[j] = gain[j] * y_row[j] + shift[j];
    }
}

// dh and dparams, and s_hat for the sums over rows. One warp a row.
template <typename T>
__global__ void gated_norm_backward(
    const T* dy, const T* h, const T* params, const T* gain, T epsilon, T* dh, T* dparams,
    T* s_hat, long long rows, long long c) {
    const int lane = threadIdx.x % 32;
    const long long warps = blockDim.x / 32, step = gridDim.x * warps;
    for (long long row = blockIdx.x * warps + threadIdx.x / 32; row < rows; row += step) {
        const T *dy_row = dy + row * c, *v = params + 2 * row * c, *g = v + c;
        T *s_hat_row = s_hat + row * c, *dv = dparams + 2 * row * c, *dg = dv + c;
        const T per_sigma = normalize(h + row * c, v, epsilon, s_hat_row, c);
        double sum = 0, product = 0;
        for (long long j = lane; j < c; j += 32) {
            const T ds_hat = gain[j] * dy_row[j];
            sum += ds_hat;
            product += ds_hat * s_hat_row[j];
        }
        const T mean = T(warp_sum(sum) / c), projection = T(warp_sum(product) / c);
        for (long long j = lane; j < c; j += 32) {
            const T gate = sigmoid(g[j]);
            const T ds = (gain[j] * dy_row[j] - mean - s_hat_row[j] * projection) * per_sigma;
            dh[row * c + j] = ds;
            dv[j] = ds * gate;
            dg[j] = ds * v[j] * gate * (1 - gate);
        }
    }
}

// parts (gridDim.y, 2, c): sums of dy s_hat and of dy. A block has a tile of columns (blockIdx.x)
// and every gridDim.y-th group of rows.
template <typename T>
__global__ void gated_norm_sums(
    const T* dy, const T* s_hat, double* parts, long long rows, long long c) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long first = (long long)blockIdx.y * blockDim.y + threadIdx.y;
    double products = 0, sum = 0;
    if (j < c) {
        for (long long row = first; row < rows; row += (long long)gridDim.y * blockDim.y) {
            products += dy[row * c + j] * s_hat[row * c + j];
            sum += dy[row * c + j];
        }
    }
    products = column_sum(products);
    sum = column_sum(sum);
    if (j < c && threadIdx.y == 0) {
        parts[2 * blockIdx.y * c + j] = products;
        parts[(2 * blockIdx.y + 1) * c + j] = sum;
    }
}

// dgain and dshift += the sums of parts (blocks, 2, c). One block a tile of columns.
template <typename T>
__global__ void gated_norm_add_sums(
    const double* parts, T* dgain, T* dshift, long long blocks, long long c) {
    const long long j = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    double products = 0, sum = 0;
    if (j < c) {
        for (long long block = threadIdx.y; block < blocks; block += blockDim.y) {
            products += parts[2 * block * c + j];
            sum += parts[(2 * block + 1) * c + j];
        }
    }
    products = column_sum(products);
    sum = column_sum(sum);
    if (j < c && threadIdx.y == 0) {
        dgain[j] += T(products);
        dshift[j] += T(sum);
    }
}
