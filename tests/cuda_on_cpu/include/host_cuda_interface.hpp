// What a module of kernels and the runtime that launches them (host_cuda_runtime.cpp) know of each other.
#pragma once
#include <cstddef>
#include <cstdint>

namespace host_cuda {

constexpr unsigned LANES = 32;

struct Index { unsigned x, y, z; };

enum Order : int { forward, reverse, shuffled, warps };

struct Launch {  // mirrored by launch.py
  unsigned grid[3], block[3];
  uint64_t dynamic_shared_bytes, seed;
  int order, strict;
};

// `__shared__` variables are thread_local, so that they all lie in the module's TLS block and can be wiped together.
struct StaticShared { size_t before_anchor, bytes; };

struct Module {
  void (*run_threads)(void** parameters);  // runs threads of the schedule until none is left
  void (*enter_block)(Index index);        // sets blockIdx
  void (*enter_thread)(Index index);       // sets threadIdx
  const void* image;                       // where the module is loaded
  char* shared_anchor;                     // some byte of its TLS block, of the thread that launches
  StaticShared* shared;                    // zero until the runtime has measured it
};

// Runs the kernel; null, or what went wrong.
const char* run_grid(const Launch&, const Module&, void** parameters);

// For the kernel that runs:
const Index* next_thread();  // takes a thread from the schedule; null if none is left
unsigned lane();             // of the thread that runs
unsigned existing_lanes();   // of its warp, as a mask
void* dynamic_shared();

struct Votes { bool any, all; int count; };
Votes barrier(int predicate, int site, int line);
// Waits for all lanes of the mask, each bringing 8 bytes; returns what the lanes brought.
const uint64_t* meet(unsigned mask, uint64_t value, int site, int line);
// Ends the launch; the stack that it stands on is simply abandoned.
[[noreturn]] void fail(const char* what, int a = 0, int b = 0);

}  // namespace host_cuda
