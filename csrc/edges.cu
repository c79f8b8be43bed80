// The CUDA launchers of edge_difference: the launches of edges_functors.h on a stream.
#include "edges_functors.h"
#include "launch.cuh"

namespace deepatlas {

int64_t edges_sums_cuda(const EdgesArgs& a) { return 3 * a.items() * edges::channel_pieces(a); }

const char* edges_forward_cuda(const EdgesArgs& a, void* stream) {
  return with_scalar(a.scalar, [&](auto s) {
    using S = decltype(s);
    const CudaLaunch launch{stream};
    return fits_32_bit(edges::most_elements(a)) ? edges::device_forward<S, int32_t>(a, launch)
                                                : edges::device_forward<S, int64_t>(a, launch);
  });
}

const char* edges_backward_cuda(const EdgesArgs& a, void* stream) {
  return with_scalar(a.scalar, [&](auto s) {
    using S = decltype(s);
    const CudaLaunch launch{stream};
    return fits_32_bit(edges::most_elements(a)) ? edges::device_backward<S, int32_t>(a, launch)
                                                : edges::device_backward<S, int64_t>(a, launch);
  });
}

}  // namespace deepatlas
