// Enough of CUDA to run a kernel with shared memory on the host: a std::thread for each CUDA
// thread, a std::barrier for __syncthreads, and one block after another. A missing __syncthreads is
// then a data race that ThreadSanitizer reports. Needs C++20, and must be included before the
// header of the kernel.
#pragma once

#include <barrier>
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
inline thread_local std::barrier<>* block_barrier = nullptr;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

// Calls kernel() once in every thread of every block.
template <class Kernel>
void launch_on_host(unsigned blocks, unsigned threads, const Kernel& kernel) {
  for (unsigned block = 0; block < blocks; ++block) {
    std::barrier<> barrier(threads);
    std::vector<std::thread> pool;
    for (unsigned thread = 0; thread < threads; ++thread) {
      pool.emplace_back([&, thread] {
        threadIdx = {thread, 0, 0};
        blockIdx = {block, 0, 0};
        blockDim = {threads, 1, 1};
        gridDim = {blocks, 1, 1};
        block_barrier = &barrier;
        kernel();
      });
    }
    for (auto& thread : pool) thread.join();
  }
}
