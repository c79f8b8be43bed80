// Shapes and places of voxels, and the arithmetic of one interpolated value.
#pragma once

#include "vec3.h"

namespace deepatlas {

// The size of a volume along z, y and x.
struct Shape3 {
  int32_t d, h, w;
  DA_HD int64_t voxels() const { return int64_t(d) * h * w; }
};

// The indices of a voxel.
struct Place {
  int32_t z, y, x;
};

// The offset of a voxel in a volume.
template <class Index>
DA_HD Index offset_of(const Shape3& s, int32_t z, int32_t y, int32_t x) {
  return (Index(z) * Index(s.h) + Index(y)) * Index(s.w) + Index(x);
}

// The indices of the voxel with an offset.
template <class Index>
DA_HD Place place_of(Index voxel, const Shape3& s) {
  const Index row = voxel / Index(s.w), z = row / Index(s.h);
  return {int32_t(z), int32_t(row - z * Index(s.h)), int32_t(voxel - row * Index(s.w))};
}

// The corner-aligned map from indices of an output axis to positions on an input axis. The two ends
// map exactly onto each other. An output axis of size 1 lies at the centre of the input axis, at
// the normalised coordinate 0.
template <class T>
struct AxisMap {
  T scale, end;
  int32_t last;
  AxisMap() = default;
  AxisMap(int32_t in, int32_t out)
      : scale(out > 1 ? T(double(in - 1) / double(out - 1)) : T(0)),
        end(out > 1 ? T(in - 1) : T(0.5) * T(in - 1)),
        last(out - 1) {}
  DA_HD T operator()(int32_t i) const { return i == last ? end : T(i) * scale; }
};

// The offsets from the first voxel to the second voxel of a pair along each axis; 0 on an axis of
// size 1.
template <class Index>
struct Steps {
  Index z, y, x;
  DA_HD explicit Steps(const Shape3& s)
      : z(s.d > 1 ? Index(s.h) * Index(s.w) : Index(0)),
        y(s.h > 1 ? Index(s.w) : Index(0)),
        x(s.w > 1) {}
};

// The products of the weights along z and y, and the weights along x, of the eight voxels of a
// cell.
template <class T>
struct Weights {
  T zy00, zy01, zy10, zy11, x0, x1;
};

// The value of a cell whose first voxel `p` points to.
template <class S, class T, class Index>
DA_HD T interpolate(const S* p, const Steps<Index>& step, const Weights<T>& w) {
  const S* q = p + step.z;
  const T left = w.zy00 * load(p[0]) + w.zy01 * load(p[step.y]) + w.zy10 * load(q[0]) +
                 w.zy11 * load(q[step.y]);
  p += step.x;
  q += step.x;
  const T right = w.zy00 * load(p[0]) + w.zy01 * load(p[step.y]) + w.zy10 * load(q[0]) +
                  w.zy11 * load(q[step.y]);
  return w.x0 * left + w.x1 * right;
}

}  // namespace deepatlas
