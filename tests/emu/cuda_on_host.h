// Enough of CUDA to run a kernel with shared memory on the host: one std::thread a CUDA thread, a
// std::barrier for __syncthreads, one block after another. A missing __syncthreads is then a data
// race that ThreadSanitizer reports. Include it before the header of the kernel; C++20.
#pragma once

#include <barrier>
#include <thread>
#include <vector>

#define __global__
#define __launch_bounds__(...)
#define __shared__ static  // the blocks run in turn, so one copy serves them all

struct Place3 {
  unsigned x, y, z;
};
inline thread_local Place3 threadIdx, blockIdx, blockDim, gridDim;
inline thread_local std::barrier<>* block_barrier = nullptr;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

// kernel() once by every thread of every block.
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
