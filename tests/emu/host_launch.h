// Launches CUDA kernels on the host, in place of CudaLaunch of launch.cuh. Must be included first.
#pragma once

#include <cstdint>

#include "cuda_on_host.h"
// The kernel needs the definitions above.
#include "reduce.cuh"

namespace deepatlas::host {

inline constexpr int kHostThreads = 16;

inline HostBlock& host_block() {
  static HostBlock block(kHostThreads);
  return block;
}

struct HostLaunch {
  template <class Index, class Functor>
  const char* each(int64_t count, const Functor& functor) const {
    for (int64_t i = 0; i < count; ++i) functor(Index(i));
    return nullptr;
  }
  template <class Reducer>
  const char* reduce(int64_t pieces, const Reducer& reducer) const {
    // With fewer blocks than pieces, a block reduces several of them.
    const unsigned blocks = unsigned(pieces < 2 ? pieces : 2);
    host_block().run(blocks, [&] { reduce_kernel<kHostThreads>(pieces, reducer); });
    return nullptr;
  }
};

}  // namespace deepatlas::host
