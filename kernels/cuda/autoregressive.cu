// The inverse of an autoregressive network in one pass, and its gradient; formulas in
// reference/autoregressive.py.
//
// The network is a row of nodes: 0 the features x, 1 .. L the hidden layers, L + 1 the params.
// Weight l leads from node l to node l + 1, `direct` from node 0 to node L + 1. ends.at[node][i] is
// the number of the node's units that are final before feature i is computed, i + 1 itself for
// the features and the params: step i makes the units [start(ends, i), ends[i]). The nodes'
// arrays hold sums of what has arrived so far, from the bias on.
//
// A panel of features [first, last) is solved by one launch, a block a row of the batch: as soon
// as units are final they are pushed on to what depends on them within the panel. Another launch
// for each weight then pushes all of the panel's units on to the later panels, as a product of
// tiles. Sums are added in the order of the steps: the digits do not depend on the grid.

#include "activation.cuh"
#include "arrays.cuh"
#include "mixture.cuh"
#include "rational_quadratic.cuh"
#include "tile.cuh"

// The order of MAPS in gpu/autoregressive.py.
enum { ADDITIVE, AFFINE, RATIONAL_QUADRATIC, BERNOULLI, MIXTURE };

// The first of the node's units that step i makes.
__device__ inline long long start(const long long* ends, long long i) {
    return i > 0 ? ends[i - 1] : 0;
}

// x_i from z_i; parameter p is params[p * d], number q of z is z[q * d].
template <typename T>
__device__ T map_inverse(
    int map, const T* z, const T* params, const T* constant, long long d, int parts) {
    switch (map) {
        case ADDITIVE: return z[0] - params[0];
        case AFFINE: return (z[0] - params[0]) * exp(-constant[0] * tanh(params[d]));
        case RATIONAL_QUADRATIC: return rq_inverse(z[0], params, d, (parts + 1) / 3, constant[0]);
        case BERNOULLI: return z[0] < params[0] ? T(1) : T(0);
        case MIXTURE: return mixture_sample(z[0], z[d], params, d, parts / 3);
    }
    return z[0];
}

// dparams_i of the inverse from the whole dx_i.
template <typename T>
__device__ void map_inverse_backward(
    int map, T dx, T dlog_det, T x, const T* params, const T* constant, T* dparams, long long d,
    int parts) {
    switch (map) {
        case ADDITIVE: dparams[0] = -dx; break;
        case AFFINE: {
            const T bound = constant[0], t = tanh(params[d]);
            dparams[0] = -dx * exp(-bound * t);
            dparams[d] = (-dx * x - dlog_det) * bound * (1 - t) * (1 + t);
            break;
        }
        case RATIONAL_QUADRATIC:
            rq_inverse_backward(dx, dlog_det, x, params, d, (parts + 1) / 3, constant[0], dparams, d);
            break;
    }
}

// to[p n + c] += sum of from[k] weight[k, p n + c] over k0 <= k < k1, for c0 <= c < c1 of each of the
// `parts` parts of n. A thread a column.
template <typename T>
__device__ void push_row(
    const T* from, long long k0, long long k1, const T* weight, T* to, int parts, long long n,
    long long c0, long long c1) {
    const int width = c1 - c0;
    for (int e = threadIdx.x; e < parts * width; e += blockDim.x) {
        const long long column = e / width * n + c0 + e % width;
        T sum = to[column];
        for (long long k = k0; k < k1; ++k) sum += from[k] * weight[k * parts * n + column];
        to[column] = sum;
    }
}

// dto[r] += sum of dfrom[p n + k] weight[r, p n + k] over k0 <= k < k1 of each of the parts, for
// r0 <= r < r1. A thread a row of weight.
template <typename T>
__device__ void push_row_back(
    const T* dfrom, int parts, long long n, long long k0, long long k1, const T* weight, T* dto,
    long long r0, long long r1) {
    for (long long r = r0 + threadIdx.x; r < r1; r += blockDim.x) {
        T sum = dto[r];
        for (long long part = 0; part < parts * n; part += n)
            for (long long k = part + k0; k < part + k1; ++k)
                sum += dfrom[k] * weight[r * parts * n + k];
        dto[r] = sum;
    }
}

// x of the features [first, last), their params and the hidden units that these need. One block a
// row. nodes: x (batch, d), sums of the hidden layers (batch, H_l) and of params (batch, parts d).
template <typename T>
__global__ void invert_panel(
    const T* z, const __grid_constant__ Arrays<T> nodes, const __grid_constant__ Arrays<T> weights,
    const T* direct, const __grid_constant__ Arrays<long long> ends, const T* constants, int hidden,
    int has_direct, int activation, T leaky_slope, int map, int parts, int numbers,
    long long first, long long last, long long d) {
    const long long row = blockIdx.x;
    const int last_node = hidden + 1;
    T* x = nodes.at[0] + row * d;
    T* params = nodes.at[last_node] + row * parts * d;
    for (long long i = first; i < last; ++i) {
        for (int node = 1; node <= hidden; ++node) {
            const long long width = ends.at[node][d - 1], next_width = ends.at[node + 1][d - 1];
            const long long begin = start(ends.at[node], i), end = ends.at[node][i];
            T* h = nodes.at[node] + row * width;
            for (long long k = begin + threadIdx.x; k < end; k += blockDim.x)
                h[k] = activate(h[k], activation, leaky_slope);
            __syncthreads();
            const int next_parts = node == hidden ? parts : 1;
            push_row(
                h, begin, end, weights.at[node],
                nodes.at[node + 1] + row * next_parts * next_width, next_parts, next_width,
                start(ends.at[node + 1], i), ends.at[node + 1][last - 1]);
            __syncthreads();
        }
        if (threadIdx.x == 0)
            x[i] = map_inverse(
                map, z + row * numbers * d + i, params + i, constants + i, d, parts);
        __syncthreads();
        const int next_parts = hidden == 0 ? parts : 1;
        const long long next_width = ends.at[1][d - 1];
        push_row(
            x, i, i + 1, weights.at[0], nodes.at[1] + row * next_parts * next_width, next_parts,
            next_width, ends.at[1][i], ends.at[1][last - 1]);
        if (has_direct) push_row(x, i, i + 1, direct, params, parts, d, i + 1, last);
        __syncthreads();
    }
}

