// The box sums of ncc_window.cpp: of a whole row along x, sliding from row to row along y, and
// sliding from plane to plane along z.
#pragma once

#include <algorithm>
#include <vector>

#include "ncc.h"

namespace deepatlas {
namespace ncc {

// The sums of a, b, aa, bb, ab and, with a mask, of the weights.
constexpr int kMaps = 6;

// The sums over windows of 2 * reach + 1 values along a row that is padded with `reach` zeros at
// either end. It computes the sums over 1, 2, 4, ... values by doubling, and adds those that the
// binary digits of the window select. Unlike a running sum this vectorises; its time grows with the
// logarithm of the window.
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

// Running sums along y of the rows of some planes, `maps` of them, each in a padded row.
class SlidingRows {
 public:
  SlidingRows(int maps, const Shape3& shape, const Reach3& reach)
      : maps_(maps),
        shape_(shape),
        reach_(reach),
        box_(shape.w, reach.x),
        stride_(size_t(shape.w) + 2 * reach.x),
        rows_(maps * stride_) {}

  // Goes on to row y of the planes [h, w], of which those that are not needed are null. Must be
  // called for the rows in order, from 0.
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
  // The sums along x of the current row of a map.
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
    for (int32_t i = 0; i < shape_.w; ++i) row[i] = (row[i] - out[i]) + in[i];
  }

  int maps_;
  Shape3 shape_;
  Reach3 reach_;
  RowBox box_;
  size_t stride_;
  std::vector<double> rows_;
};

// One channel, its mask, its moments, whose means are subtracted from the maps, and its floors.
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

// Running sums along z of the maps and their products, plane by plane.
template <bool Masked, class S>
class SlidingPlanes {
 public:
  static constexpr int kUsed = Masked ? kMaps : kMaps - 1;
  const double* planes[kMaps] = {};

  SlidingPlanes(const Shape3& shape, const Reach3& reach)
      : shape_(shape), reach_(reach), size_(int64_t(shape.h) * shape.w), sums_(kUsed * size_) {
    for (int m = 0; m < kUsed; ++m) planes[m] = &sums_[m * size_];
  }

  // Computes the sums around plane z.
  void start(const Channel<S>& channel, int32_t z) {
    std::fill(sums_.begin(), sums_.end(), 0.0);
    const int32_t last = std::min(z + reach_.z, shape_.d - 1);
    for (int32_t i = std::max(z - reach_.z, 0); i <= last; ++i) pass<true, false>(channel, i, 0);
  }
  // Goes on from plane z - 1 to plane z.
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
  // What a voxel contributes to the sums.
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

  // Adds plane `in` to the sums and subtracts plane `out` from them.
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

}  // namespace ncc
}  // namespace deepatlas
