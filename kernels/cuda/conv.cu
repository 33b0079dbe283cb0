// From the pixels of an image to the k x k patches around them and back; see reference/conv.py.
// x (batch, h, w, c); patches (batch, h, w, k, k, c). One block a row of an image: rows = batch h.

// patches[b, i, j, u, v] = x[b, i + u - k/2, j + v - k/2], zero beyond the border. For one u they are
// k c numbers that lie side by side in x too.
template <typename T>
__global__ void take_patches(
    const T* x, T* patches, long long rows, int h, int w, int c, int k) {
    const int width = w * c, line = k * c, patch = k * line;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const int i = row % h;
        for (int n = threadIdx.x; n < w * patch; n += blockDim.x) {
            const int j = n / patch, u = n % patch / line, at = (j - k / 2) * c + n % line;
            const int above = u - k / 2;
            const bool inside = 0 <= at && at < width && 0 <= i + above && i + above < h;
            patches[row * w * patch + n] = inside ? x[(row + above) * width + at] : T(0);
        }
    }
}

// The adjoint: x[b, i, j] = sum over u, v of patches[b, i - u + k/2, j - v + k/2, u, v].
template <typename T>
__global__ void add_patches(
    const T* patches, T* x, long long rows, int h, int w, int c, int k) {
    const int width = w * c, line = k * c, patch = k * line;
    for (long long row = blockIdx.x; row < rows; row += gridDim.x) {
        const int i = row % h;
        for (int n = threadIdx.x; n < width; n += blockDim.x) {
            const int j = n / c, channel = n % c;
            // u and v of the patches that lie in the image
            const int u_start = max(0, i + k / 2 - h + 1), u_stop = min(k, i + k / 2 + 1);
            const int v_start = max(0, j + k / 2 - w + 1), v_stop = min(k, j + k / 2 + 1);
            T sum = 0;
            for (int u = u_start; u < u_stop; ++u) {
                for (int v = v_start; v < v_stop; ++v) {
                    const long long pixel = (row - u + k / 2) * w + j - v + k / 2;
                    sum += patches[pixel * patch + u * line + v * c + channel];
                }
            }
            x[row * width + n] = sum;
        }
    }
}
