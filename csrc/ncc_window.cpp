// Windowed correlation on the CPU. A task takes a slab of one channel through from end to end: the
// sums over z slide plane by plane, those over y row by row, and those over x are taken of a row at
// once, so that the moments of the windows exist one row at a time. Backward the coefficients of
// the windows need box sums too, and only as many of their planes as a window is deep are kept.
//
// Slabs depend on the shapes alone, so that the result does not depend on the number of threads.
#include "ncc_window.h"

#include <algorithm>
#include <vector>

#include "ncc.h"

namespace deepatlas {
namespace ncc {
namespace {

constexpr int kMaps = 6;  // the sums of a, b, aa, bb, ab and, under a mask, of the weights
constexpr int kTerms =
    5;  // coefficients of the windows: cross and, by a and by b, own and constant

// The sums over 2 * reach + 1 neighbours along a row, of which `padded` holds `reach` zeros at
// either end. By doubling: the sums over 1, 2, 4 ... values, of which the binary digits of the
// window choose some. Unlike a running sum it vectorises, at a cost that grows with the logarithm.
class RowBox {
 public:
  RowBox(int32_t width, int32_t reach)
      : width_(width), reach_(reach), scratch_(2 * size_t(width + 2 * reach)) {}

  void operator()(const double* padded, double* __restrict out) {
    const int32_t window = 2 * reach_ + 1;
    const double* level = padded;
    std::copy(padded, padded + width_, out);
    int32_t span = width_ + 2 * reach_, from = 1;
    double* spare[2] = {scratch_.data(), scratch_.data() + span};
    for (int32_t step = 1; 2 * step <= window; step *= 2) {
      span -= step;
      double_up(level, step, span, spare[0]);
      level = spare[0];
      std::swap(spare[0], spare[1]);
      if (window & (2 * step)) {
        add(level + from, out);
        from += 2 * step;
      }
    }
  }

 private:
  static void double_up(const double* __restrict x, int32_t step, int32_t n, double* __restrict y) {
    for (int32_t i = 0; i < n; ++i) y[i] = x[i] + x[i + step];
  }
  void add(const double* __restrict x, double* __restrict out) const {
    for (int32_t i = 0; i < width_; ++i) out[i] += x[i];
  }

  int32_t width_, reach_;
  std::vector<double> scratch_;
};

// Rows that slide along y: `maps` running sums, each in a padded row, of rows given by plane.
class SlidingRows {
 public:
  SlidingRows(int maps, const Shape3& shape, const Reach3& reach)
      : maps_(maps),
        shape_(shape),
        reach_(reach),
        box_(shape.w, reach.x),
        stride_(size_t(shape.w) + 2 * reach.x),
        rows_(maps * stride_) {}

  // planes[map]: [h, w], or null for a map not wanted. Rows must be asked for in order, from 0.
  void advance(int32_t y, const double* const* planes) {
    for (int m = 0; m < maps_; ++m) {
      if (planes[m] == nullptr) continue;
      double* row = &rows_[m * stride_ + reach_.x];
      if (y == 0) {
        std::fill(row, row + shape_.w, 0.0);
        for (int32_t i = 0; i < std::min(reach_.y + 1, shape_.h); ++i) add(at(planes[m], i), row);
        continue;
      }
      const int32_t in = y + reach_.y, out = y - reach_.y - 1;
      if (in < shape_.h && out >= 0) {
        slide(at(planes[m], in), at(planes[m], out), row);
      } else if (in < shape_.h) {
        add(at(planes[m], in), row);
      } else if (out >= 0) {
        drop(at(planes[m], out), row);
      }
    }
  }
  // The sums over x of the present row of a map.
  void sum(int map, double* out) { box_(&rows_[map * stride_], out); }

