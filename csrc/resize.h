// Corner-aligned linear resizing and its adjoint: one functor for each direction, called once for
// each voxel of the result. CUDA runs the functors (resize.cu). The CPU works axis by axis with the
// same weights (resize.cpp).
#pragma once

#include "interpolate.h"
#include "kernels.h"

namespace deepatlas {

// The shapes, and the maps of the three axes.
template <class T>
struct ResizeMap {
  Shape3 in, out;
  AxisMap<T> z, y, x;
  explicit ResizeMap(const ResizeArgs& a)
      : in(a.in), out(a.out), z(a.in.d, a.out.d), y(a.in.h, a.out.h), x(a.in.w, a.out.w) {}
};

template <class S, class Index>
struct ResizeForward {
  using T = Accumulate<S>;
  ResizeMap<T> map;
  const S* source;
  S* target;
  explicit ResizeForward(const ResizeArgs& a)
      : map(a), source(static_cast<const S*>(a.source)), target(static_cast<S*>(a.target)) {}

  DA_HD void operator()(Index i) const {
    const Shape3 &in = map.in, &out = map.out;
    Index rest = i / Index(out.w);
    const auto x = locate_linear<kBorder>(map.x(int32_t(i - rest * Index(out.w))), in.w);
    const Index row = rest;
    rest = row / Index(out.h);
    const auto y = locate_linear<kBorder>(map.y(int32_t(row - rest * Index(out.h))), in.h);
    const Index item = rest / Index(out.d);
    const auto z = locate_linear<kBorder>(map.z(int32_t(rest - item * Index(out.d))), in.d);
    const Weights<T> w{z.w0 * y.w0, z.w0 * y.w1, z.w1 * y.w0, z.w1 * y.w1, x.w0, x.w1};
    const Index offset = offset_of<Index>(in, z.base, y.base, x.base);
    store(target + i,
          interpolate(source + item * Index(in.voxels()) + offset, Steps<Index>(in), w));
  }
};

// The outputs [begin, end) of an axis that may depend on input voxel j. Some of them may not, and
// have a weight of 0.
template <class T>
struct Reach {
  int32_t begin, end;
  DA_HD Reach(const AxisMap<T>& map, int32_t j) {
    begin = 0;
    end = map.last + 1;
    if (map.scale > T(0)) {
      const T limit = T(map.last + 1);
      begin = int32_t(clamp(std::floor((T(j) - T(1)) / map.scale) - T(1), T(0), limit));
      end = int32_t(clamp(std::floor((T(j) + T(1)) / map.scale) + T(3), T(0), limit));
    }
  }
};

// The weight of input voxel j in output i of an axis.
template <class T>
DA_HD T weight_of(const AxisMap<T>& map, int32_t i, int32_t j, int32_t size) {
  const LinearAxis<T> axis = locate_linear<kBorder>(map(i), size);
  return axis.base == j ? axis.w0 : (axis.base + 1 == j ? axis.w1 : T(0));
}

// The adjoint. Each input voxel gathers its gradient without atomics, so it is deterministic on
// every device.
template <class S, class Index>
struct ResizeBackward {
  using T = Accumulate<S>;
  ResizeMap<T> map;
  const S* source;
  S* target;
  explicit ResizeBackward(const ResizeArgs& a)
      : map(a), source(static_cast<const S*>(a.source)), target(static_cast<S*>(a.target)) {}

  DA_HD void operator()(Index i) const {
    const Shape3 &in = map.in, &out = map.out;
    Index rest = i / Index(in.w);
    const int32_t x = int32_t(i - rest * Index(in.w));
    const Index row = rest;
    rest = row / Index(in.h);
    const int32_t y = int32_t(row - rest * Index(in.h));
    const Index item = rest / Index(in.d);
    const int32_t z = int32_t(rest - item * Index(in.d));
    const S* grad = source + item * Index(out.voxels());
    const Reach<T> rz(map.z, z), ry(map.y, y), rx(map.x, x);
    T sum = T(0);
    for (int32_t k = rz.begin; k < rz.end; ++k) {
      const T wz = weight_of(map.z, k, z, in.d);
      if (wz == T(0)) continue;
      for (int32_t j = ry.begin; j < ry.end; ++j) {
        const T wzy = wz * weight_of(map.y, j, y, in.h);
        if (wzy == T(0)) continue;
        const S* line = grad + (Index(k) * Index(out.h) + Index(j)) * Index(out.w);
        for (int32_t l = rx.begin; l < rx.end; ++l) {
          const T w = weight_of(map.x, l, x, in.w);
          if (w != T(0)) sum += wzy * w * load(line[l]);
        }
      }
    }
    store(target + i, sum);
  }
};

}  // namespace deepatlas
