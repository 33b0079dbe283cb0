// The rational-quadratic spline of one number; formulas in reference/rational_quadratic.py.
// params[p * stride], p < 3 bins - 1: raw widths, raw heights, raw derivatives. No array of the bins
// is kept: their exponentials are computed anew in each pass over them.

#define RQ_MINIMUM 1e-3
#define RQ_SHIFT 0.539742417236952  // log(exp(1 - minimum) - 1): a raw derivative of 0 means 1

template <typename T>
__device__ T rq_clip(T x, T low, T high) {
    return x < low ? low : x > high ? high : x;
}

// softmax(raw): that of raw[k * stride] is exp(raw - largest) / total.
template <typename T>
struct RqSoftmax {
    const T* raw;
    long long stride;
    T largest, total;

    __device__ RqSoftmax(const T* raw, long long stride, int bins)
        : raw(raw), stride(stride), largest(raw[0]), total(0) {
        for (int k = 1; k < bins; ++k) {
            const T r = raw[k * stride];
            largest = r > largest ? r : largest;
        }
        for (int k = 0; k < bins; ++k) total += exp_at(k);
    }
    __device__ T exp_at(int k) const { return exp(raw[k * stride] - largest); }
};

template <typename T>
__device__ T rq_derivative(T raw) {
    const T t = raw + T(RQ_SHIFT);
    return T(RQ_MINIMUM) + (t > 0 ? t : T(0)) + log1p(exp(-fabs(t)));
}

template <typename T>
__device__ T rq_sigmoid(T t) {
    const T e = exp(-fabs(t));
    return (t >= 0 ? T(1) : e) / (1 + e);
}

// The bin that value, an x or a z, lies in once it is moved into the box.
template <typename T>
struct RqBin {
    RqSoftmax<T> widths, heights;
    T minimum, rest;  // a bin is minimum + rest * softmax wide or high
    T value;
    int index;
    T exp_width, exp_height, before_width, before_height;  // its own; sums of those before it
    T x0, y0, width, height, raw0, raw1, d0, d1, s;

    template <bool OF_X>
    static __device__ RqBin find(
        T given, const T* params, long long stride, int bins, T bound) {
        RqBin b{RqSoftmax<T>(params, stride, bins),
                RqSoftmax<T>(params + bins * stride, stride, bins)};
        b.minimum = 2 * bound * T(RQ_MINIMUM);
        b.rest = 2 * bound * (1 - bins * T(RQ_MINIMUM));
        b.value = rq_clip(given, -bound, bound);
        const T per_width = b.rest / b.widths.total, per_height = b.rest / b.heights.total;
        T sum_width = 0, sum_height = 0;
        for (int k = 0; k < bins; ++k) {
            const T exp_width = b.widths.exp_at(k), exp_height = b.heights.exp_at(k);
            const T x0 = k * b.minimum - bound + per_width * sum_width;
            const T y0 = k * b.minimum - bound + per_height * sum_height;
            if (k == 0 || b.value >= (OF_X ? x0 : y0)) {
                b.index = k;
                b.x0 = x0, b.exp_width = exp_width, b.before_width = sum_width;
                b.y0 = y0, b.exp_height = exp_height, b.before_height = sum_height;
            }
            sum_width += exp_width, sum_height += exp_height;
        }
        b.width = b.minimum + per_width * b.exp_width;
        b.height = b.minimum + per_height * b.exp_height;
        const T* raw = params + (2 * bins + b.index) * stride;
        b.raw0 = b.index > 0 ? raw[-stride] : T(0);
        b.raw1 = b.index + 1 < bins ? raw[0] : T(0);
        b.d0 = rq_derivative(b.raw0), b.d1 = rq_derivative(b.raw1);
        b.s = b.height / b.width;
        return b;
    }

    __device__ T xi_of_x() const { return rq_clip((value - x0) / width, T(0), T(1)); }

    __device__ T xi_of_z() const {
        const T q = rq_clip((value - y0) / height, T(0), T(1)), size = s + d0 + d1;
        const T t = 2 * s / size, e = d0 / size * (1 - q) - d1 / size * q;
        const T g = fabs(e) + sqrt(e * e + t * t * q * (1 - q));
        const T small = e >= 0 ? t * q : g;
        return small / (small + (e >= 0 ? g : t * (1 - q)));
    }
};

// q, z'(x) = s^2 p / denominator^2 at a point of a bin.
template <typename T>
struct RqPoint {
    T xi, eta, denominator, p, q, slope;

    __device__ RqPoint(const RqBin<T>& b, T xi) : xi(xi), eta(1 - xi) {
        denominator = b.s * (xi * xi + eta * eta) + (b.d0 + b.d1) * xi * eta;
        p = b.d1 * xi * xi + 2 * b.s * xi * eta + b.d0 * eta * eta;
        q = xi * (b.s * xi + b.d0 * eta) / denominator;
        const T ratio = b.s / denominator;
        slope = ratio * (p * ratio);
    }
};

