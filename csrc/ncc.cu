// CUDA launchers of correlation: the order of ncc_device.h on a stream.
#include "launch.cuh"
#include "ncc_device.h"
#include "reduce.cuh"

namespace deepatlas {
namespace {

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

}  // namespace

int64_t ncc_workspace_cuda(const NccArgs& args) { return ncc::device::workspace_size(args); }

const char* ncc_forward_cuda(const NccArgs& args, void* stream) {
  return with_scalar(args.scalar, [&](auto s) {
    return ncc::device::device_forward<decltype(s)>(args, CudaLaunch{stream});
  });
}

const char* ncc_backward_cuda(const NccArgs& args, void* stream) {
  return with_scalar(args.scalar, [&](auto s) {
    return ncc::device::device_backward<decltype(s)>(args, CudaLaunch{stream});
  });
}

}  // namespace deepatlas
