// Takes the place of CUDA's header where tests/emu compiles the .cu files for the CPU: the blocks of
// a launch run one after another in a shuffled order, and so do the threads of a block. Where a
// kernel waits for its block, its threads are fibers of one thread of the CPU.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __launch_bounds__(...)
#define __shared__ static thread_local

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess, cudaErrorInvalidConfiguration, cudaErrorInvalidResourceHandle };

struct Place3 {
  unsigned x, y, z;
};
inline thread_local Place3 threadIdx, blockIdx, blockDim, gridDim;

namespace deepatlas {

// Of the emulation, defined in emulated.cpp: the largest number of blocks of a launch, so that
// threads run through several strides; and the stream that every launch must get.
int64_t most_emulated_blocks();
void* emulated_stream();

namespace emulate {

inline thread_local cudaError_t last_error = cudaSuccess;
inline thread_local std::mt19937 shuffler(11);

inline std::vector<unsigned> shuffled(unsigned count) {
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  std::shuffle(order.begin(), order.end(), shuffler);
  return order;
}

// The threads of one block, each with a stack of its own, which take turns at __syncthreads.
class Fibers {
 public:
  template <class Kernel>
  void run(unsigned threads, const Kernel& kernel) {
    body_ = [](const void* f) { (*static_cast<const Kernel*>(f))(); };
    kernel_ = &kernel;
    for (unsigned i = fibers_.size(); i < threads; ++i) fibers_.push_back(std::make_unique<Fiber>());
    running_ = this;
    for (unsigned i = 0; i < threads; ++i) {
      Fiber& fiber = *fibers_[i];
      fiber.done = false;
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = fiber.stack.data();
      fiber.context.uc_stack.ss_size = fiber.stack.size();
      fiber.context.uc_link = nullptr;
      makecontext(&fiber.context, &Fibers::start, 0);
    }
    // Each round takes every thread to its next __syncthreads, or to its end.
    for (bool left = true; left;) {
      left = false;
      for (const unsigned i : shuffled(threads)) {
        if (fibers_[i]->done) continue;
        threadIdx = {i, 0, 0};
        enter(i);
        left = left || !fibers_[i]->done;
      }
    }
  }

  static void wait() { running_->leave(false); }

 private:
  struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 << 10);
    bool done = false;
    void* fake = nullptr;
  };

  void enter(unsigned i) {
    current_ = i;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_, fibers_[i]->stack.data(), fibers_[i]->stack.size());
#endif
    swapcontext(&main_, &fibers_[i]->context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_, nullptr, nullptr);
#endif
  }

  void leave(bool done) {
    Fiber& fiber = *fibers_[current_];
    fiber.done = done;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(done ? nullptr : &fiber.fake, bottom_, size_);
#endif
    swapcontext(&fiber.context, &main_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake, &bottom_, &size_);
#endif
  }

  static void start() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &running_->bottom_, &running_->size_);
#endif
    running_->body_(running_->kernel_);
    running_->leave(true);
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  ucontext_t main_;
  unsigned current_ = 0;
  void (*body_)(const void*) = nullptr;
  const void* kernel_ = nullptr;
  void* fake_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
  static inline thread_local Fibers* running_ = nullptr;
};

inline thread_local Fibers fibers;

// Calls kernel() once in every thread of every block. `Waits` says whether it calls __syncthreads.
template <bool Waits, class Kernel>
void launch(unsigned blocks, unsigned threads, unsigned shared, cudaStream_t stream,
            const Kernel& kernel) {
  if (stream != emulated_stream()) {
    last_error = cudaErrorInvalidResourceHandle;
    return;
  }
  if (blocks == 0 || threads == 0 || threads > 1024 || shared != 0) {
    last_error = cudaErrorInvalidConfiguration;
    return;
  }
  blocks = unsigned(std::min<int64_t>(blocks, most_emulated_blocks()));
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  for (const unsigned block : shuffled(blocks)) {
    blockIdx = {block, 0, 0};
    if constexpr (Waits) {
      fibers.run(threads, kernel);
    } else {
      for (const unsigned thread : shuffled(threads)) {
        threadIdx = {thread, 0, 0};
        kernel();
      }
    }
  }
}

}  // namespace emulate
}  // namespace deepatlas

inline void __syncthreads() { deepatlas::emulate::Fibers::wait(); }

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = deepatlas::emulate::last_error;
  deepatlas::emulate::last_error = cudaSuccess;
  return error;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorInvalidConfiguration ? "invalid configuration" : "invalid stream";
}
