// Included first by every source of kernels: CUDA C++ in terms of C++ and of the runtime's interface.
#pragma once
#include <math.h>

#include <cstdio>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "host_cuda_interface.hpp"
#include "host_cuda_language.hpp"

static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;
static const int warpSize = 32;

extern "C" const char __ehdr_start __attribute__((visibility("hidden")));  // where this module is loaded

namespace host_cuda {

static void enter_block(Index i) { blockIdx = {i.x, i.y, i.z}; }
static void enter_thread(Index i) { threadIdx = {i.x, i.y, i.z}; }
static thread_local char shared_anchor = 1;
static StaticShared static_shared;

template <auto kernel> struct Kernel;

template <class... A, void (*kernel)(A...)> struct Kernel<kernel> {
  template <size_t... I> static void call_in_schedule(void** p, std::index_sequence<I...>) {
    while (const Index* index = next_thread()) {
      enter_thread(*index);
      kernel(*(std::remove_cv_t<A>*)p[I]...);
    }
  }
  static void run_threads(void** p) { call_in_schedule(p, std::index_sequence_for<A...>()); }

  // A grid-stride loop that one thread of one block runs does in one go, and in the same order, what the whole grid
  // would do thread by thread; the compiler can vectorise it.
  template <size_t... I> __attribute__((flatten)) static void call_once(void** p, std::index_sequence<I...>) {
    threadIdx.x = threadIdx.y = threadIdx.z = blockIdx.x = blockIdx.y = blockIdx.z = 0;
    blockDim.x = blockDim.y = blockDim.z = gridDim.x = gridDim.y = gridDim.z = 1;
    kernel(*(std::remove_cv_t<A>*)p[I]...);
  }

  template <bool is_grid_stride> static const char* run(const Launch& launch, void** p) {
    if constexpr (is_grid_stride)
      if (launch.order == forward) return call_once(p, std::index_sequence_for<A...>()), nullptr;
    gridDim = {launch.grid[0], launch.grid[1], launch.grid[2]};
    blockDim = {launch.block[0], launch.block[1], launch.block[2]};
    Module module{run_threads, enter_block, enter_thread, &__ehdr_start, &shared_anchor, &static_shared};
    return run_grid(launch, module, p);
  }

  // One word for each parameter, e.g. "*f4 f4 i8 s16": f float, i signed, u unsigned, b bool, s struct, v void, * pointer.
  static const char* signature() {
    static char text[16 * (sizeof...(A) + 1)];
    char* end = text;
    (describe<std::remove_cv_t<A>>(end), ...);
    return text;
  }
  template <class T> static void describe(char*& end) {
    if constexpr (std::is_pointer_v<T>) {
      *end++ = '*';
      describe<std::remove_cv_t<std::remove_pointer_t<T>>>(end);
    } else if constexpr (std::is_void_v<T>) {
      end += sprintf(end, "v0 ");
    } else {
      char kind = std::is_floating_point_v<T> ? 'f' : std::is_same_v<T, bool> ? 'b' : !std::is_integral_v<T> ? 's' : std::is_signed_v<T> ? 'i' : 'u';
      end += sprintf(end, "%c%d ", kind, (int)sizeof(T));
    }
  }
};

// ---- barriers and warp primitives -------------------------------------------------------------------------------------

struct Site { int site, line; };

template <class T> T exchange(Site at, unsigned mask, T value, int source, bool inside) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  const uint64_t* values = meet(mask, bits, at.site, at.line);
  if (!inside) return value;
  if (!(mask >> (source % LANES) & 1)) fail("shuffle at line %d reads lane %d, which is not in its mask", at.line, source);
  memcpy(&value, &values[source % LANES], sizeof value);
  return value;
}
template <class T> T shuffle(Site at, unsigned mask, T value, int source, int width = 32) {
  return exchange(at, mask, value, (lane() & ~(width - 1)) | (source & (width - 1)), true);
}
template <class T> T shuffle_up(Site at, unsigned mask, T value, unsigned by, int width = 32) {
  return exchange(at, mask, value, lane() - by, (lane() & (width - 1)) >= by);
}
template <class T> T shuffle_down(Site at, unsigned mask, T value, unsigned by, int width = 32) {
  return exchange(at, mask, value, lane() + by, (lane() & (width - 1)) + by < (unsigned)width);
}
template <class T> T shuffle_xor(Site at, unsigned mask, T value, int by, int width = 32) {
  return exchange(at, mask, value, lane() ^ by, ((lane() ^ by) & ~(width - 1)) <= (lane() & ~(width - 1)));
}
inline unsigned ballot(Site at, unsigned mask, int predicate) {
  const uint64_t* values = meet(mask, predicate != 0, at.site, at.line);
  unsigned votes = 0;
  for (unsigned i = 0; i < LANES; i++) votes |= (mask >> i & 1 && values[i] == 1) << i;
  return votes;
}
inline void sync_warp(Site at, unsigned mask = 0xffffffff) { meet(mask, 0, at.site, at.line); }
}  // namespace host_cuda

#define HOST_CUDA_EXPORT extern "C" __attribute__((externally_visible))
#define HOST_CUDA_SITE host_cuda::Site{__COUNTER__, __LINE__}
#define __syncthreads() host_cuda::barrier(0, __COUNTER__, __LINE__)
#define __syncthreads_or(p) host_cuda::barrier((p), __COUNTER__, __LINE__).any
#define __syncthreads_and(p) host_cuda::barrier((p), __COUNTER__, __LINE__).all
#define __syncthreads_count(p) host_cuda::barrier((p), __COUNTER__, __LINE__).count
#define __syncwarp(...) host_cuda::sync_warp(HOST_CUDA_SITE __VA_OPT__(, ) __VA_ARGS__)
#define __shfl_sync(...) host_cuda::shuffle(HOST_CUDA_SITE, __VA_ARGS__)
#define __shfl_up_sync(...) host_cuda::shuffle_up(HOST_CUDA_SITE, __VA_ARGS__)
#define __shfl_down_sync(...) host_cuda::shuffle_down(HOST_CUDA_SITE, __VA_ARGS__)
#define __shfl_xor_sync(...) host_cuda::shuffle_xor(HOST_CUDA_SITE, __VA_ARGS__)
#define __ballot_sync(mask, p) host_cuda::ballot(HOST_CUDA_SITE, mask, p)
#define __any_sync(mask, p) (host_cuda::ballot(HOST_CUDA_SITE, mask, p) != 0)
#define __all_sync(mask, p) (host_cuda::ballot(HOST_CUDA_SITE, mask, !(p)) == 0)
#define __activemask() host_cuda::existing_lanes()

#include "host_cuda_functions.hpp"
