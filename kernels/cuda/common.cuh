// Sums in a fixed order: the same digits in every run and on every GPU, with no float atomics.
//
// They add in double for both types: a log-likelihood sums thousands of terms, where float adds lose
// digits. The few double adds of a reduction hide behind its reads even where doubles are slow.

// Sum of value over the threads of a block of whole warps (one row, see per_row). The result is in
// every thread.
__device__ inline double block_sum(double value) {
    __shared__ double warp_sums[32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    for (int offset = 16; offset > 0; offset /= 2)
        value += __shfl_down_sync(0xffffffff, value, offset);
    __syncthreads();  // warp_sums may still be read by the previous call
    if (lane == 0) warp_sums[warp] = value;
    __syncthreads();
    double total = 0;
    for (int w = 0; w < warps; ++w) total += warp_sums[w];
    return total;
}

// Sum of value over threadIdx.y, for each threadIdx.x (one column, see per_column). The result is in
// every thread. blockDim.y is a power of two.
__device__ inline double column_sum(double value) {
    __shared__ double sums[512];
    const int me = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();  // sums may still be read by the previous call
    sums[me] = value;
    __syncthreads();
    for (int half = blockDim.y / 2; half > 0; half /= 2) {
        if (threadIdx.y < half) sums[me] += sums[me + half * blockDim.x];
        __syncthreads();
    }
    return sums[threadIdx.x];
}
