// A linear layer whose weight is masked by a staircase; formulas in reference/masked_linear.py.
// reach (n,) with n_out a multiple of n: column p n + j of weight is zero from row reach[j] on. Each
// tile finds on the device how far the staircase lets it reach.

#include "product.cuh"

struct Staircase {
    const long long* reach;
    long long n;
    __device__ long long rows(long long j) const { return reach[j]; }
    __device__ long long first(long long row) const {
        long long begin = 0;
        for (long long end = n; begin < end;) {
            const long long middle = (begin + end) / 2;
            if (reach[middle] > row)
                end = middle;
            else
                begin = middle + 1;
        }
        return begin;
    }
};

template <typename T>
__global__ void __launch_bounds__(256) masked_linear_forward(
    const T* x, const T* weight, const T* bias, const long long* reach, T* y, int activation,
    T leaky_slope, long long batch, long long n_in, long long n_out, long long n) {
    forward_tile(
        x, weight, bias, y, activation, leaky_slope, batch, n_in, n_out, Staircase{reach, n});
}

template <typename T>
__global__ void __launch_bounds__(256) masked_linear_backward(
    const T* dy, const T* x, const T* y, const T* weight, const long long* reach, T* dx, T* dweight,
    T* dbias, int activation, T leaky_slope, long long batch, long long n_in, long long n_out,
    long long n) {
    backward_tile(
        dy, x, y, weight, dx, dweight, dbias, activation, leaky_slope, batch, n_in, n_out,
        Staircase{reach, n});
}
