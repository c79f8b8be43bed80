// Device side of a launch: grid-stride loop over a functor, reductions in order, launch error
// as text, atomic sums.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "common.h"
#include "reduce.cuh"

namespace deepatlas {

// How functors add to what other threads add to.
struct AtomicAdd {
  template <class T>
  DA_HD void operator()(T* p, T value) const {
#if defined(__CUDA_ARCH__)
    atomicAdd(p, value);
#else
    *p += value;  // the functors are host functions too
#endif
  }
};

template <class Index, class Functor>
__global__ void __launch_bounds__(256, 2) for_each_kernel(Index count, const Functor functor) {
  const Index stride = Index(gridDim.x) * Index(blockDim.x);
  for (Index i = Index(blockIdx.x) * Index(blockDim.x) + Index(threadIdx.x); i < count;
       i += stride) {
    functor(i);
  }
}

// Null on success. The stream belongs to the current device: the ops files hold the device guard.
template <class Index, class Functor>
const char* for_each_cuda(int64_t count, const Functor& functor, void* stream) {
  if (count <= 0) return nullptr;
  const int64_t threads = 256;
  const int64_t wanted = (count + threads - 1) / threads;
  const int64_t most = int64_t(1) << 20;  // grid-stride beyond; keeps i + stride inside 32 bits
  const unsigned blocks = unsigned(wanted < most ? wanted : most);
  for_each_kernel<Index, Functor>
      <<<blocks, unsigned(threads), 0, static_cast<cudaStream_t>(stream)>>>(Index(count), functor);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

// How the orders of launches that the host can follow too (tests/emu) are queued on a stream.
struct CudaLaunch {
  void* stream;

  template <class Index, class Functor>
  const char* each(int64_t count, const Functor& functor) const {
    return for_each_cuda<Index>(count, functor, stream);
  }
  template <class Reducer>
  const char* reduce(int64_t pieces, const Reducer& reducer) const {
    if (pieces <= 0) return nullptr;
    constexpr int threads = 256;
    const int64_t most = int64_t(1) << 20;  // a block takes several pieces beyond
    const unsigned grid = unsigned(pieces < most ? pieces : most);
    reduce_kernel<threads>
        <<<grid, threads, 0, static_cast<cudaStream_t>(stream)>>>(pieces, reducer);
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
  }
};

}  // namespace deepatlas
