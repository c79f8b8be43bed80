// Enough of CUDA to run a kernel with shared memory on the host: a std::thread for each CUDA
// thread, a barrier for __syncthreads, and one block after another. A missing __syncthreads is
// then a data race that ThreadSanitizer reports. Must be included before the header of the kernel.
#pragma once

#include <pthread.h>

#include <thread>
#include <vector>

#define __global__
#define __launch_bounds__(...)
// The blocks run one after another, so they can share one copy.
#define __shared__ static

struct Place3 {
  unsigned x, y, z;
};
inline thread_local Place3 threadIdx, blockIdx, blockDim, gridDim;

// Puts waiting threads to sleep at once. std::barrier lets them try again and again, which takes
// most of the time where there are more threads than cores.
class Barrier {
 public:
  explicit Barrier(unsigned threads) { pthread_barrier_init(&barrier_, nullptr, threads); }
  ~Barrier() { pthread_barrier_destroy(&barrier_); }
  Barrier(const Barrier&) = delete;
  Barrier& operator=(const Barrier&) = delete;
  void wait() { pthread_barrier_wait(&barrier_); }

 private:
  pthread_barrier_t barrier_;
};

inline thread_local Barrier* block_barrier = nullptr;

inline void __syncthreads() { block_barrier->wait(); }

// The threads of a block, which stay for all blocks and launches, because starting them takes
// longer than a small kernel.
class HostBlock {
 public:
  explicit HostBlock(unsigned threads) : inside_(threads), ends_(threads + 1) {
    for (unsigned thread = 0; thread < threads; ++thread) {
      pool_.emplace_back([this, threads, thread] { work(threads, thread); });
    }
  }
  ~HostBlock() {
    call_ = nullptr;
    ends_.wait();
    for (auto& thread : pool_) thread.join();
  }

  // Calls kernel() once in every thread of every block.
  template <class Kernel>
  void run(unsigned blocks, const Kernel& kernel) {
    call_ = [](const void* f) { (*static_cast<const Kernel*>(f))(); };
    kernel_ = &kernel;
    blocks_ = blocks;
    // The threads begin, and have ended.
    ends_.wait();
    ends_.wait();
  }

 private:
  void work(unsigned threads, unsigned thread) {
    block_barrier = &inside_;
    threadIdx = {thread, 0, 0};
    blockDim = {threads, 1, 1};
    for (;;) {
      ends_.wait();
      if (call_ == nullptr) return;
      gridDim = {blocks_, 1, 1};
      for (unsigned block = 0; block < blocks_; ++block) {
        blockIdx = {block, 0, 0};
        call_(kernel_);
        inside_.wait();
      }
      ends_.wait();
    }
  }

  Barrier inside_, ends_;
  std::vector<std::thread> pool_;
  void (*call_)(const void*) = nullptr;
  const void* kernel_ = nullptr;
  unsigned blocks_ = 0;
};
