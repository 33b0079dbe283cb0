// The activations of reference/linear.py. The codes follow ACTIVATIONS in gpu/linear.py.

enum { IDENTITY, RELU, LEAKY_RELU, TANH, ELU };

// act(a)
template <typename T>
__device__ T activate(T a, int activation, T leaky_slope) {
    switch (activation) {
        case RELU: return a < 0 ? T(0) : a;  // keeps a NaN
        case LEAKY_RELU: return a > 0 ? a : leaky_slope * a;
        case TANH: return tanh(a);
        case ELU: return a > 0 ? a : expm1(a);
    }
    return a;
}

// act'(a) from y = act(a)
template <typename T>
__device__ T activation_derivative(T y, int activation, T leaky_slope) {
    switch (activation) {
        case RELU: return y > 0 ? T(1) : T(0);
        case LEAKY_RELU: return y > 0 ? T(1) : leaky_slope;
        case TANH: return (1 - y) * (1 + y);  // exact near 1
        case ELU: return y > 0 ? T(1) : y + 1;
    }
    return T(1);
}
