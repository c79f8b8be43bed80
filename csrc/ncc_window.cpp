// Correlation within windows on the CPU. A task does all the work for a slab of one channel, row by
// row, so that between the maps and the results only sums along z are stored: of the maps one
// plane, and in the backward pass, which also needs box sums of the coefficients of the windows, as
// many planes as a window is deep.
//
// The slabs depend on the shapes only, so that the result does not depend on the number of threads.
#include "ncc_window.h"

#include <algorithm>
#include <vector>

#include "ncc_slide.h"

namespace deepatlas {
namespace ncc {
namespace {

// 1 / the roots of two variances, multiplied, and 1 / each variance.
struct Inverses {
  Doubles both, a, b;
};

// The product of two variances of float32 maps is far from the limits of float64, so one root does.
template <class S>
DA_HD Inverses inverses(Doubles a, Doubles b) {
  if (sizeof(S) < sizeof(double)) {
    const Doubles both = inverse_root(a * b), square = both * both;
    return {both, b * square, a * square};
  }
  const Doubles root_a = inverse_root(a), root_b = inverse_root(b);
  return {root_a * root_b, root_a * root_a, root_b * root_b};
}

// The correlations of the windows of a plane, row by row.
template <bool Masked, class S>
class Windows {
 public:
  Windows(const Shape3& shape, const Reach3& reach)
      : shape_(shape),
        reach_(reach),
        width_(whole_vectors(shape.w)),
        planes_(kMaps * size_t(shape.h) * width_),
        boxes_(shape.w, reach.x),
        share_x_(width_) {
    // Behind the row a share of 0 makes every term 0.
    for (int32_t x = 0; x < shape.w; ++x) share_x_.data()[x] = 1.0 / extent(x, reach.x, shape.w);
  }

  // Goes to plane z, of which visit(y) is called for every row: in between, the windows of this row
  // can be read. Unless it is the first one of a slab, z must be the next plane.
  template <class Visit>
  void plane(const Channel<S>& channel, int32_t z, bool first, const Visit& visit) {
    if (first) start(channel, z);
    const int32_t in = z + reach_.z, out = z - reach_.z - 1;
    const bool adds = in < shape_.d, drops = !first && out >= 0;
    boxes_.clear();
    for (int32_t r = 0; r < shape_.h + reach_.y; ++r) {
      if (r >= shape_.h) {
        leave(r);
      } else if (adds && drops) {
        enter<true, true>(channel, r, in, out);
      } else if (adds) {
        enter<true, false>(channel, r, in, out);
      } else if (drops) {
        enter<false, true>(channel, r, in, out);
      } else {
        enter<false, false>(channel, r, in, out);
      }
      if (r >= reach_.y) visit(r - reach_.y);
    }
  }

  // The windows of row y of plane z: what window_terms() of ncc.h computes.
  struct Row {
    // The values.
    template <class Part>
    DA_HD Doubles values(int32_t x, Part part) const {
      const Window w = at(x, part);
      const Doubles value = w.covariance * inverses<S>(w.held_a, w.held_b).both;
      return Masked ? if_counts(w, value * w.centre) : value;
    }
    // cross, own_a, constant_a and, if there is room for them, own_b and constant_b.
    template <int kTerms, class Part>
    DA_HD void terms(int32_t x, Part part, Doubles (&to)[kTerms]) const {
      const Window w = at(x, part);
      const Inverses inverse = inverses<S>(w.held_a, w.held_b);
      const Doubles share = Masked ? w.share * w.centre : w.share;
      const Doubles slope = -(w.covariance * inverse.both * share), zero = {};
      to[0] = if_counts(w, inverse.both * share);
      to[1] = if_counts(w, choose(w.va >= floors.a, slope * inverse.a, zero));
      to[2] = -(to[0] * w.mean_b + to[1] * w.mean_a);
      if (kTerms == 3) return;
      to[kTerms - 2] = if_counts(w, choose(w.vb >= floors.b, slope * inverse.b, zero));
      to[kTerms - 1] = -(to[0] * w.mean_a + to[kTerms - 2] * w.mean_b);
    }

