// The inverse and log|det| of a small matrix, in double; see reference/inverse_matrix.py.

// The larger of two numbers; NaN if one is.
__device__ inline double larger(double a, double b) { return a >= b || a != a ? a : b; }

// The largest sum of a column's absolute values in a (n, n), by a block of 512 threads. The result
// is in every thread. A barrier must lie between two calls.
__device__ double matrix_norm(const double* a, long long n) {
    __shared__ double norms[512];
    double norm = 0;
    for (long long j = threadIdx.x; j < n; j += 512) {
        double sum = 0;
        for (long long i = 0; i < n; ++i) sum += fabs(a[i * n + j]);
        norm = larger(norm, sum);
    }
    norms[threadIdx.x] = norm;
    __syncthreads();
    for (int half = 256; half > 0; half /= 2) {
        if (threadIdx.x < half)
            norms[threadIdx.x] = larger(norms[threadIdx.x], norms[threadIdx.x + half]);
        __syncthreads();
    }
    return norms[0];
}

// The first row from k on whose element in column k is the largest, found by the first warp. The
// result is in every thread.
__device__ long long find_pivot(const double* a, long long k, long long n) {
    __shared__ long long pivot;
    if (threadIdx.x < 32) {
        double best = -1;
        long long row = k;
        for (long long i = k + threadIdx.x; i < n; i += 32)
            if (fabs(a[i * n + k]) > best) best = fabs(a[i * n + k]), row = i;
        for (int offset = 16; offset > 0; offset /= 2) {
            const double other = __shfl_down_sync(0xffffffff, best, offset);
            const long long other_row = __shfl_down_sync(0xffffffff, row, offset);
            if (other > best || (other == best && other_row < row)) best = other, row = other_row;
        }
        if (threadIdx.x == 0) pivot = row;
    }
    __syncthreads();
    return pivot;
}

// One block of 512 threads; a and x (n, n) are memory to work in: a gets the LU factors of weight,
// rows exchanged, and x its inverse.
template <typename T>
__global__ void update_inverse(
    const T* weight, T* factored, T* inverse, T* log_det, long long* count, double* a, double* x,
    double epsilon, long long n) {
    const long long me = threadIdx.x, size = n * n;
    bool changed = false;
    for (long long e = me; e < size; e += 512) changed |= !(weight[e] == factored[e]);
    if (!__syncthreads_or(changed)) return;
    for (long long e = me; e < size; e += 512) {
        factored[e] = weight[e];
        a[e] = weight[e];
        x[e] = e / n == e % n;
    }
    __syncthreads();
    const double norm = matrix_norm(a, n);
    for (long long k = 0; k < n; ++k) {  // x = L^-1 P
        const long long pivot = find_pivot(a, k, n);
        if (pivot != k) {
            for (long long e = me; e < 2 * n; e += 512) {
                double* column = (e < n ? a : x) + e % n;
                const double above = column[k * n];
                column[k * n] = column[pivot * n];
                column[pivot * n] = above;
            }
        }
        __syncthreads();
        const long long below = n - k - 1, width = below + n;
        for (long long e = me; e < below * width; e += 512) {
            const long long i = k + 1 + e / width, j = e % width;
            const double factor = a[i * n + k] / a[k * n + k];
            if (j < below)
                a[i * n + k + 1 + j] -= factor * a[k * n + k + 1 + j];
            else
                x[i * n + j - below] -= factor * x[k * n + j - below];
        }
        __syncthreads();
    }
    for (long long k = n - 1; k >= 0; --k) {  // x = U^-1 x
        for (long long j = me; j < n; j += 512) x[k * n + j] /= a[k * n + k];
        __syncthreads();
        for (long long e = me; e < k * n; e += 512) x[e] -= a[e / n * n + k] * x[k * n + e % n];
        __syncthreads();
    }
    const bool regular = norm * matrix_norm(x, n) <= 1 / epsilon;  // not if one is NaN
    for (long long e = me; e < size; e += 512) inverse[e] = regular ? T(x[e]) : T(nan(""));
    if (me > 0) return;
    double sum = 0;
    for (long long k = 0; k < n; ++k) sum += log(fabs(a[k * n + k]));
    *log_det = regular ? T(sum) : T(nan(""));
    ++*count;
}
