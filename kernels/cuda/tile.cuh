// A 64 x 64 tile of a matrix product by a block of 256 threads, each with 4 x 4 of its results.
// The caller says which part of the sum is needed at all: zero blocks of a factor are not touched.
// One thread adds up one result in the order of k: the digits do not depend on the grid.

constexpr int TILE = 64, DEPTH = 16;

template <typename T>
struct alignas(4 * sizeof(T)) Four {  // one wide load from shared memory
    T at[4];
};

// sums[r][c] += sum of a(row, k) b(k, column) over k0 <= k < k1, for the rows 4 (thread / 16) + r and
// columns 4 (thread % 16) + c of the tile. a and b give 0 outside their matrices. A_BY_K, B_BY_K: k is
// the contiguous index there, so that neighbouring threads read neighbouring k.
template <bool A_BY_K, bool B_BY_K, typename T, typename A, typename B>
__device__ void add_tile_product(T (&sums)[4][4], long long k0, long long k1, A a, B b) {
    // One Four more than a tile: a column's elements are spread over the banks.
    __shared__ Four<T> a_tile[DEPTH][TILE / 4 + 1], b_tile[DEPTH][TILE / 4 + 1];
    const int rows = threadIdx.x / 16, columns = threadIdx.x % 16;
    for (long long k = k0; k < k1; k += DEPTH) {
        for (int e = threadIdx.x; e < TILE * DEPTH; e += 256) {
            const int row = A_BY_K ? e / DEPTH : e % TILE, step_a = A_BY_K ? e % DEPTH : e / TILE;
            const int column = B_BY_K ? e / DEPTH : e % TILE, step_b = B_BY_K ? e % DEPTH : e / TILE;
            a_tile[step_a][row / 4].at[row % 4] = k + step_a < k1 ? a(row, k + step_a) : T(0);
            b_tile[step_b][column / 4].at[column % 4] = k + step_b < k1 ? b(k + step_b, column) : T(0);
        }
        __syncthreads();
        for (int step = 0; step < DEPTH; ++step) {
            const Four<T> left = a_tile[step][rows], right = b_tile[step][columns];
            for (int r = 0; r < 4; ++r)
                for (int c = 0; c < 4; ++c) sums[r][c] += left.at[r] * right.at[c];
        }
        __syncthreads();
    }
}

// write(row, column, sum) for each result of this thread that lies inside the rows x columns which
// the matrix has left from the tile's corner on. Unrolled, or sums would go to local memory.
template <typename T, typename Write>
__device__ void for_each_result(
    const T (&sums)[4][4], long long rows, long long columns, Write write) {
#pragma unroll
    for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            const int row = 4 * (threadIdx.x / 16) + r, column = 4 * (threadIdx.x % 16) + c;
            if (row < rows && column < columns) write(row, column, sums[r][c]);
        }
}
