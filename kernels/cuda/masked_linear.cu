// The products of a linear layer whose weight is masked by a staircase; formulas in
// reference/masked_linear.py. x, dx (batch, n_in); y, da (batch, n_out); weight, dweight
// (n_in, n_out); reach (n,) with n_out a multiple of n. Each tile finds on the device how far the
// staircase lets it reach.

#include "tile.cuh"

// The rows of weight that the columns of the tile from `first` on see.
__device__ inline long long reach_of_tile(
    const long long* reach, long long n, long long first, long long n_out) {
    const long long last = (first + TILE < n_out ? first + TILE : n_out) - 1;
    return first / n == last / n ? reach[last % n] : reach[n - 1];
}

// y = x weight. Grid: tiles of the batch x tiles of n_out.
template <typename T>
__global__ void __launch_bounds__(256) masked_product(
    const T* x, const T* weight, const long long* reach, T* y,
    long long batch, long long n_in, long long n_out, long long n) {
    const long long row0 = (long long)blockIdx.x * TILE, column0 = (long long)blockIdx.y * TILE;
    T sums[4][4] = {};
    add_tile_product<true, false>(
        sums, 0, reach_of_tile(reach, n, column0, n_out),
        [&](int row, long long k) { return row0 + row < batch ? x[(row0 + row) * n_in + k] : T(0); },
        [&](long long k, int column) {
            return column0 + column < n_out ? weight[k * n_out + column0 + column] : T(0);
        });
    for_each_result(sums, batch - row0, n_out - column0, [&](int row, int column, T sum) {
        y[(row0 + row) * n_out + column0 + column] = sum;
    });
}

// dx = da weight^T. Grid: tiles of the batch x tiles of n_in.
template <typename T>
__global__ void __launch_bounds__(256) masked_product_dx(
    const T* da, const T* weight, const long long* reach, T* dx,
    long long batch, long long n_in, long long n_out, long long n) {
    const long long row0 = (long long)blockIdx.x * TILE, column0 = (long long)blockIdx.y * TILE;
    long long first = 0;  // the first column of each part that sees a row of this tile
    for (long long end = n; first < end;) {
        const long long middle = (first + end) / 2;
        if (reach[middle] > column0)
            end = middle;
        else
            first = middle + 1;
    }
    T sums[4][4] = {};
    for (long long part = 0; part < n_out; part += n)
        add_tile_product<true, true>(
            sums, part + first, part + n,
            [&](int row, long long k) {
                return row0 + row < batch ? da[(row0 + row) * n_out + k] : T(0);
            },
            [&](long long k, int column) {
                return column0 + column < n_in ? weight[(column0 + column) * n_out + k] : T(0);
            });
    for_each_result(sums, batch - row0, n_in - column0, [&](int row, int column, T sum) {
        dx[(row0 + row) * n_in + column0 + column] = sum;
    });
}

// dweight += x^T da inside the mask. Grid: tiles of n_in x tiles of n_out.
template <typename T>
__global__ void __launch_bounds__(256) masked_product_dweight(
    const T* x, const T* da, const long long* reach, T* dweight,
    long long batch, long long n_in, long long n_out, long long n) {
    const long long row0 = (long long)blockIdx.x * TILE, column0 = (long long)blockIdx.y * TILE;
    if (row0 >= reach_of_tile(reach, n, column0, n_out)) return;
    T sums[4][4] = {};
    add_tile_product<false, false>(
        sums, 0, batch,
        [&](int row, long long k) { return row0 + row < n_in ? x[k * n_in + row0 + row] : T(0); },
        [&](long long k, int column) {
            return column0 + column < n_out ? da[k * n_out + column0 + column] : T(0);
        });
    for_each_result(sums, n_in - row0, n_out - column0, [&](int row, int column, T sum) {
        if (row0 + row < reach[(column0 + column) % n])
            dweight[(row0 + row) * n_out + column0 + column] += sum;
    });
}