// z, and log z'(x).
template <typename T>
__device__ T rq_forward(
    T x, const T* params, long long stride, int bins, T bound, T* log_slope) {
    *log_slope = 0;
    if (!(fabs(x) < bound)) return x;
    const RqBin<T> b = RqBin<T>::template find<true>(x, params, stride, bins, bound);
    const RqPoint<T> at(b, b.xi_of_x());
    *log_slope = log(at.slope);
    return b.y0 + b.height * at.q;
}

// x, and log z'(x) there.
template <typename T>
__device__ T rq_inverse(
    T z, const T* params, long long stride, int bins, T bound, T* log_slope) {
    *log_slope = 0;
    if (!(fabs(z) < bound)) return z;
    const RqBin<T> b = RqBin<T>::template find<false>(z, params, stride, bins, bound);
    const T xi = b.xi_of_z();
    *log_slope = log(RqPoint<T>(b, xi).slope);
    return b.x0 + b.width * xi;
}

template <typename T>
__device__ T rq_inverse(T z, const T* params, long long stride, int bins, T bound) {
    T log_slope;
    return rq_inverse(z, params, stride, bins, bound, &log_slope);
}

// One half of draw, of widths or heights: the edge of the bin moves with all bins before it.
template <typename T>
__device__ void rq_sizes_backward(
    const RqSoftmax<T>& softmax, int bins, int index, T exp_index, T before, T rest, T dedge,
    T dsize, T* draw, long long dstride) {
    const T mean = (before * dedge + exp_index * dsize) / softmax.total;
    for (int k = 0; k < bins; ++k) {
        const T d = k < index ? dedge : k == index ? dsize : T(0);
        draw[k * dstride] = rest * softmax.exp_at(k) / softmax.total * (d - mean);
    }
}

// Gradient of rq_forward (INVERSE false, given = dz) or rq_inverse (true, given = dx) at x, written
// to dparams[p * dstride]. Returns dx or dz.
template <bool INVERSE, typename T>
__device__ T rq_backward(
    T given, T dlog_det, T x, const T* params, long long stride, int bins, T bound, T* dparams,
    long long dstride) {
    if (!(fabs(x) < bound)) {
        for (int p = 0; p < 3 * bins - 1; ++p) dparams[p * dstride] = 0;
        return given;
    }
    const RqBin<T> b = RqBin<T>::template find<true>(x, params, stride, bins, bound);
    const RqPoint<T> at(b, b.xi_of_x());
    const T xi = at.xi, eta = at.eta, d0 = b.d0, d1 = b.d1, s = b.s;
    const T curvature = 2 / b.width * (((d1 - s) * xi + (s - d0) * eta) / at.p
                                       - (d0 + d1 - 2 * s) * (eta - xi) / at.denominator);
    T dz = INVERSE ? (given - dlog_det * curvature) / at.slope : given;
    T dx = INVERSE ? given : given * at.slope + dlog_det * curvature;
    const T out = INVERSE ? dz : dx;
    if (INVERSE) dz = -dz, dx = -dx, dlog_det = -dlog_det;

    const T mix = xi * eta / at.denominator, dh = dz * b.height * mix;
    const T ds = dh * ((d1 * xi * xi - d0 * eta * eta) / at.denominator)
        + 2 * dlog_det * (1 / s + xi * eta / at.p - (xi * xi + eta * eta) / at.denominator);
    const T dd0 = dh * (1 - at.q) + dlog_det * (eta * eta / at.p - 2 * mix);
    const T dd1 = dlog_det * (xi * xi / at.p - 2 * mix) - dh * at.q;
    const T dwidth = -(dx * xi + ds * s / b.width), dheight = dz * at.q + ds / b.width;
    rq_sizes_backward(b.widths, bins, b.index, b.exp_width, b.before_width, b.rest, -dx, dwidth,
                      dparams, dstride);
    rq_sizes_backward(b.heights, bins, b.index, b.exp_height, b.before_height, b.rest, dz, dheight,
                      dparams + bins * dstride, dstride);
    T* draw = dparams + 2 * bins * dstride;
    for (int k = 0; k < bins - 1; ++k) draw[k * dstride] = 0;
    if (b.index + 1 < bins) draw[b.index * dstride] = dd1 * rq_sigmoid(b.raw1 + T(RQ_SHIFT));
    if (b.index > 0) draw[(b.index - 1) * dstride] = dd0 * rq_sigmoid(b.raw0 + T(RQ_SHIFT));
    return out;
}

template <typename T>
__device__ void rq_inverse_backward(
    T dx, T dlog_det, T x, const T* params, long long stride, int bins, T bound, T* dparams,
    long long dstride) {
    rq_backward<true>(dx, dlog_det, x, params, stride, bins, bound, dparams, dstride);
}
