// The CUDA launchers of correlation: the launches of ncc_functors.h on a stream.
#include "launch.cuh"
#include "ncc_functors.h"

namespace deepatlas {

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
