// Correlation within windows on the CPU. A task does all the work for a slab of one channel. Its
// sums slide along z from plane to plane and along y from row to row, and along x they are computed
// for a whole row. So the moments of the windows exist for one row at a time. The backward pass
// also needs box sums of the coefficients of the windows; of these it keeps as many planes as a
// window is deep.
//
// The slabs depend on the shapes only, so that the result does not depend on the number of threads.
#include "ncc_window.h"

#include <algorithm>
#include <vector>

#include "ncc_slide.h"

namespace deepatlas {
namespace ncc {
namespace {

// The coefficients of WindowTerms: cross, own_a, constant_a, own_b and constant_b.
constexpr int kTerms = 5;

// The terms of a row of windows.
struct TermRows {
  double *cross, *own_a, *constant_a, *own_b, *constant_b;
};

// The correlations of the windows of a plane, row by row.
template <bool Masked, class S>
class Windows {
 public:
  static constexpr int kUsed = SlidingPlanes<Masked, S>::kUsed;

  Windows(const Shape3& shape, const Reach3& reach)
      : shape_(shape),
        reach_(reach),
        planes_(shape, reach),
        rows_(kUsed, shape, reach),
        sums_(kMaps * size_t(shape.w)),
        share_(shape.w),
        share_x_(shape.w) {
    for (int32_t x = 0; x < shape.w; ++x) share_x_[x] = 1.0 / extent(x, reach.x, shape.w);
  }

  void start(const Channel<S>& channel, int32_t z) { planes_.start(channel, z); }
  void advance(const Channel<S>& channel, int32_t z) { planes_.advance(channel, z); }

  // Adds the values of a row to `total`, or stores its terms. Must be called for the rows in order,
  // from 0.
  void values(const Channel<S>& channel, int32_t z, int32_t y, double* total) {
    const S* mask = sum_row(channel, z, y);
    evaluate<false>(row(0), row(1), row(2), row(3), row(4), share_.data(), mask, channel.floors,
                    shape_.w, total, nullptr, nullptr, nullptr, nullptr, nullptr);
  }
  void terms(const Channel<S>& channel, int32_t z, int32_t y, const TermRows& to) {
    const S* mask = sum_row(channel, z, y);
    evaluate<true>(row(0), row(1), row(2), row(3), row(4), share_.data(), mask, channel.floors,
                   shape_.w, nullptr, to.cross, to.own_a, to.constant_a, to.own_b, to.constant_b);
  }

 private:
  double* row(int map) { return &sums_[size_t(map) * shape_.w]; }

  // Computes the sums of a row and 1 / the sums of its weights. Returns the weights at the centres
  // of its windows.
  const S* sum_row(const Channel<S>& channel, int32_t z, int32_t y) {
    rows_.advance(y, planes_.planes);
    for (int m = 0; m < kUsed; ++m) rows_.sum(m, row(m));
    if (Masked) {
      invert(row(kMaps - 1), shape_.w, share_.data());
      return channel.mask + (int64_t(z) * shape_.h + y) * shape_.w;
    }
    const double rest = double(extent(z, reach_.z, shape_.d)) * extent(y, reach_.y, shape_.h);
    scale(share_x_.data(), 1 / rest, shape_.w, share_.data());
    return nullptr;
  }
  static void invert(const double* __restrict n, int32_t w, double* __restrict share) {
    for (int32_t x = 0; x < w; ++x) share[x] = 1 / (n[x] > 0 ? n[x] : 1);
  }
  static void scale(const double* __restrict x, double by, int32_t w, double* __restrict share) {
    for (int32_t i = 0; i < w; ++i) share[i] = by * x[i];
  }

  template <bool Terms>
  static void evaluate(const double* __restrict a, const double* __restrict b,
                       const double* __restrict aa, const double* __restrict bb,
                       const double* __restrict ab, const double* __restrict share,
                       const S* __restrict mask, const Floors floors, int32_t w,
                       double* __restrict total, double* __restrict cross, double* __restrict own_a,
                       double* __restrict constant_a, double* __restrict own_b,
                       double* __restrict constant_b) {
    for (int32_t x = 0; x < w; ++x) {
      const double centre = Masked ? double(load(mask[x])) : 1;
      const WindowTerms t = window_terms(a[x], b[x], aa[x], bb[x], ab[x], share[x], floors, centre);
      if (Terms) {
        cross[x] = t.cross;
        own_a[x] = t.own_a;
        constant_a[x] = t.constant_a;
        own_b[x] = t.own_b;
        constant_b[x] = t.constant_b;
      } else {
        total[x] += t.value;
      }
    }
  }

  Shape3 shape_;
  Reach3 reach_;
  SlidingPlanes<Masked, S> planes_;
  SlidingRows rows_;
  std::vector<double> sums_, share_, share_x_;
};

// Running sums along z of the terms of the windows. It keeps as many planes of terms as a window is
// deep.
class TermPlanes {
 public:
  const double* planes[kTerms] = {};