// What the panel's units of one node add to the later panels' units of another:
// to += from[:, panel] weight[panel, later]. Grid: tiles of the batch x tiles of n x parts.
template <typename T>
__global__ void __launch_bounds__(256) push(
    const T* from, const long long* from_ends, const T* weight, T* to, const long long* to_ends,
    long long first, long long last, long long batch, long long n_in, long long n) {
    const long long n_out = gridDim.z * n;
    const long long row0 = (long long)blockIdx.x * TILE;
    const long long later = to_ends[last - 1] + (long long)blockIdx.y * TILE, columns = n - later;
    if (columns <= 0) return;
    weight += blockIdx.z * n + later;
    to += blockIdx.z * n + later;
    T sums[4][4] = {};
    add_tile_product<true, false>(
        sums, start(from_ends, first), from_ends[last - 1],
        [&](int row, long long k) {
            return row0 + row < batch ? from[(row0 + row) * n_in + k] : T(0);
        },
        [&](long long k, int column) { return column < columns ? weight[k * n_out + column] : T(0); });
    for_each_result(sums, batch - row0, columns, [&](int row, int column, T sum) {
        to[(row0 + row) * n_out + column] += sum;
    });
}

// The way back through invert_panel, from feature last - 1 to first. nodes: the gradients dx, of the
// hidden layers (turned from dh into da) and dparams; outputs: the hidden layers' outputs.
template <typename T>
__global__ void invert_panel_backward(
    const T* dlog_det, const T* x, const __grid_constant__ Arrays<T> outputs, const T* params,
    const __grid_constant__ Arrays<T> nodes, const __grid_constant__ Arrays<T> weights,
    const T* direct, const __grid_constant__ Arrays<long long> ends, const T* constants, int hidden,
    int has_direct, int activation, T leaky_slope, int map, int parts,
    long long first, long long last, long long d) {
    const long long row = blockIdx.x;
    T* dx = nodes.at[0] + row * d;
    T* dparams = nodes.at[hidden + 1] + row * parts * d;
    params += row * parts * d;
    for (long long i = last - 1; i >= first; --i) {
        if (threadIdx.x == 0)
            map_inverse_backward(
                map, dx[i], dlog_det[row], x[row * d + i], params + i, constants + i, dparams + i,
                d, parts);
        __syncthreads();
        if (has_direct) push_row_back(dparams, parts, d, i, i + 1, direct, dx, first, i);
        for (int node = hidden + 1; node > 0; --node) {
            const long long width = ends.at[node][d - 1], lower_width = ends.at[node - 1][d - 1];
            const long long begin = start(ends.at[node], i), end = ends.at[node][i];
            const int node_parts = node == hidden + 1 ? parts : 1;
            T* da = nodes.at[node] + row * node_parts * width;
            if (node <= hidden) {
                const T* h = outputs.at[node - 1] + row * width;
                for (long long k = begin + threadIdx.x; k < end; k += blockDim.x)
                    da[k] *= activation_derivative(h[k], activation, leaky_slope);
                __syncthreads();
            }
            push_row_back(
                da, node_parts, width, begin, end, weights.at[node - 1],
                nodes.at[node - 1] + row * lower_width, start(ends.at[node - 1], first),
                node == 1 ? i : ends.at[node - 1][i]);
            __syncthreads();
        }
    }
}

// What the panel's units of one node give back to the earlier panels' units of another:
// dto += dfrom[:, panel] weight[earlier, panel]^T. Grid: tiles of the batch x tiles of n_to.
template <typename T>
__global__ void __launch_bounds__(256) push_back(
    const T* dfrom, const long long* from_ends, const T* weight, T* dto, const long long* to_ends,
    long long first, long long last, long long batch, long long n_to, long long n, int parts) {
    const long long n_from = parts * n;
    const long long row0 = (long long)blockIdx.x * TILE, column0 = (long long)blockIdx.y * TILE;
    const long long columns = start(to_ends, first) - column0;
    if (columns <= 0) return;
    T sums[4][4] = {};
    for (long long part = 0; part < n_from; part += n)
        add_tile_product<true, true>(
            sums, part + start(from_ends, first), part + from_ends[last - 1],
            [&](int row, long long k) {
                return row0 + row < batch ? dfrom[(row0 + row) * n_from + k] : T(0);
            },
            [&](long long k, int column) {
                return column < columns ? weight[(column0 + column) * n_from + k] : T(0);
            });
    for_each_result(sums, batch - row0, columns, [&](int row, int column, T sum) {
        dto[(row0 + row) * n_to + column0 + column] += sum;
    });
}
