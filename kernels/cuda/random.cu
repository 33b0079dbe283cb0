// Random numbers: Philox4x32-10 (Salmon et al. 2011) and Box-Muller.
// The formulas are those of kernels/reference/random.py. One thread makes whole blocks of four words:
// four float or two double numbers. `out` holds `blocks` full blocks; the caller cuts the last one.

struct Words {
    unsigned int w[4];
};

__device__ inline Words philox4x32(unsigned long long block, unsigned int key0, unsigned int key1,
                                   unsigned int stream, unsigned int step) {
    unsigned int c0 = (unsigned int)block, c1 = (unsigned int)(block >> 32), c2 = step, c3 = stream;
    for (int round = 0; round < 10; ++round) {
        const unsigned int high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const unsigned int high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// Conversions and products with powers of two are exact: the same bits on every device.
__device__ inline void to_unit(const Words& words, float (&u)[4]) {
    for (int j = 0; j < 4; ++j) u[j] = (float)(words.w[j] >> 8) * 0x1p-24f;
}
__device__ inline void to_unit(const Words& words, double (&u)[2]) {
    for (int j = 0; j < 2; ++j)
        u[j] = ((double)(words.w[2 * j] >> 5) * 0x1p26 + (double)(words.w[2 * j + 1] >> 6)) * 0x1p-53;
}

// sincospi takes its argument in half turns, so no rounding of 2 pi u enters.
__device__ inline void box_muller(float& a, float& b) {
    const float radius = sqrtf(-2.0f * logf(1.0f - a));
    float sine, cosine;
    sincospif(2.0f * b, &sine, &cosine);
    a = radius * cosine;
    b = radius * sine;
}
__device__ inline void box_muller(double& a, double& b) {
    const double radius = sqrt(-2.0 * log(1.0 - a));
    double sine, cosine;
    sincospi(2.0 * b, &sine, &cosine);
    a = radius * cosine;
    b = radius * sine;
}

template <typename T, bool NORMAL>
__device__ inline void draw(unsigned int key0, unsigned int key1, unsigned int stream,
                            unsigned int step, long long blocks, T* out) {
    constexpr int PER_BLOCK = 16 / sizeof(T);
    const long long stride = (long long)gridDim.x * blockDim.x;
    for (long long block = (long long)blockIdx.x * blockDim.x + threadIdx.x; block < blocks;
         block += stride) {
        T u[PER_BLOCK];
        to_unit(philox4x32(block, key0, key1, stream, step), u);
        if (NORMAL)
            for (int j = 0; j < PER_BLOCK; j += 2) box_muller(u[j], u[j + 1]);
        for (int j = 0; j < PER_BLOCK; ++j) out[block * PER_BLOCK + j] = u[j];
    }
}

template <typename T>
__global__ void uniform(unsigned int key0, unsigned int key1, unsigned int stream,
                        unsigned int step, long long blocks, T* out) {
    draw<T, false>(key0, key1, stream, step, blocks, out);
}

template <typename T>
__global__ void normal(unsigned int key0, unsigned int key1, unsigned int stream,
                       unsigned int step, long long blocks, T* out) {
    draw<T, true>(key0, key1, stream, step, blocks, out);
}