  TermPlanes(const Shape3& shape, const Reach3& reach, bool need_a, bool need_b)
      : w_(shape.w),
        size_(int64_t(shape.h) * shape.w),
        deep_(2 * reach.z + 1),
        used_{true, need_a, need_a, need_b, need_b},
        row_(kTerms * size_t(shape.w)) {
    int64_t count = 0;
    for (const bool used : used_) count += used;
    sums_.resize(count * size_);
    ring_.resize(count * size_ * deep_);
    double *sum = sums_.data(), *ring = ring_.data();
    for (int t = 0; t < kTerms; ++t) {
      if (!used_[t]) continue;
      planes[t] = sum_[t] = sum;
      rings_[t] = ring;
      sum += size_;
      ring += size_ * deep_;
    }
  }
  // Where the terms of a row must be stored before `push`.
  TermRows row() {
    double* r = row_.data();
    return {r, r + w_, r + 2 * w_, r + 3 * w_, r + 4 * w_};
  }
  void start() {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(ring_.begin(), ring_.end(), 0.0);
  }
  // Adds the row of plane z to the sums, in place of the row of plane z - deep.
  void push(int32_t z, int32_t y) {
    for (int t = 0; t < kTerms; ++t) {
      if (!used_[t]) continue;
      const int64_t offset = int64_t(y) * w_;
      replace(&row_[size_t(t) * w_], w_, rings_[t] + z % deep_ * size_ + offset, sum_[t] + offset);
    }
  }
  // Subtracts plane z - deep from the sums, where z is beyond the last plane of the volume.
  void pop(int32_t z) {
    for (int t = 0; t < kTerms; ++t) {
      if (used_[t]) drop(rings_[t] + z % deep_ * size_, size_, sum_[t]);
    }
  }

 private:
  static void replace(const double* __restrict row, int32_t n, double* __restrict kept,
                      double* __restrict sum) {
    for (int32_t i = 0; i < n; ++i) {
      sum[i] = (sum[i] - kept[i]) + row[i];
      kept[i] = row[i];
    }
  }
  static void drop(const double* __restrict kept, int64_t n, double* __restrict sum) {
    for (int64_t i = 0; i < n; ++i) sum[i] -= kept[i];
  }

  int32_t w_;
  int64_t size_, deep_;
  bool used_[kTerms];
  double *sum_[kTerms] = {}, *rings_[kTerms] = {};
  std::vector<double> row_, sums_, ring_;
};

// How the channels are cut along z. At its first plane, a slab has to sum up complete windows, and
// in the backward pass also the planes within reach before it. So a slab is at least as deep as a
// window.
struct Slabs {
  int32_t depth;
  int64_t count;
  Slabs(const NccArgs& args, const Reach3& reach) {
    const auto cut = [&](int32_t least) {
      depth = std::max(least, 2 * reach.z + 1);
      count = pieces_of(args.shape.d, depth);
    };
    cut(32);
    if (args.items() * count < 8) cut(16);
  }
};

template <bool Masked, class S>
void forward(const NccArgs& args, const Parallel& parallel) {
  const Shape3& shape = args.shape;
  const Reach3 reach(args.window, shape);
  const Slabs slabs(args, reach);
  std::vector<double> partial(args.items() * slabs.count);
  parallel(args.items() * slabs.count, 1, [&](int64_t begin, int64_t end) {
    Windows<Masked, S> windows(shape, reach);
    std::vector<double> columns(shape.w);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t item = task / slabs.count;
      const int32_t first = int32_t(task - item * slabs.count) * slabs.depth;
      const int32_t last = std::min(first + slabs.depth, shape.d);
      const Channel<S> channel(args, item);
      std::fill(columns.begin(), columns.end(), 0.0);
      for (int32_t z = first; z < last; ++z) {
        z == first ? windows.start(channel, z) : windows.advance(channel, z);
        for (int32_t y = 0; y < shape.h; ++y) windows.values(channel, z, y, columns.data());
      }
      double sum = 0;
      for (const double column : columns) sum += column;
      partial[task] = sum;
    }
  });
  for (int64_t item = 0; item < args.items(); ++item) {
    double sum = 0;
    for (int64_t i = 0; i < slabs.count; ++i) sum += partial[item * slabs.count + i];
    const double n = reinterpret_cast<const Moments*>(args.moments)[item].n;
    store(static_cast<S*>(args.value) + item, Accumulate<S>(sum / divisor(n)));
  }
}

// The gradient of a row from the sums of the terms over the windows that contain each voxel.
template <bool Masked, class S>
void gradient_row(const double* __restrict cross, const double* __restrict own,
                  const double* __restrict constant, const S* __restrict a, const S* __restrict b,
                  const S* __restrict mask, double mean_a, double mean_b, double scale, int32_t w,
                  S* __restrict target) {
  for (int32_t x = 0; x < w; ++x) {
    const double weight = Masked ? double(load(mask[x])) : 1;
    const bool counts = !Masked || weight > 0;
    const double p = counts ? double(load(a[x])) - mean_a : 0;
    const double q = counts ? double(load(b[x])) - mean_b : 0;
    const double sum = cross[x] * q + own[x] * p + constant[x];
    store(target + x, Accumulate<S>(scale * (Masked ? weight * sum : sum)));
  }
}

// The gradient of a slab.
template <bool Masked, class S>
class Backward {
 public:
  Backward(const NccArgs& args, const Reach3& reach)
      : args_(args),
        shape_(args.shape),
        reach_(reach),
        windows_(shape_, reach),
        terms_(shape_, reach, args.grad_a != nullptr, args.grad_b != nullptr),
        rows_(kTerms, shape_, reach),
        sums_(kTerms * size_t(shape_.w)) {}