 private:
  const double* at(const double* plane, int32_t y) const { return plane + int64_t(y) * shape_.w; }
  void add(const double* __restrict in, double* __restrict row) const {
    for (int32_t i = 0; i < shape_.w; ++i) row[i] += in[i];
  }
  void drop(const double* __restrict out, double* __restrict row) const {
    for (int32_t i = 0; i < shape_.w; ++i) row[i] -= out[i];
  }
  void slide(const double* __restrict in, const double* __restrict out,
             double* __restrict row) const {
    for (int32_t i = 0; i < shape_.w; ++i) row[i] += in[i] - out[i];
  }

  int maps_;
  Shape3 shape_;
  Reach3 reach_;
  RowBox box_;
  size_t stride_;
  std::vector<double> rows_;
};

// One channel, its mask and what centres it.
template <class S>
struct Channel {
  const S *a, *b, *mask;
  Moments moments;
  Floors floors;

  Channel(const NccArgs& args, int64_t item)
      : a(static_cast<const S*>(args.a) + item * args.shape.voxels()),
        b(static_cast<const S*>(args.b) + item * args.shape.voxels()),
        mask(args.mask
                 ? static_cast<const S*>(args.mask) + item / args.channels * args.shape.voxels()
                 : nullptr),
        moments(reinterpret_cast<const Moments*>(args.moments)[item]),
        floors(window_floors(moments, args.eps)) {}
};

// The sums over z of the maps, sliding from plane to plane.
template <bool Masked, class S>
class SlidingPlanes {
 public:
  static constexpr int kUsed = Masked ? kMaps : kMaps - 1;
  const double* planes[kMaps] = {};

  SlidingPlanes(const Shape3& shape, const Reach3& reach)
      : shape_(shape), reach_(reach), size_(int64_t(shape.h) * shape.w), sums_(kUsed * size_) {
    for (int m = 0; m < kUsed; ++m) planes[m] = &sums_[m * size_];
  }

  void start(const Channel<S>& channel, int32_t z) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    const int32_t last = std::min(z + reach_.z, shape_.d - 1);
    for (int32_t i = std::max(z - reach_.z, 0); i <= last; ++i) pass<true, false>(channel, i, 0);
  }
  // From z - 1 to z.
  void advance(const Channel<S>& channel, int32_t z) {
    const int32_t in = z + reach_.z, out = z - reach_.z - 1;
    if (in < shape_.d && out >= 0) {
      pass<true, true>(channel, in, out);
    } else if (in < shape_.d) {
      pass<true, false>(channel, in, 0);
    } else if (out >= 0) {
      pass<false, true>(channel, 0, out);
    }
  }

 private:
  // A voxel's part in the sums.
  struct Part {
    double a, b, weight;
  };
  static Part part(const S* a, const S* b, const S* mask, int64_t i, double mean_a, double mean_b) {
    const double x = double(load(a[i])) - mean_a, y = double(load(b[i])) - mean_b;
    if (!Masked) return {x, y, 1};
    const double weight = load(mask[i]);
    const bool counts = weight > 0;
    return {counts ? x : 0, counts ? y : 0, counts ? weight : 0};
  }

  template <bool Add, bool Drop>
  void pass(const Channel<S>& c, int32_t in, int32_t out) {
    const S* __restrict a = c.a + in * size_, * __restrict b = c.b + in * size_;
    const S* __restrict mask = Masked ? c.mask + in * size_ : nullptr;
    const S* __restrict old_a = c.a + out * size_, * __restrict old_b = c.b + out * size_;
    const S* __restrict old_mask = Masked ? c.mask + out * size_ : nullptr;
    double* __restrict sum_a = &sums_[0], * __restrict sum_b = sum_a + size_;
    double* __restrict sum_aa = sum_b + size_, * __restrict sum_bb = sum_aa + size_;
    double* __restrict sum_ab = sum_bb + size_;
    double* __restrict sum_n = Masked ? sum_ab + size_ : nullptr;
    const double mean_a = c.moments.a, mean_b = c.moments.b;
    for (int64_t i = 0; i < size_; ++i) {
      double sa = sum_a[i], sb = sum_b[i], saa = sum_aa[i], sbb = sum_bb[i], sab = sum_ab[i];
      double n = Masked ? sum_n[i] : 0;
      if (Drop) {
        const Part p = part(old_a, old_b, old_mask, i, mean_a, mean_b);
        const double wa = p.weight * p.a, wb = p.weight * p.b;
        sa -= wa;
        sb -= wb;
        saa -= wa * p.a;
        sbb -= wb * p.b;
        sab -= wa * p.b;
        n -= p.weight;
      }
      if (Add) {
        const Part p = part(a, b, mask, i, mean_a, mean_b);
        const double wa = p.weight * p.a, wb = p.weight * p.b;
        sa += wa;
        sb += wb;
        saa += wa * p.a;
        sbb += wb * p.b;
        sab += wa * p.b;
        n += p.weight;
      }
      sum_a[i] = sa;
      sum_b[i] = sb;
      sum_aa[i] = saa;
      sum_bb[i] = sbb;
      sum_ab[i] = sab;
      if (Masked) sum_n[i] = n;
    }
  }

