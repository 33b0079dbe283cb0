// Several arrays as one argument of a kernel: ARRAYS and INDEX_ARRAYS of gpu/launch.py.
template <typename T>
struct Arrays {
    T* at[16];
};
