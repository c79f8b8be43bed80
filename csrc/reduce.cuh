// Sums over long ranges on CUDA, in an order that never changes. One block sums up one piece of a
// range: its threads go through the piece in strides, and a tree in shared memory adds their sums.
// This file includes no CUDA header, so that tests/emu can run the kernel on the host.
#pragma once

#include <cstdint>

namespace deepatlas {

// `Threads` must be a power of two. A reducer has an aggregate type `Value` and the functions
// `Value piece(int64_t piece, int thread, int threads)`, the part of one thread,
// `Value join(Value, Value)`, and `void finish(int64_t piece, Value)`, which stores the result.
template <int Threads, class Reducer>
__global__ void __launch_bounds__(Threads) reduce_kernel(int64_t pieces, const Reducer reducer) {
  __shared__ typename Reducer::Value kept[Threads];
  const int thread = int(threadIdx.x);
  for (int64_t piece = blockIdx.x; piece < pieces; piece += gridDim.x) {
    kept[thread] = reducer.piece(piece, thread, Threads);
    __syncthreads();
    for (int half = Threads / 2; half > 0; half /= 2) {
      if (thread < half) kept[thread] = reducer.join(kept[thread], kept[thread + half]);
      __syncthreads();
    }
    if (thread == 0) reducer.finish(piece, kept[0]);
    // The next piece must not overwrite kept[0] before it has been read.
    __syncthreads();
  }
}

}  // namespace deepatlas