  Shape3 shape_;
  Reach3 reach_;
  int64_t size_;
  std::vector<double> sums_;
};

// Rows of the terms of a row of windows.
struct TermRows {
  double *cross, *own_a, *constant_a, *own_b, *constant_b;
};

// The windows of a plane, row by row: everything up to the correlations themselves.
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

  // Adds the values of a row to `total`. Rows must be asked for in order, from y = 0.
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

  // Sums and shares of a row; returns the weights at the centres of its windows.
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

// The sums over z of the terms of the windows: as many planes of them as a window is deep are kept.
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
  // Where the terms of a row go before `push`.
  TermRows row() {
    double* r = row_.data();
    return {r, r + w_, r + 2 * w_, r + 3 * w_, r + 4 * w_};
  }
  void start() {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    std::fill(ring_.begin(), ring_.end(), 0.0);
  }
  // The row of plane z replaces that of plane z - deep.
  void push(int32_t z, int32_t y) {
    for (int t = 0; t < kTerms; ++t) {
      if (!used_[t]) continue;
      const int64_t offset = int64_t(y) * w_;
      replace(&row_[size_t(t) * w_], w_, rings_[t] + z % deep_ * size_ + offset, sum_[t] + offset);
    }
  }
  // Behind the last plane of the volume nothing takes the place of what leaves.
  void pop(int32_t z) {
    for (int t = 0; t < kTerms; ++t) {
      if (used_[t]) drop(rings_[t] + z % deep_ * size_, size_, sum_[t]);
    }
  }

 private:
  static void replace(const double* __restrict row, int32_t n, double* __restrict kept,
                      double* __restrict sum) {
    for (int32_t i = 0; i < n; ++i) {
      sum[i] += row[i] - kept[i];
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

// How the channels are cut along z. A slab begins with the sums over whole windows and, backward,
// repeats the planes within reach of it: it is at least as deep as that.
struct Slabs {
  int32_t depth;
  int64_t count;
  Slabs(const NccArgs& args, const Reach3& reach) {
    const auto cut = [&](int32_t least) {
      depth = std::max(least, 2 * reach.z + 1);
      count = (args.shape.d + depth - 1) / depth;
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

// The gradient of a row from the sums of the terms of the windows that hold its voxels.
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

// What a task needs for the gradient of its slab.
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
      const int64_t whole = item * shape_.voxels() + offset;
      const S *a = channel.a + offset, *b = channel.b + offset;
      const S* mask = Masked ? channel.mask + offset : nullptr;
      if (args_.grad_a != nullptr) {
        gradient_row<Masked>(row(0), row(1), row(2), a, b, mask, m.a, m.b, scale, shape_.w,
                             static_cast<S*>(args_.grad_a) + whole);
      }
      if (args_.grad_b != nullptr) {
        gradient_row<Masked>(row(0), row(3), row(4), b, a, mask, m.b, m.a, scale, shape_.w,
                             static_cast<S*>(args_.grad_b) + whole);
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
