// How far a walk back strayed; see reference/drift.py. One block.

template <typename T>
__global__ void drift(const T* found, const T* probe, T* out, long long n) {
    __shared__ T worst[256];
    T largest = 0;
    for (long long i = threadIdx.x; i < n; i += blockDim.x) {
        const T error = fabs(found[i] - probe[i]) / (1 + fabs(probe[i]));
        if (error > largest || isnan(error)) largest = error;  // a NaN stays: none is above it
    }
    worst[threadIdx.x] = largest;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int t = 1; t < blockDim.x; ++t)
            if (worst[t] > largest || isnan(worst[t])) largest = worst[t];
        out[0] = largest;
    }
}