    const RowBoxes<Masked ? 6 : 5>& boxes;
    const double* share_x;
    const S* mask;
    Floors floors;
    double rest;

   private:
    struct Window {
      Doubles share, centre, mean_a, mean_b, va, vb, covariance, held_a, held_b;
    };
    template <class Part>
    DA_HD Window at(int32_t x, Part part) const {
      Window w;
      if (Masked) {
        const Doubles n = boxes.at(kMaps - 1, x);
        w.share = 1.0 / choose(n > 0, n, every(1));
        w.centre = widen(mask + x, part);
      } else {
        w.share = get(share_x + x) * rest;
      }
      w.mean_a = boxes.at(0, x) * w.share;
      w.mean_b = boxes.at(1, x) * w.share;
      w.va = boxes.at(2, x) * w.share - w.mean_a * w.mean_a;
      w.vb = boxes.at(3, x) * w.share - w.mean_b * w.mean_b;
      w.covariance = boxes.at(4, x) * w.share - w.mean_a * w.mean_b;
      w.held_a = raised(w.va, floors.a);
      w.held_b = raised(w.vb, floors.b);
      return w;
    }
    // In a window without weight, the sums may contain rounding errors of values that a running sum
    // has added and subtracted again. So the weight at its centre decides whether it counts.
    DA_HD Doubles if_counts(const Window& w, Doubles v) const {
      return Masked ? choose(w.centre > 0, v, Doubles{}) : v;
    }
  };
  Row row(const Channel<S>& channel, int32_t z, int32_t y) const {
    const double rest = double(extent(z, reach_.z, shape_.d)) * extent(y, reach_.y, shape_.h);
    const S* mask = Masked ? channel.mask + offset_of<int64_t>(shape_, z, y, 0) : nullptr;
    return Row{boxes_, share_x_.data(), mask, channel.floors, 1 / rest};
  }

 private:
  // The sums of a, b, aa, bb, ab and, with a mask, of the weights.
  static constexpr int kMaps = Masked ? 6 : 5;

  // Sums up the planes around plane z, but for the last one, which then enters.
  void start(const Channel<S>& channel, int32_t z) {
    planes_.zero();
    const int32_t end = std::min(z + reach_.z, shape_.d);
    for (int32_t i = std::max(z - reach_.z, 0); i < end; ++i) {
      for (int32_t y = 0; y < shape_.h; ++y) {
        for_each_vector(shape_.w, [&](int32_t x, auto part) {
          double* sums = sums_of(y, x);
          Doubles values[kMaps];
          take(sums, values);
          change<true>(channel, i, y, x, part, values);
          for (int m = 0; m < kMaps; ++m) put(sums + m * kDoubles, values[m]);
        });
      }
    }
  }
  // The vectors of all maps at x follow each other, so that memory is read and written in order.
  double* sums_of(int32_t y, int32_t x) {
    return planes_.data() + (size_t(y) * width_ + x) * kMaps;
  }
  DA_HD void take(const double* sums, Doubles* values) const {
    for (int m = 0; m < kMaps; ++m) values[m] = get(sums + m * kDoubles);
  }
  // Adds the voxels of a plane to the sums, or subtracts them.
  template <bool Add, class Part>
  DA_HD void change(const Channel<S>& channel, int32_t z, int32_t y, int32_t x, Part part,
                    Doubles* sums) const {
    const int64_t offset = offset_of<int64_t>(shape_, z, y, x);
    const Voxels v = voxels_of<Masked>(channel, offset, part);
    const Doubles a = Masked ? v.weight * v.a : v.a, b = Masked ? v.weight * v.b : v.b;
    const Doubles parts[] = {a, b, a * v.a, b * v.b, a * v.b, v.weight};
    for (int m = 0; m < kMaps; ++m) sums[m] = Add ? sums[m] + parts[m] : sums[m] - parts[m];
  }
  template <bool Add, bool Drop>
  void enter(const Channel<S>& channel, int32_t r, int32_t in, int32_t out) {
    const int32_t leaving = r - 2 * reach_.y - 1;
    boxes_.move([&](int32_t x, auto part, Doubles* values) DA_INLINE_LAMBDA {
      double* sums = sums_of(r, x);
      take(sums, values);
      if (Drop) change<false>(channel, out, r, x, part, values);
      if (Add) change<true>(channel, in, r, x, part, values);
      for (int m = 0; m < kMaps; ++m) put(sums + m * kDoubles, values[m]);
      if (leaving >= 0) drop(sums_of(leaving, x), values);
    });
  }
  // Beyond the last row, rows only leave.
  void leave(int32_t r) {
    const int32_t leaving = r - 2 * reach_.y - 1;
    if (leaving < 0) return;
    boxes_.move([&](int32_t x, auto, Doubles* values) DA_INLINE_LAMBDA {
      for (int m = 0; m < kMaps; ++m) values[m] = Doubles{};
      drop(sums_of(leaving, x), values);
    });
  }
  static DA_HD void drop(const double* sums, Doubles* values) {
    for (int m = 0; m < kMaps; ++m) values[m] -= get(sums + m * kDoubles);
  }

