// Launches CUDA kernels on the host, in place of CudaLaunch of launch.cuh. Must be included first.
#pragma once

#include <cstdint>

#include "cuda_on_host.h"
// The kernel needs the definitions above.
#include "reduce.cuh"

namespace deepatlas::host {

struct HostLaunch {
  template <class Index, class Functor>
  const char* each(int64_t count, const Functor& functor) const {
    for (int64_t i = 0; i < count; ++i) functor(Index(i));
    return nullptr;
  }
  template <class Reducer>
  const char* reduce(int64_t pieces, const Reducer& reducer) const {
    constexpr int threads = 16;
    // With fewer blocks than pieces, a block reduces several of them.
    const unsigned blocks = unsigned(pieces < 2 ? pieces : 2);
    launch_on_host(blocks, threads, [&] { reduce_kernel<threads>(pieces, reducer); });
    return nullptr;
  }
};

}  // namespace deepatlas::host
