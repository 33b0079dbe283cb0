// Runs CUDA C++ kernels on the host, deterministically, one CUDA thread at a time.
//
// A launch runs its blocks one after another. Inside a block, a *worker* (a small stack of its own) takes threads from
// the block's schedule and runs each to its end. A thread that reaches a barrier or a warp primitive parks together
// with its worker, and a new worker goes on with the schedule. So a kernel that never waits runs as one plain loop, and
// only waiting threads cost a stack switch. Switches happen nowhere else, which makes every run repeatable.
//
// Compiled once; the modules of kernels are linked to it. Only one launch runs at a time.
#include "host_cuda_interface.hpp"

#include <link.h>

#include <cstdio>
#include <cstring>
#include <utility>

namespace host_cuda {

constexpr unsigned MAX_THREADS = 1024;
constexpr size_t STACK_BYTES = 64 << 10, MAX_DYNAMIC_SHARED = 227 << 10, SHARED_GUARD = 64;
constexpr uint64_t CANARY = 0x5afe57ac5afe57ac;
constexpr int UNSET = 0xFF;  // all-ones bytes are a NaN in every floating type

enum class State { finished, ready, at_barrier, at_warp };

struct Thread {
  void* stack_pointer;
  Index index;
  State state;
};
struct Visit {  // of a lane to a warp primitive
  int site;
  unsigned mask;
  uint64_t value;
};
struct Barrier {
  unsigned waiting;  // threads that have arrived
  int site, line, votes;
};

static Thread threads[MAX_THREADS];
static unsigned short schedule[MAX_THREADS];
static unsigned thread_count, next_in_schedule, running, parked_count, waiting_lanes;
static Index running_block;
static Visit visits[MAX_THREADS];
static uint64_t warp_values[MAX_THREADS / LANES][LANES];
static Barrier barrier_now;
static Votes last_votes;  // of the barrier that was opened last
static bool strict_mode, one_warp_ahead;
static char error[400];
static void* scheduler_stack;
static Module module;
static void** parameters;
alignas(128) static char dynamic_shared_memory[MAX_DYNAMIC_SHARED + SHARED_GUARD];
// Pages cost nothing until used. One more below the first stack: overflowing that one is reported, no crash.
alignas(4096) static char memory_of_stacks[(MAX_THREADS + 16) * STACK_BYTES];
static char* const stacks = memory_of_stacks + 16 * STACK_BYTES;

// ---- switching stacks ----------------------------------------------------------------------------------------------

// Saves the callee-saved registers and goes on where `to` was left. noipa: the optimiser must not look inside.
__attribute__((naked, noipa)) static void switch_stack(void** /*from*/, void* /*to*/) {
  asm volatile(
      "pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n\t"
      "movq %rsp, (%rdi)\n\t"
      "movq %rsi, %rsp\n\t"
      "popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp\n\t"
      "popq %rcx; jmp *%rcx");  // `ret` would be mispredicted every time
}

__attribute__((noinline)) static void set_error(const char* what, int a = 0, int b = 0) {
  if (error[0]) return;
  int n = snprintf(error, sizeof error, what, a, b);
  snprintf(error + n, sizeof error - n, " (block %u,%u,%u thread %u,%u,%u)", running_block.x, running_block.y,
           running_block.z, threads[running].index.x, threads[running].index.y, threads[running].index.z);
}

void fail(const char* what, int a, int b) {
  set_error(what, a, b);
  void* abandoned;
  switch_stack(&abandoned, scheduler_stack);
  __builtin_unreachable();
}

__attribute__((noipa)) static void park(State state) {
  Thread& self = threads[running];
  self.state = state;
  parked_count++;
  switch_stack(&self.stack_pointer, scheduler_stack);
}

static void worker_main() {
  module.run_threads(parameters);
  void* finished;
  switch_stack(&finished, scheduler_stack);
}

static void start_worker(unsigned number) {
  char* stack = stacks + number * STACK_BYTES;
  *(uint64_t*)stack = CANARY;
  // Stacks a power of two apart would all fall into the same few cache lines; this spreads them out.
  void** top = (void**)(stack + STACK_BYTES - number % 64 * 256);
  top[-2] = (void*)worker_main;  // where to go; the six registers popped before lie below
  switch_stack(&scheduler_stack, top - 8);
}

// Some warps of the block: their threads are first <= i < end.
struct Part {
  unsigned first, end;
};
static Part whole_block() { return {0, thread_count}; }

// Runs every thread of the part that is in this state until it finishes or parks again.
static bool resume(State state, Part part) {
  bool resumed = false;
  for (unsigned k = 0; k < thread_count && !error[0]; k++) {
    Thread& thread = threads[schedule[k]];
    if (thread.state != state || schedule[k] < part.first || schedule[k] >= part.end) continue;
    resumed = true;
    running = schedule[k];
    module.enter_thread(thread.index);
    thread.state = State::finished;  // unless it parks again
    parked_count--;
    switch_stack(&scheduler_stack, thread.stack_pointer);
  }
  return resumed;
}

// ---- one block ------------------------------------------------------------------------------------------------------

// Makes ready every group of lanes of the part that have all arrived at the same warp primitive with the same mask.
static bool release(bool without_exited_lanes, Part part) {
  bool released = false;
  for (unsigned i = part.first; i < part.end && waiting_lanes; i++) {
    if (threads[i].state != State::at_warp) continue;
    unsigned first = i / LANES * LANES, mask = visits[i].mask;
    bool complete = true;
    for (unsigned lane = 0; lane < LANES && first + lane < thread_count; lane++) {
      State state = threads[first + lane].state;
      const Visit& visit = visits[first + lane];
      bool arrived = state == State::at_warp && visit.mask == mask && visit.site == visits[i].site;
      bool exempt = without_exited_lanes && state == State::finished;
      if (mask >> lane & 1 && !arrived && !exempt) complete = false;
    }
    if (!complete) continue;
    for (unsigned lane = 0; lane < LANES; lane++) {
      if (!(mask >> lane & 1)) continue;
      warp_values[first / LANES][lane] = ~uint64_t(0);  // what a lane that is not there leaves
      if (first + lane >= thread_count || threads[first + lane].state != State::at_warp) continue;
      warp_values[first / LANES][lane] = visits[first + lane].value;
      threads[first + lane].state = State::ready;
      waiting_lanes--;
    }
    released = true;
  }
  return released;
}

// Whether every thread that still runs waits at the barrier; if so it is open.
static bool open_barrier() {
  Barrier& b = barrier_now;
  if (!b.waiting || b.waiting != parked_count) return false;
  if (strict_mode && b.waiting < thread_count) {
    set_error("__syncthreads at line %d is never reached by %d threads of the block: they have exited", b.line, thread_count - b.waiting);
    return false;
  }
  last_votes = {b.votes > 0, b.votes == (int)b.waiting, b.votes};
  b.waiting = 0;
  for (unsigned i = 0; i < thread_count; i++)
    if (threads[i].state == State::at_barrier) threads[i].state = State::ready;
  return true;
}

// Lets every warp that can go on do so, or in the order `warps` the last of them alone: in most kernels it is thread 0
// that reads what the others left, and here they may have gone on and written over it.
static bool advance(bool without_exited_lanes) {
  if (!one_warp_ahead) return (release(without_exited_lanes, whole_block()), resume(State::ready, whole_block()));
  for (unsigned end = thread_count, first; end > 0; end = first) {
    first = (end - 1) / LANES * LANES;
    Part warp = {first, end};
    if (release(without_exited_lanes, warp), resume(State::ready, warp)) return true;
  }
  return false;
}

static void run_block() {
  unsigned workers = 0;
  next_in_schedule = parked_count = waiting_lanes = barrier_now.waiting = 0;
  while (next_in_schedule < thread_count && !error[0]) start_worker(workers++);
  while (parked_count && !error[0]) {
    if (advance(false) || open_barrier() || (!strict_mode && advance(true))) continue;
    set_error("deadlock: %d threads wait for lanes that have exited or wait elsewhere", (int)parked_count);
  }
  for (unsigned w = 0; w < workers; w++)
    if (*(uint64_t*)(stacks + w * STACK_BYTES) != CANARY) set_error("a thread needs more than %d bytes of stack", STACK_BYTES);
}

// ---- shared memory --------------------------------------------------------------------------------------------------

void* dynamic_shared() { return dynamic_shared_memory; }

static int measure(dl_phdr_info* found, size_t, void*) {
  if (found->dlpi_addr != (ElfW(Addr))module.image) return 0;
  for (int i = 0; i < found->dlpi_phnum; i++)
    if (found->dlpi_phdr[i].p_type == PT_TLS) module.shared->bytes = found->dlpi_phdr[i].p_memsz;
  module.shared->before_anchor = module.shared_anchor - (char*)found->dlpi_tls_data;
  return 1;
}

static void wipe_static_shared() {
  if (!module.shared->bytes) dl_iterate_phdr(measure, nullptr);
  memset(module.shared_anchor - module.shared->before_anchor, UNSET, module.shared->bytes);
}

// ---- one launch -----------------------------------------------------------------------------------------------------

static uint64_t next_random(uint64_t& state) {  // SplitMix64
  uint64_t z = (state += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

const char* run_grid(const Launch& launch, const Module& launched, void** arguments) {
  module = launched, parameters = arguments;
  error[0] = 0;
  const unsigned *grid = launch.grid, *block = launch.block;
  uint64_t random = launch.seed;
  uint64_t blocks = uint64_t(grid[0]) * grid[1] * grid[2];
  char* guard = dynamic_shared_memory + launch.dynamic_shared_bytes;
  char intact[SHARED_GUARD];
  memset(intact, 0xA5, SHARED_GUARD);

  strict_mode = launch.strict, one_warp_ahead = launch.order == warps;
  thread_count = block[0] * block[1] * block[2];
  for (unsigned i = 0; i < thread_count; i++) {
    threads[i].index = {i % block[0], i / block[0] % block[1], i / block[0] / block[1]};
    threads[i].state = State::finished;
    schedule[i] = launch.order == reverse ? thread_count - 1 - i : i;
  }
  for (uint64_t n = 0; n < blocks && !error[0]; n++) {
    uint64_t i = launch.order == forward ? n : blocks - 1 - n;
    running_block = {unsigned(i % grid[0]), unsigned(i / grid[0] % grid[1]), unsigned(i / grid[0] / grid[1])};
    module.enter_block(running_block);
    if (launch.order == shuffled)
      for (unsigned i = thread_count - 1; i > 0; i--) std::swap(schedule[i], schedule[next_random(random) % (i + 1)]);
    wipe_static_shared();
    if (launch.dynamic_shared_bytes) memset(dynamic_shared_memory, UNSET, launch.dynamic_shared_bytes);
    memcpy(guard, intact, SHARED_GUARD);
    run_block();
    if (memcmp(guard, intact, SHARED_GUARD)) set_error("write past the %d bytes of dynamic shared memory", (int)launch.dynamic_shared_bytes);
  }
  return error[0] ? error : nullptr;
}

// ---- what kernels call ----------------------------------------------------------------------------------------------

const Index* next_thread() {
  if (next_in_schedule == thread_count) return nullptr;
  running = schedule[next_in_schedule++];
  return &threads[running].index;
}

unsigned lane() { return running % LANES; }

unsigned existing_lanes() {
  unsigned left = thread_count - running / LANES * LANES;
  return left >= LANES ? 0xffffffff : (1u << left) - 1;
}

Votes barrier(int predicate, int site, int line) {
  Barrier& b = barrier_now;
  if (!b.waiting++) b.site = site, b.line = line, b.votes = 0;
  else if (b.site != site) fail("divergent __syncthreads: threads of one block wait at line %d and at line %d", b.line, line);
  b.votes += predicate != 0;
  park(State::at_barrier);
  return last_votes;
}

const uint64_t* meet(unsigned mask, uint64_t value, int site, int line) {
  if (!(mask >> lane() & 1)) fail("warp primitive at line %d: the calling lane is not in its mask", line);
  visits[running] = {site, mask, value};
  waiting_lanes++;
  park(State::at_warp);
  return warp_values[running / LANES];
}

}  // namespace host_cuda
