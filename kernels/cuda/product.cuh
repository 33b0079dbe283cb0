// A layer y = act(x W + b) in one launch each way, by tiles; formulas in reference/linear.py and
// reference/masked_linear.py. x, dx (batch, n_in); y, dy (batch, n_out); weight, dweight
// (n_in, n_out); bias, dbias (n_out,).
//
// A mask says which entries of weight are zero, so that a tile leaves out what it need not read:
//     mask.n            the columns of a part; weight is parts of equal masks, side by side
//     mask.rows(j)      of column j of a part, the rows before this one are not zero
//     mask.first(row)   the first column of a part that is not zero in this row
// rows(j) must not fall with j.

#include "activation.cuh"
#include "tile.cuh"

struct Dense {
    long long n_in, n;
    __device__ long long rows(long long) const { return n_in; }
    __device__ long long first(long long) const { return 0; }
};

// The rows of weight that any column of the tile from `column0` on sees.
template <typename Mask>
__device__ long long rows_of_tile(const Mask& mask, long long column0, long long n_out) {
    const long long last = (column0 + TILE < n_out ? column0 + TILE : n_out) - 1;
    return mask.rows(column0 / mask.n == last / mask.n ? last % mask.n : mask.n - 1);
}

// y = act(x W + b). Grid: tiles of the batch x tiles of n_out.
template <typename T, typename Mask>
__device__ void forward_tile(
    const T* x, const T* weight, const T* bias, T* y, int activation, T leaky_slope,
    long long batch, long long n_in, long long n_out, const Mask& mask) {
    const long long row0 = (long long)blockIdx.x * TILE, column0 = (long long)blockIdx.y * TILE;
    T sums[4][4] = {};
    add_tile_product<true, false>(
        sums, 0, rows_of_tile(mask, column0, n_out),
        [&](int row, long long k) { return row0 + row < batch ? x[(row0 + row) * n_in + k] : T(0); },
        [&](long long k, int column) {
            return column0 + column < n_out ? weight[k * n_out + column0 + column] : T(0);
        });
    for_each_result(sums, batch - row0, n_out - column0, [&](int row, int column, T sum) {
        const long long j = column0 + column;
        y[(row0 + row) * n_out + j] = activate(sum + bias[j], activation, leaky_slope);
    });
}

// dx, dweight += and dbias +=, from da = dy act'(y). Grid: tiles of dweight, then tiles of dx, then
// 32 columns of dbias a block: see per_tile_backward of gpu/launch.py.
template <typename T, typename Mask>
__device__ void backward_tile(
    const T* dy, const T* x, const T* y, const T* weight, T* dx, T* dweight, T* dbias,
    int activation, T leaky_slope, long long batch, long long n_in, long long n_out,
    const Mask& mask) {
    const long long tiles_batch = (batch + TILE - 1) / TILE, tiles_in = (n_in + TILE - 1) / TILE;
    const long long tiles_out = (n_out + TILE - 1) / TILE;
    const auto da = [&](long long row, long long column) {
        const long long i = row * n_out + column;
        return dy[i] * activation_derivative(y[i], activation, leaky_slope);
    };
    T sums[4][4] = {};
    long long block = blockIdx.x;
    if (block < tiles_in * tiles_out) {  // dweight += x^T da inside the mask
        const long long row0 = block / tiles_out * TILE, column0 = block % tiles_out * TILE;
        if (row0 >= rows_of_tile(mask, column0, n_out)) return;
        add_tile_product<false, false>(
            sums, 0, batch,
            [&](int row, long long k) { return row0 + row < n_in ? x[k * n_in + row0 + row] : T(0); },
            [&](long long k, int column) {
                return column0 + column < n_out ? da(k, column0 + column) : T(0);
            });
        for_each_result(sums, n_in - row0, n_out - column0, [&](int row, int column, T sum) {
            const long long j = column0 + column;
            if (row0 + row < mask.rows(j % mask.n)) dweight[(row0 + row) * n_out + j] += sum;
        });
        return;
    }
    block -= tiles_in * tiles_out;
    if (block < tiles_batch * tiles_in) {  // dx = da weight^T
        const long long row0 = block / tiles_in * TILE, column0 = block % tiles_in * TILE;
        const long long first = mask.first(column0);
        for (long long part = 0; part < n_out; part += mask.n)
            add_tile_product<true, true>(
                sums, part + first, part + mask.n,
                [&](int row, long long k) { return row0 + row < batch ? da(row0 + row, k) : T(0); },
                [&](long long k, int column) {
                    return column0 + column < n_in ? weight[(column0 + column) * n_out + k] : T(0);
                });
        for_each_result(sums, batch - row0, n_in - column0, [&](int row, int column, T sum) {
            dx[(row0 + row) * n_in + column0 + column] = sum;
        });
        return;
    }
    block -= tiles_batch * tiles_in;  // dbias += column sums of da: a warp adds up every 8th row
    __shared__ double parts[8][32];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const long long j = block * 32 + lane;
    double sum = 0;
    if (j < n_out)
        for (long long row = warp; row < batch; row += 8) sum += da(row, j);
    parts[warp][lane] = sum;
    __syncthreads();
    if (warp == 0 && j < n_out) {
        for (int w = 1; w < 8; ++w) sum += parts[w][lane];
        dbias[j] += T(sum);
    }
}