  void slab(int64_t item, int32_t first, int32_t last) {
    const Channel<S> channel(args_, item);
    const int32_t begin = std::max(first - reach_.z, 0), end = last + reach_.z;
    terms_.start();
    for (int32_t z = begin; z < end; ++z) {
      if (z < shape_.d) {
        z == begin ? windows_.start(channel, z) : windows_.advance(channel, z);
        for (int32_t y = 0; y < shape_.h; ++y) {
          windows_.terms(channel, z, y, terms_.row());
          terms_.push(z, y);
        }
      } else if (z - 2 * reach_.z - 1 >= begin) {
        terms_.pop(z);
      }
      if (z - reach_.z >= first) plane(channel, item, z - reach_.z);
    }
  }

 private:
  double* row(int term) { return &sums_[size_t(term) * shape_.w]; }

  void plane(const Channel<S>& channel, int64_t item, int32_t z) {
    const Moments& m = channel.moments;
    const double scale = double(load(static_cast<const S*>(args_.grad)[item])) / divisor(m.n);
    for (int32_t y = 0; y < shape_.h; ++y) {
      rows_.advance(y, terms_.planes);
      for (int t = 0; t < kTerms; ++t) {
        if (terms_.planes[t] != nullptr) rows_.sum(t, row(t));
      }
      const int64_t offset = (int64_t(z) * shape_.h + y) * shape_.w;
      const int64_t index = item * shape_.voxels() + offset;
      const S *a = channel.a + offset, *b = channel.b + offset;
      const S* mask = Masked ? channel.mask + offset : nullptr;
      if (args_.grad_a != nullptr) {
        gradient_row<Masked>(row(0), row(1), row(2), a, b, mask, m.a, m.b, scale, shape_.w,
                             static_cast<S*>(args_.grad_a) + index);
      }
      if (args_.grad_b != nullptr) {
        gradient_row<Masked>(row(0), row(3), row(4), b, a, mask, m.b, m.a, scale, shape_.w,
                             static_cast<S*>(args_.grad_b) + index);
      }
    }
  }

  const NccArgs& args_;
  Shape3 shape_;
  Reach3 reach_;
  Windows<Masked, S> windows_;
  TermPlanes terms_;
  SlidingRows rows_;
  std::vector<double> sums_;
};

template <bool Masked, class S>
void backward(const NccArgs& args, const Parallel& parallel) {
  const Reach3 reach(args.window, args.shape);
  const Slabs slabs(args, reach);
  parallel(args.items() * slabs.count, 1, [&](int64_t begin, int64_t end) {
    Backward<Masked, S> work(args, reach);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t item = task / slabs.count;
      const int32_t first = int32_t(task - item * slabs.count) * slabs.depth;
      work.slab(item, first, std::min(first + slabs.depth, args.shape.d));
    }
  });
}

}  // namespace

template <class S>
void window_forward(const NccArgs& args, const Parallel& parallel) {
  args.mask ? forward<true, S>(args, parallel) : forward<false, S>(args, parallel);
}

template <class S>
void window_backward(const NccArgs& args, const Parallel& parallel) {
  args.mask ? backward<true, S>(args, parallel) : backward<false, S>(args, parallel);
}

template void window_forward<double>(const NccArgs&, const Parallel&);
template void window_forward<float>(const NccArgs&, const Parallel&);
template void window_forward<Half>(const NccArgs&, const Parallel&);
template void window_forward<BFloat16>(const NccArgs&, const Parallel&);
template void window_backward<double>(const NccArgs&, const Parallel&);
template void window_backward<float>(const NccArgs&, const Parallel&);
template void window_backward<Half>(const NccArgs&, const Parallel&);
template void window_backward<BFloat16>(const NccArgs&, const Parallel&);

}  // namespace ncc
}  // namespace deepatlas
