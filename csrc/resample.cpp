// Sampling on the CPU: blocks of voxels divided between threads, and the deterministic scatter.
#include <algorithm>
#include <vector>

#include "resample_block.h"

namespace deepatlas {
namespace {

using namespace block;

// How many blocks a task takes at least.
int64_t grain_of(const SampleArgs& a) {
  return std::max<int64_t>(1, 8192 / (kBlockVoxels * std::max<int64_t>(a.channels, 1)));
}

template <class S, template <class> class SourceT>
void forward(const SampleArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const SourceT<S> source(a);
  const Stage<T> stage = stage_of<T>(a.mode, a.padding);
  const int64_t voxels = a.in.voxels(), out_voxels = a.out.voxels();
  for_each_block(parallel, a.batch, a.out, grain_of(a),
                 [&](int64_t b, int64_t, int64_t n, int count) {
                   Positions<T> positions;
                   Corners<T> corners;
                   place(source, a.out, b, n, count, positions);
                   stage(positions, a.in, count, corners);
                   for (int64_t c = b * a.channels; c < (b + 1) * a.channels; ++c) {
                     const S* volume = static_cast<const S*>(a.volume) + c * voxels;
                     S* out = static_cast<S*>(a.output) + c * out_voxels + n;
                     if (a.mode == kNearest) {
                       read_nearest(volume, corners, count, out);
                     } else {
                       read_linear(volume, a.in, corners, count, out);
                     }
                   }
                 });
}

// The gradient by the coordinates, and the span of every block, which the scatter needs.
template <class S, template <class> class SourceT>
void backward_coords(const SampleArgs& a, const Parallel& parallel, std::vector<Span>& spans) {
  using T = Accumulate<S>;
  using Stored = typename SourceT<S>::Stored;
  const SourceT<S> source(a);
  const Stage<T> stage = stage_of<T>(a.mode, a.padding);
  const int64_t voxels = a.in.voxels(), out_voxels = a.out.voxels(), blocks = blocks_of(a.out);
  for_each_block(
      parallel, a.batch, a.out, grain_of(a), [&](int64_t b, int64_t block, int64_t n, int count) {
        Positions<T> positions;
        Corners<T> corners;
        place(source, a.out, b, n, count, positions);
        stage(positions, a.in, count, corners);
        spans[b * blocks + block] = {a.in.d, 0};
        spans[b * blocks + block].add(corners.z, count, a.in.d);
        if (a.grad_coords == nullptr) return;
        Positions<T> sum;
        std::fill_n(sum.x, count, T(0));
        std::fill_n(sum.y, count, T(0));
        std::fill_n(sum.z, count, T(0));
        for (int64_t c = b * a.channels; c < (b + 1) * a.channels && a.mode == kLinear; ++c) {
          read_gradient(static_cast<const S*>(a.volume) + c * voxels,
                        static_cast<const S*>(a.grad) + c * out_voxels + n, a.in, corners, count,
                        sum);
        }
        if (a.mode == kLinear) clear_undefined(corners, count, sum);
        Stored* out = static_cast<Stored*>(a.grad_coords) + b * 3 * out_voxels + n;
        for (int i = 0; i < count; ++i) {
          store(out + i, sum.x[i] * source.half.x);
          store(out + out_voxels + i, sum.y[i] * source.half.y);
          store(out + 2 * out_voxels + i, sum.z[i] * source.half.z);
        }
      });
}

// The gradient of the volume. Each task owns a slab of levels of some channels of a batch item.
template <class S, template <class> class SourceT>
void backward_volume(const SampleArgs& a, const Parallel& parallel,
                     const std::vector<Span>& spans) {
  using T = Accumulate<S>;
  const SourceT<S> source(a);
  const Stage<T> stage = stage_of<T>(a.mode, a.padding);
  const int64_t voxels = a.in.voxels(), out_voxels = a.out.voxels();
  const bool small = out_voxels * a.batch * a.channels < 8192;
  const int64_t wanted = small ? 1 : (parallel.threads + a.batch - 1) / a.batch;
  const int64_t slabs = std::min<int64_t>(wanted, a.in.d);
  const int64_t groups = std::max<int64_t>(1, std::min<int64_t>(a.channels, wanted / slabs));
  const Slabs cuts(spans, a.batch, a.out, a.in.d, slabs);

  parallel(a.batch * slabs * groups, small ? a.batch : 1, [&](int64_t begin, int64_t end) {
    Positions<T> positions;
    Corners<T> corners;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / (slabs * groups), rest = task - b * slabs * groups;
      const int64_t group = rest / slabs, slab = rest - group * slabs;
      const int64_t first = b * a.channels + a.channels * group / groups;
      const int64_t last = b * a.channels + a.channels * (group + 1) / groups;
      const int32_t low = cuts.low(b, slab), high = cuts.high(b, slab);
      const int64_t plane = int64_t(a.in.h) * a.in.w;
      for (int64_t c = first; c < last; ++c) {
        T* volume = static_cast<T*>(a.grad_volume) + c * voxels;
        std::fill(volume + low * plane, volume + high * plane, T(0));
      }
      cuts.for_each_block(b, low, high, [&](int64_t, int64_t n, int count) {
        place(source, a.out, b, n, count, positions);
        stage(positions, a.in, count, corners);
        mark_skipped(a.mode, count, corners);
        for (int64_t c = first; c < last; ++c) {
          T* volume = static_cast<T*>(a.grad_volume) + c * voxels;
          const S* grad = static_cast<const S*>(a.grad) + c * out_voxels + n;
          if (a.mode == kNearest) {
            scatter_nearest(volume, grad, corners, count, low, high);
          } else {
            scatter_linear(volume, grad, a.in, corners, count, low, high);
          }
        }
      });
    }
  });
}

template <class S, template <class> class SourceT>
void backward(const SampleArgs& a, const Parallel& parallel) {
  std::vector<Span> spans(a.batch * blocks_of(a.out));
  backward_coords<S, SourceT>(a, parallel, spans);
  if (a.grad_volume != nullptr) backward_volume<S, SourceT>(a, parallel, spans);
}

}  // namespace

void sample_forward_cpu(const SampleArgs& a, const Parallel& parallel) {
  with_scalar(a.scalar, [&](auto s) {
    using S = decltype(s);
    switch (a.source) {
      case Source::kCoords:
        return forward<S, CoordsSource>(a, parallel);
      case Source::kDisplacement:
        return forward<S, DisplacementSource>(a, parallel);
      case Source::kAffine:
        return forward<S, AffineSource>(a, parallel);
    }
  });
}

void sample_backward_cpu(const SampleArgs& a, const Parallel& parallel) {
  with_scalar(a.scalar, [&](auto s) {
    using S = decltype(s);
    switch (a.source) {
      case Source::kCoords:
        return backward<S, CoordsSource>(a, parallel);
      case Source::kDisplacement:
        return backward<S, DisplacementSource>(a, parallel);
      case Source::kAffine:
        return backward<S, AffineSource>(a, parallel);
    }
  });
}

}  // namespace deepatlas
