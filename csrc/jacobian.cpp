// The Jacobian ops on the CPU, in blocks of a few rows. The nine differences go into small arrays
// first. The arithmetic that follows has no branches, so that the compiler can vectorise it over
// the voxels.
#include <vector>

#include "jacobian_rows.h"

namespace deepatlas {
namespace {

// Calls f(batch item, plane of the item) for the planes [begin, end), counted over the batch.
template <class F>
void over_planes(const JacobianArgs& a, int64_t begin, int64_t end, const F& f) {
  for (int64_t plane = begin; plane < end; ++plane) {
    const int64_t item = plane / a.shape.d;
    f(item, int32_t(plane - item * a.shape.d));
  }
}

constexpr int64_t kVoxelsPerTask = 16384;

// Calls f(read, n, block, other, out) for the blocks of all rows. read(difference, block) computes
// the columns of its n voxels; f stores their results.
template <class S, class Out, class F>
void map_voxels(const JacobianArgs& a, const Parallel& parallel, const F& f) {
  using T = Accumulate<S>;
  const int64_t grain = planes_per_task(a.shape, kVoxelsPerTask);
  parallel(a.batch * a.shape.d, grain, [&](int64_t begin, int64_t end) {
    Block<T> block, other;
    over_planes(a, begin, end, [&](int64_t item, int32_t z) {
      const FieldRows<S> rows(a, item);
      Out* out = static_cast<Out*>(a.output) + item * a.shape.voxels();
      in_row_blocks(a.shape, 0, a.shape.h, [&](int32_t y, int32_t x, int n) {
        const auto read = [&](Difference d, Block<T>& to) { rows.read(d, z, y, x, n, to); };
        f(read, n, block, other, out + rows.voxel(z, y, x));
      });
    });
  });
}

template <class S, bool Normalize>
void log_jacobian(const JacobianArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const LogJacobianPoint<T, Normalize> point(a);
  map_voxels<S, S>(a, parallel,
                   [&](const auto& read, int n, Block<T>& block, Block<T>&, S* __restrict out) {
                     read(Difference::kCentral, block);
                     const auto p = point;
                     for (int i = 0; i < n; ++i) store(out + i, p.value(block.columns(i)));
                   });
}

template <class S>
void determinants(const JacobianArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  map_voxels<S, T>(
      a, parallel,
      [&](const auto& read, int n, Block<T>& block, Block<T>& other, T* __restrict out) {
        if (!a.digital) {
          read(Difference::kCentral, block);
          for (int i = 0; i < n; ++i) out[i] = determinant(block.columns(i));
          return;
        }
        read(Difference::kForward, block);
        read(Difference::kBackward, other);
        for (int i = 0; i < n; ++i)
          out[i] = least_determinant(block.columns(i), other.columns(i));
      });
}

// ---- smoothness_loss ----------------------------------------------------------------------------

template <class S, bool Log>
void smoothness(const JacobianArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const int64_t planes = a.batch * a.shape.d, voxels = a.shape.voxels();
  auto* statistics = reinterpret_cast<Statistics*>(a.statistics);
  std::vector<double> second(a.batch);
  const SmoothnessPoint<T, Log> point(a);
  const SmoothnessPoint<T, Log, PlainLogarithm<T>> plain(a);

  // The first pass keeps D of every voxel, so that the second pass does not read the field.
  const int64_t grain = planes_per_task(a.shape, kVoxelsPerTask);
  parallel(planes, grain, [&](int64_t begin, int64_t end) {
    Block<T> block;
    Frames<T> frames;
    alignas(64) T weight[kRowVoxels], frame[kRowVoxels];
    PlaneSums<T> sums(kRowVoxels);
    over_planes(a, begin, end, [&](int64_t item, int32_t z) {
      const FieldRows<S> rows(a, item);
      in_row_blocks(a.shape, 0, a.shape.h, [&](int32_t y, int32_t x, int n) {
        const int64_t offset = item * voxels + rows.voxel(z, y, x);
        rows.read(Difference::kCentral, z, y, x, n, block);
        read_weights<S>(a.weight, offset, n, weight);
        if (a.weight != nullptr) block.hold(weight, n);
        T* __restrict kept = static_cast<T*>(a.change) + offset;
        frames.compute(block, n, point.log.eps);
        const auto terms = [&](const auto p) {
          for (int i = 0; i < n; ++i) {
            T orthonormality;
            p.terms(frames.det[i], frames.unit_det[i], kept[i], orthonormality);
            frame[i] = huber(orthonormality, p.delta);
          }
        };
        frames.plain(n, point.log.eps) ? terms(plain) : terms(point);
        sums.add(n, [&](int i, T& by_weight, T& by_change, T& by_frame) {
          const T w = weight[i];
          by_weight += w;
          by_change += w * kept[i];
          by_frame += w * frame[i];
        });
      });
      sums.finish(a.sums + 3 * (item * a.shape.d + z));
    });
  });
  total_planes(a.sums, a.batch, a.shape.d, [&](int64_t item, const double* sums) {
    const double weight = sums[0] == 0 ? 1 : sums[0];
    statistics[item] = {sums[1] / weight, 0, weight};
    second[item] = sums[2] / weight;
  });

  parallel(planes, 4 * grain, [&](int64_t begin, int64_t end) {
    alignas(64) T weight[kRowVoxels];
    PlaneSums<T> sums(kRowVoxels);
    const int64_t plane_voxels = int64_t(a.shape.h) * a.shape.w;
    for (int64_t plane = begin; plane < end; ++plane) {
      const T mean = T(statistics[plane / a.shape.d].change), delta = T(a.delta);
      for (int64_t v = 0; v < plane_voxels; v += kRowVoxels) {
        const int n = int(std::min<int64_t>(kRowVoxels, plane_voxels - v));
        const int64_t offset = plane * plane_voxels + v;
        read_weights<S>(a.weight, offset, n, weight);
        const T* __restrict kept = static_cast<const T*>(a.change) + offset;
        sums.add(n, [&](int i, T& by_loss, T& by_pull, T&) {
          const T x = kept[i] - mean;
          by_loss += weight[i] * huber(x, delta);
          by_pull += weight[i] * clamp(x, -delta, delta);
        });
      }
      sums.finish(a.sums + 3 * plane);
    }
  });
  total_planes(a.sums, a.batch, a.shape.d, [&](int64_t item, const double* sums) {
    Statistics& s = statistics[item];
    s.pull = sums[1] / s.weight;
    store(static_cast<S*>(a.output) + item, T(sums[0] / s.weight + second[item]));
  });
}

}  // namespace

int64_t smoothness_sums_cpu(const JacobianArgs& a) { return 3 * a.batch * a.shape.d; }

void log_jacobian_forward_cpu(const JacobianArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) {
    args.normalize ? log_jacobian<decltype(s), true>(args, parallel)
                   : log_jacobian<decltype(s), false>(args, parallel);
  });
}

void jacobian_determinant_cpu(const JacobianArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) { determinants<decltype(s)>(args, parallel); });
}

void smoothness_forward_cpu(const JacobianArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) {
    args.logarithm ? smoothness<decltype(s), true>(args, parallel)
                   : smoothness<decltype(s), false>(args, parallel);
  });
}

}  // namespace deepatlas