  Shape3 shape_;
  Reach3 reach_;
  int32_t width_;
  Scratch planes_;
  RowBoxes<kMaps> boxes_;
  Scratch share_x_;
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
    for (int64_t task = begin; task < end; ++task) {
      const int64_t item = task / slabs.count;
      const int32_t first = int32_t(task - item * slabs.count) * slabs.depth;
      const int32_t last = std::min(first + slabs.depth, shape.d);
      const Channel<S> channel(args, item);
      double sum = 0;
      for (int32_t z = first; z < last; ++z) {
        windows.plane(channel, z, z == first, [&](int32_t y) {
          const auto row = windows.row(channel, z, y);
          Doubles values = {};
          for_each_vector(shape.w, [&](int32_t x, auto part) { values += row.values(x, part); });
          sum += sum_of(values);
        });
      }
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

// The gradients of a slab: by a, and with Both also by b. Where only that by b is needed, a and b
// are exchanged.
template <bool Masked, bool Both, class S>
class Backward {
 public:
  Backward(const NccArgs& args, const Reach3& reach)
      : args_(args),
        swapped_(args.grad_a == nullptr),
        shape_(args.shape),
        reach_(reach),
        width_(whole_vectors(shape_.w)),
        windows_(shape_, reach),
        planes_(reach.z, shape_.d, kTerms * size_t(shape_.h) * width_),
        rows_(reach.y, shape_.h, kTerms * size_t(width_)),
        boxes_(shape_.w, reach.x) {}

  void slab(int64_t item, int32_t first, int32_t last) {
    const Channel<S> channel(args_, item, swapped_);
    const int32_t begin = std::max(first - reach_.z, 0), end = last + reach_.z;
    for (int32_t z = begin; z < end; ++z) {
      // The plane of which the gradients are complete when the terms of plane z are added.
      const int32_t i = z - begin, target = z - reach_.z;
      const double* leaving = planes_.leaving(i);
      boxes_.clear();
      if (z < shape_.d) {
        double* now = planes_.row(i);
        const double* before = planes_.before(i);
        windows_.plane(channel, z, z == begin, [&](int32_t y) DA_INLINE_LAMBDA {
          const auto row = windows_.row(channel, z, y);
          const auto sums = [&](int32_t x, auto part, Doubles* values) DA_INLINE_LAMBDA {
            Doubles terms[kTerms];
            row.terms(x, part, terms);
            for (int t = 0; t < kTerms; ++t) {
              const int64_t at = place(t, y, x);
              const Doubles sum = get(before + at) + terms[t];
              values[t] = sum - get(leaving + at);
              put(now + at, sum);
            }
          };
          if (target >= first) return advance(channel, item, target, y, sums);
          Doubles unused[kTerms];
          for_each_vector(shape_.w, [&](int32_t x, auto part) DA_INLINE_LAMBDA {
            sums(x, part, unused);
          });
        });
      } else if (target >= first) {
        const double* before = planes_.row(shape_.d - 1 - begin);
        for (int32_t y = 0; y < shape_.h; ++y) {
          advance(channel, item, target, y, [&](int32_t x, auto, Doubles* values) {
            for (int t = 0; t < kTerms; ++t) {
              const int64_t at = place(t, y, x);
              values[t] = get(before + at) - get(leaving + at);
            }
          });
        }
      }
      if (target < first) continue;
      for (int32_t r = shape_.h; r < shape_.h + reach_.y; ++r) {
        const double* old = rows_.leaving(r);
        boxes_.move([&](int32_t x, auto, Doubles* values) DA_INLINE_LAMBDA {
          for (int t = 0; t < kTerms; ++t) values[t] = -get(old + place(t, 0, x));
        });
        gradients(channel, item, target, r - reach_.y);
      }
    }
  }

 private:
  // The coefficients of WindowTerms: cross, own_a, constant_a, own_b and constant_b.
  static constexpr int kTerms = Both ? 5 : 3;

  int64_t place(int term, int32_t y, int32_t x) const {
    return (int64_t(y) * width_ + x) * kTerms + term * kDoubles;
  }

  // Row y of the sums over z enters, and the gradients of row y - reach are complete.
  template <class Sums>
  DA_HD void advance(const Channel<S>& channel, int64_t item, int32_t z, int32_t y,
                     const Sums& sums) {
    double* now = rows_.row(y);
    const double* old = rows_.leaving(y);
    boxes_.move([&](int32_t x, auto part, Doubles* values) DA_INLINE_LAMBDA {
      sums(x, part, values);
      for (int t = 0; t < kTerms; ++t) {
        const int64_t at = place(t, 0, x);
        const Doubles leaving = get(old + at);
        put(now + at, values[t]);
        values[t] -= leaving;
      }
    });
    if (y >= reach_.y) gradients(channel, item, z, y - reach_.y);
  }
  // From the sums of the terms over the windows that contain each voxel.
  void gradients(const Channel<S>& channel, int64_t item, int32_t z, int32_t y) {
    const double grad = load(static_cast<const S*>(args_.grad)[item]);
    const double scale = grad / divisor(channel.moments.n);
    const int64_t offset = offset_of<int64_t>(shape_, z, y, 0);
    S* first = static_cast<S*>(swapped_ ? args_.grad_b : args_.grad_a);
    first += item * shape_.voxels() + offset;
    S* second = Both ? static_cast<S*>(args_.grad_b) + item * shape_.voxels() + offset : nullptr;
    for_each_vector(shape_.w, [&](int32_t x, auto part) {
      const Voxels v = voxels_of<Masked>(channel, offset + x, part);
      const Doubles by = Masked ? v.weight * scale : every(scale), cross = boxes_.at(0, x);
      narrow(first + x, by * (cross * v.b + boxes_.at(1, x) * v.a + boxes_.at(2, x)), part);
      if (!Both) return;
      narrow(second + x, by * (cross * v.a + boxes_.at(3, x) * v.b + boxes_.at(4, x)), part);
    });
  }

  const NccArgs& args_;
  bool swapped_;
  Shape3 shape_;
  Reach3 reach_;
  int32_t width_;
  Windows<Masked, S> windows_;
  // Of the terms: running sums along z, plane by plane, and sums over z, row by row.
  Ring planes_, rows_;
  RowBoxes<kTerms> boxes_;
};

template <bool Masked, bool Both, class S>
void backward(const NccArgs& args, const Parallel& parallel) {
  const Reach3 reach(args.window, args.shape);
  const Slabs slabs(args, reach);
  parallel(args.items() * slabs.count, 1, [&](int64_t begin, int64_t end) {
    Backward<Masked, Both, S> work(args, reach);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t item = task / slabs.count;
      const int32_t first = int32_t(task - item * slabs.count) * slabs.depth;
      work.slab(item, first, std::min(first + slabs.depth, args.shape.d));
    }
  });
}

template <bool Masked, class S>
void backward(const NccArgs& args, const Parallel& parallel) {
  if (args.grad_a != nullptr && args.grad_b != nullptr) {
    backward<Masked, true, S>(args, parallel);
  } else {
    backward<Masked, false, S>(args, parallel);
  }
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
