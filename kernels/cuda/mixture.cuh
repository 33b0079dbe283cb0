// Sampling from a mixture of Gaussians, one thread a feature; formula in reference/mixture.py.
// Parameter p of the feature is params[p * stride]: logits, means, log-scales of `components` each.

template <typename T>
__device__ T larger(T a, T b) {
    return a > b ? a : b;
}

// A draw: mean + sigma normal of the first component whose cumulated weight exceeds the uniform.
template <typename T>
__device__ T mixture_sample(
    T normal, T uniform, const T* params, long long stride, int components) {
    T highest = params[0];
    for (int k = 1; k < components; ++k) highest = larger(params[k * stride], highest);
    T total = 0;
    for (int k = 0; k < components; ++k) total += exp(params[k * stride] - highest);
    T cumulated = 0;
    int component = -1;
    while (++component < components - 1) {
        cumulated += exp(params[component * stride] - highest);
        if (cumulated > uniform * total) break;
    }
    const T mean = params[(components + component) * stride];
    const T log_scale = params[(2 * components + component) * stride];
    return mean + exp(log_scale) * normal;
}
