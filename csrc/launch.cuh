// The device side of a launch: loops over a functor, ordered reductions, atomic additions, and
// launch errors as text.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common.h"
#include "launch.h"
#include "reduce.cuh"

namespace deepatlas {

// Adds to a value that other threads add to as well.
struct AtomicAdd {
  template <class T>
  DA_HD void operator()(T* p, T value) const {
#if defined(__CUDA_ARCH__)
    atomicAdd(p, value);
#else
    // The functors are host functions too, but only the tests run them on the host.
    *p += value;
#endif
  }
};

template <class Index, class Functor>
__global__ void __launch_bounds__(kThreadsPerBlock, 2)
    for_each_kernel(Index count, const Functor functor) {
  const Index stride = Index(gridDim.x) * Index(blockDim.x);
  for (Index i = Index(blockIdx.x) * Index(blockDim.x) + Index(threadIdx.x); i < count;
       i += stride) {
    functor(i);
  }
}

// Calls functor(i) for all i in [0, count) on `stream`, which must belong to the current device:
// the ops files hold the device guard. Returns null, or the text of the launch error.
template <class Index, class Functor>
const char* for_each_cuda(int64_t count, const Functor& functor, void* stream) {
  if (count <= 0) return nullptr;
  const int64_t wanted = pieces_of(count, kThreadsPerBlock);
  const unsigned blocks = unsigned(wanted < kMostBlocks ? wanted : kMostBlocks);
  for_each_kernel<Index, Functor>
      <<<blocks, unsigned(kThreadsPerBlock), 0, static_cast<cudaStream_t>(stream)>>>(Index(count),
                                                                                     functor);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// Queues launches on a stream, for the code that takes the way of launching as a parameter so that
// tests/emu can run it on the host.
struct CudaLaunch {
  void* stream;

  template <class Index, class Functor>
  const char* each(int64_t count, const Functor& functor) const {
    return for_each_cuda<Index>(count, functor, stream);
  }
  template <class Reducer>
  const char* reduce(int64_t pieces, const Reducer& reducer) const {
    if (pieces <= 0) return nullptr;
    constexpr int threads = int(kThreadsPerBlock);
    // If there are more pieces than blocks, a block reduces several of them.
    const unsigned grid = unsigned(pieces < kMostBlocks ? pieces : kMostBlocks);
    reduce_kernel<threads>
        <<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(pieces, reducer);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
};

}  // namespace deepatlas
