// The arithmetic of one interpolated voxel, shared by sampling and resizing.
#pragma once

#include "vec3.h"

namespace deepatlas {

struct Shape3 {
  int32_t d, h, w;
  DA_HD int64_t voxels() const { return int64_t(d) * h * w; }
};

struct Place {
  int32_t z, y, x;
};

template <class Index>
DA_HD Place place_of(Index voxel, const Shape3& s) {
  const Index row = voxel / Index(s.w), z = row / Index(s.h);
  return {int32_t(z), int32_t(row - z * Index(s.h)), int32_t(voxel - row * Index(s.w))};
}

// Corner-aligned map from an output axis onto an input axis: the ends meet exactly, and an output
// axis of size 1 sits at the centre (normalised coordinate 0).
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

// Strides from the first voxel of a corner pair to the second; 0 on an axis of size 1.
template <class Index>
struct Steps {
  Index z, y, x;
  DA_HD explicit Steps(const Shape3& s)
      : z(s.d > 1 ? Index(s.h) * Index(s.w) : Index(0)),
        y(s.h > 1 ? Index(s.w) : Index(0)),
        x(s.w > 1) {}
};

// Products of the weights by z and y, and the weights by x: all that a value needs.
template <class T>
struct Weights {
  T zy00, zy01, zy10, zy11, x0, x1;
};

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
