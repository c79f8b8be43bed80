// Sums over long ranges on CUDA, always in the same order: a block takes a piece of a range, its
// threads walk through the piece in strides, and a tree over shared memory joins them. Without a
// CUDA header, so that tests/emu can run the kernel on the host.
#pragma once

#include <cstdint>

namespace deepatlas {

// One block a piece; `Threads` is a power of two. A reducer has a type Value (an aggregate),
// `Value piece(int64_t piece, int thread, int threads)`, `Value join(Value, Value)` and
// `void finish(int64_t piece, Value)`.
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
    __syncthreads();  // the next piece must not overwrite kept[0] before it is read
  }
}

}  // namespace deepatlas
