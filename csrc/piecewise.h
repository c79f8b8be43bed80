// Piecewise linear curves: the arithmetic of one value, for the CPU and for CUDA.
#pragma once

#include "kernels.h"

namespace deepatlas {

template <class T>
struct Segment {
  T knot, value, slope;
};

// The curve in the type that is computed in. It is passed to a kernel by value.
template <class T>
struct Curve {
  int segments;
  Segment<T> segment[kMostSegments];

  explicit Curve(const PiecewiseArgs& a) : segments(a.segments) {
    for (int i = 0; i < segments; ++i) {
      segment[i] = {T(a.knot[i]), T(a.value[i]), T(a.slope[i])};
    }
  }
  // A loop that selects has no branch, unlike a search. A NaN stays in the first segment.
  DA_HD T value(T x) const {
    Segment<T> s = segment[0];
    for (int i = 1; i < segments; ++i) {
      const bool above = x > segment[i].knot;
      s.knot = above ? segment[i].knot : s.knot;
      s.value = above ? segment[i].value : s.value;
      s.slope = above ? segment[i].slope : s.slope;
    }
    return s.value + s.slope * (x - s.knot);
  }
  DA_HD T slope(T x) const {
    T slope = segment[0].slope;
    for (int i = 1; i < segments; ++i) slope = x > segment[i].knot ? segment[i].slope : slope;
    return slope;
  }
};

template <class S, class Index>
struct PiecewiseForward {
  using T = Accumulate<S>;
  Curve<T> curve;
  const S* source;
  S* target;
  explicit PiecewiseForward(const PiecewiseArgs& a)
      : curve(a), source(static_cast<const S*>(a.source)), target(static_cast<S*>(a.target)) {}
  DA_HD void operator()(Index i) const { store(target + i, curve.value(load(source[i]))); }
};

template <class S, class Index>
struct PiecewiseBackward {
  using T = Accumulate<S>;
  Curve<T> curve;
  const S *source, *grad;
  S* target;
  explicit PiecewiseBackward(const PiecewiseArgs& a)
      : curve(a),
        source(static_cast<const S*>(a.source)),
        grad(static_cast<const S*>(a.grad)),
        target(static_cast<S*>(a.target)) {}
  DA_HD void operator()(Index i) const {
    store(target + i, load(grad[i]) * curve.slope(load(source[i])));
  }
};

}  // namespace deepatlas
