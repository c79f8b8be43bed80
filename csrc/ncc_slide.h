// The box sums of ncc_window.cpp. Along z and y they slide from plane to plane and from row to row;
// along x they are differences of running sums. All rows are filled up to whole vectors with zeros.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "doubles.h"
#include "ncc.h"

namespace deepatlas {
namespace ncc {

// Rows of float64 that begin at the boundary of a cache line if their sizes are whole lines.
class Scratch {
 public:
  explicit Scratch(size_t count) : lines_((count + kPerLine - 1) / kPerLine) {}
  double* data() { return lines_.front().values; }
  const double* data() const { return lines_.front().values; }
  void zero() { std::fill(lines_.begin(), lines_.end(), Line{}); }

 private:
  static constexpr size_t kPerLine = 8;
  struct alignas(64) Line {
    double values[kPerLine];
  };
  std::vector<Line> lines_;
};

// One channel, its mask, its moments, whose means are subtracted from the maps, and its floors.
template <class S>
struct Channel {
  const S *a, *b, *mask;
  Moments moments;
  Floors floors;

  // `swapped` exchanges a and b.
  Channel(const NccArgs& args, int64_t item, bool swapped = false)
      : a(static_cast<const S*>(args.a) + item * args.shape.voxels()),
        b(static_cast<const S*>(args.b) + item * args.shape.voxels()),
        mask(args.mask
                 ? static_cast<const S*>(args.mask) + item / args.channels * args.shape.voxels()
                 : nullptr),
        moments(reinterpret_cast<const Moments*>(args.moments)[item]),
        floors(window_floors(moments, args.eps)) {
    if (!swapped) return;
    std::swap(a, b);
    std::swap(moments.a, moments.b);
    std::swap(floors.a, floors.b);
  }
};

// A vector of voxels: the deviations from the means, 0 where the weight is 0, and the weights.
struct Voxels {
  Doubles a, b, weight;
};

template <bool Masked, class S, class Part>
DA_HD Voxels voxels_of(const Channel<S>& c, int64_t offset, Part part) {
  const Doubles a = widen(c.a + offset, part) - c.moments.a;
  const Doubles b = widen(c.b + offset, part) - c.moments.b;
  if (!Masked) return {part.keep(a), part.keep(b), every(1)};
  const Doubles weight = widen(c.mask + offset, part), zero = {};
  const Integers counts = weight > 0;
  return {choose(counts, a, zero), choose(counts, b, zero), choose(counts, weight, zero)};
}

// The last rows of a sequence, as many as a box is wide. Running sums are stored in them, so that
// the sum of a box is the difference of two rows.
class Ring {
 public:
  Ring(int32_t reach, int32_t count, size_t size)
      : wide_(2 * reach + 1), slots_(std::min(wide_, count)), size_(size), rows_(slots_ * size),
        zeros_(size) {}
  // Row i, counted from the first one; before that all sums are 0. The row that leaves the box when
  // row i enters is in the place of row i.
  double* row(int32_t i) { return rows_.data() + i % slots_ * size_; }
  const double* before(int32_t i) { return i > 0 ? row(i - 1) : zeros_.data(); }
  const double* leaving(int32_t i) { return i >= wide_ ? row(i - wide_) : zeros_.data(); }

 private:
  int32_t wide_, slots_;
  size_t size_;
  Scratch rows_, zeros_;
};

// The sums of kMaps maps over the boxes of the rows of a plane. The rows enter and leave in order.
template <int kMaps>
class RowBoxes {
 public:
  RowBoxes(int32_t width, int32_t reach)
      : width_(width),
        whole_(whole_vectors(width)),
        reach_(reach),
        left_(whole_vectors(reach + 1)),
        stride_(left_ + whole_ + whole_vectors(reach)),
        sums_(size_t(kMaps) * stride_) {}

  // Begins with no rows.
  void clear() { sums_.zero(); }
  // Goes on by a row: change(x, Whole or Rest, values) sets the values that each map gains at x,
  // x + 1, ...: those of the row that enters less those of the row that leaves.
  template <class Change>
  DA_HD void move(const Change& change) {
    Doubles carry[kMaps] = {};
    for_each_vector(width_, [&](int32_t x, auto part) DA_INLINE_LAMBDA {
      Doubles values[kMaps];
      change(x, part, values);
      for (int m = 0; m < kMaps; ++m) {
        const Doubles gained = running_sums(values[m]) + carry[m];
        add(m, x, gained);
        carry[m] = last_of(gained);
      }
    });
    // Behind the row, the sums stay what they are.
    for (int m = 0; m < kMaps; ++m) {
      for (int32_t x = 0; x < reach_; x += kDoubles) add(m, whole_ + x, carry[m]);
    }
  }
  // The sums of a map over the boxes around x, x + 1, ...
  DA_HD Doubles at(int map, int32_t x) const {
    const double* sums = sums_.data() + map * stride_ + left_ + x;
    return get(sums + reach_) - get(sums - reach_ - 1);
  }

 private:
  DA_HD void add(int map, int32_t x, Doubles values) {
    double* sums = sums_.data() + map * stride_ + left_ + x;
    put(sums, get(sums) + values);
  }

  int32_t width_, whole_, reach_, left_, stride_;
  // Of each map, running sums along x of the sums along y.
  Scratch sums_;
};

}  // namespace ncc
}  // namespace deepatlas
