// Sampling of one block of voxels on the CPU: the arithmetic of resample.h in stages that the
// compiler can vectorise (positions, then corners and weights) before the loads and stores that it
// cannot.
#pragma once

#include <algorithm>

#include "blocks.h"
#include "pairs_avx2.h"
#include "resample.h"

namespace deepatlas {
namespace block {

template <class T>
struct Positions {
  alignas(64) T x[kBlock], y[kBlock], z[kBlock];
};

// Corners of a block. offset is -1 where a backward pass must skip the voxel (NaN, or outside for
// nearest).
template <class T>
struct Corners {
  alignas(64) int64_t offset[kBlock];
  alignas(64) int32_t z[kBlock], y[kBlock], x[kBlock];
  alignas(64) T zw0[kBlock], zw1[kBlock], yw0[kBlock], yw1[kBlock], xw0[kBlock], xw1[kBlock];
  alignas(64) T zd0[kBlock], zd1[kBlock], yd0[kBlock], yd1[kBlock], xd0[kBlock], xd1[kBlock];
  alignas(64) T zy00[kBlock], zy01[kBlock], zy10[kBlock],
      zy11[kBlock];  // nearest: the weight in zy00
};

// ---- stages -------------------------------------------------------------------------------------

template <class Src, class T>
void place(const Src& source, const Shape3& out, int64_t b, int64_t n, int count,
           Positions<T>& to) {
  const int64_t line = n / out.w;
  int32_t z = int32_t(line / out.h), y = int32_t(line - int64_t(z) * out.h);
  int32_t x = int32_t(n - line * out.w);
  for (int i = 0; i < count;) {
    const int stretch = std::min(count - i, out.w - x);
    const auto row = source.row(b, z, y);
    T* __restrict px = to.x + i, * __restrict py = to.y + i, * __restrict pz = to.z + i;
    for (int k = 0; k < stretch; ++k) {
      const Vec3<T> v = row(x + k);
      px[k] = v.x;
      py[k] = v.y;
      pz[k] = v.z;
    }
    i += stretch;
    x = 0;
    if (++y == out.h) y = 0, ++z;
  }
}

template <class T>
void flatten(const Shape3& in, int count, Corners<T>& c) {
  if (in.voxels() <= INT32_MAX) {  // 32-bit products vectorise on every machine
    for (int i = 0; i < count; ++i) c.offset[i] = (c.z[i] * in.h + c.y[i]) * in.w + c.x[i];
  } else {
    for (int i = 0; i < count; ++i) c.offset[i] = (int64_t(c.z[i]) * in.h + c.y[i]) * in.w + c.x[i];
  }
}

template <int P, class T>
void locate_axis(const T* __restrict position, int32_t size, int count, int32_t* __restrict base,
                 T* __restrict w0, T* __restrict w1, T* __restrict d0, T* __restrict d1) {
  for (int i = 0; i < count; ++i) {
    const LinearAxis<T> axis = locate_linear<P>(position[i], size);
    base[i] = axis.base;
    w0[i] = axis.w0;
    w1[i] = axis.w1;
    d0[i] = axis.d0;
    d1[i] = axis.d1;
  }
}

template <int P, class T>
void locate_axis(const T* __restrict position, int32_t size, int count, int32_t* __restrict base,
                 T* __restrict weight) {
  for (int i = 0; i < count; ++i) {
    const NearestAxis<T> axis = locate_nearest<P>(position[i], size);
    base[i] = axis.base;
    weight[i] = axis.weight;
  }
}

template <int P, class T>
void stage_linear(const Positions<T>& p, const Shape3& in, int count, Corners<T>& c) {
  locate_axis<P>(p.z, in.d, count, c.z, c.zw0, c.zw1, c.zd0, c.zd1);
  locate_axis<P>(p.y, in.h, count, c.y, c.yw0, c.yw1, c.yd0, c.yd1);
  locate_axis<P>(p.x, in.w, count, c.x, c.xw0, c.xw1, c.xd0, c.xd1);
  for (int i = 0; i < count; ++i) {
    c.zy00[i] = c.zw0[i] * c.yw0[i];
    c.zy01[i] = c.zw0[i] * c.yw1[i];
    c.zy10[i] = c.zw1[i] * c.yw0[i];
    c.zy11[i] = c.zw1[i] * c.yw1[i];
  }
  flatten(in, count, c);
}

template <int P, class T>
void stage_nearest(const Positions<T>& p, const Shape3& in, int count, Corners<T>& c) {
  locate_axis<P>(p.z, in.d, count, c.z, c.zw0);
  locate_axis<P>(p.y, in.h, count, c.y, c.yw0);
  locate_axis<P>(p.x, in.w, count, c.x, c.xw0);
  for (int i = 0; i < count; ++i) c.zy00[i] = c.zw0[i] * c.yw0[i] * c.xw0[i];
  flatten(in, count, c);
}

template <class T>
using Stage = void (*)(const Positions<T>&, const Shape3&, int, Corners<T>&);

template <class T>
Stage<T> stage_of(int mode, int padding) {
  if (mode == kNearest) {
    return padding == kBorder  ? stage_nearest<kBorder, T>
           : padding == kZeros ? stage_nearest<kZeros, T>
                               : stage_nearest<kReflection, T>;
  }
  return padding == kBorder  ? stage_linear<kBorder, T>
         : padding == kZeros ? stage_linear<kZeros, T>
                             : stage_linear<kReflection, T>;
}

// What a backward pass skips.
template <class T>
void mark_skipped(int mode, int count, Corners<T>& c) {
  if (mode == kNearest) {
    for (int i = 0; i < count; ++i) c.offset[i] = c.zy00[i] == T(1) ? c.offset[i] : -1;
  } else {
    for (int i = 0; i < count; ++i) {
      const T check = c.zw0[i] + c.yw0[i] + c.xw0[i];
      c.offset[i] = check == check ? c.offset[i] : -1;
    }
  }
}

// ---- one block, one channel ---------------------------------------------------------------------

// The pairs_ functions treat a multiple of four voxels and return how many; the scalar loops do the
// rest.
template <class S, class T>
int pairs_linear(const S*, const Shape3&, const Corners<T>&, int, S*) {
  return 0;
}
template <class S, class T>
int pairs_gradient(const S*, const S*, const Shape3&, const Corners<T>&, int, Positions<T>&) {
  return 0;
}

#ifdef DEEPATLAS_PAIRS
inline int pairs_linear(const float* volume, const Shape3& in, const Corners<float>& c, int count,
                        float* out) {
  if (in.w == 1) return 0;  // no pair
  const Steps<int64_t> step(in);
  int i = 0;
  for (; i + pairs::kLanes <= count; i += pairs::kLanes) {
    const int64_t* offset = c.offset + i;
    const __m256 sum =
        pairs::blend(pairs::load(volume, offset), pairs::load(volume + step.y, offset),
                     pairs::load(volume + step.z, offset),
                     pairs::load(volume + step.z + step.y, offset), pairs::twice(c.zy00 + i),
                     pairs::twice(c.zy01 + i), pairs::twice(c.zy10 + i), pairs::twice(c.zy11 + i));
    _mm_storeu_ps(out + i, pairs::fold(sum, c.xw0 + i, c.xw1 + i));
  }
  return i;
}

inline int pairs_gradient(const float* volume, const float* grad, const Shape3& in,
                          const Corners<float>& corners, int count, Positions<float>& sum) {
  if (in.w == 1) return 0;
  const Steps<int64_t> step(in);
  const Corners<float>& c = corners;
  int i = 0;
  for (; i + pairs::kLanes <= count; i += pairs::kLanes) {
    const int64_t* offset = c.offset + i;
    const __m256 v00 = pairs::load(volume, offset);
    const __m256 v01 = pairs::load(volume + step.y, offset);
    const __m256 v10 = pairs::load(volume + step.z, offset);
    const __m256 v11 = pairs::load(volume + step.z + step.y, offset);
    const __m256 zw0 = pairs::twice(c.zw0 + i), zw1 = pairs::twice(c.zw1 + i);
    const __m256 zd0 = pairs::twice(c.zd0 + i), zd1 = pairs::twice(c.zd1 + i);
    const __m256 yw0 = pairs::twice(c.yw0 + i), yw1 = pairs::twice(c.yw1 + i);
    const __m256 yd0 = pairs::twice(c.yd0 + i), yd1 = pairs::twice(c.yd1 + i);
    // The two z-levels blended along y, and differentiated along y.
    const __m256 low = _mm256_fmadd_ps(yw1, v01, _mm256_mul_ps(yw0, v00));
    const __m256 high = _mm256_fmadd_ps(yw1, v11, _mm256_mul_ps(yw0, v10));
    const __m256 dlow = _mm256_fmadd_ps(yd1, v01, _mm256_mul_ps(yd0, v00));
    const __m256 dhigh = _mm256_fmadd_ps(yd1, v11, _mm256_mul_ps(yd0, v10));
    const __m256 value = _mm256_fmadd_ps(zw1, high, _mm256_mul_ps(zw0, low));
    const __m256 by_y = _mm256_fmadd_ps(zw1, dhigh, _mm256_mul_ps(zw0, dlow));
    const __m256 by_z = _mm256_fmadd_ps(zd1, high, _mm256_mul_ps(zd0, low));
    const __m128 g = _mm_loadu_ps(grad + i);
    pairs::accumulate(sum.x + i, g, pairs::fold(value, c.xd0 + i, c.xd1 + i));
    pairs::accumulate(sum.y + i, g, pairs::fold(by_y, c.xw0 + i, c.xw1 + i));
    pairs::accumulate(sum.z + i, g, pairs::fold(by_z, c.xw0 + i, c.xw1 + i));
  }
  return i;
}
#endif

template <class S, class T>
void read_linear(const S* volume, const Shape3& in, const Corners<T>& c, int count, S* out) {
  const Steps<int64_t> step(in);
  for (int i = pairs_linear(volume, in, c, count, out); i < count; ++i) {
    const Weights<T> w{c.zy00[i], c.zy01[i], c.zy10[i], c.zy11[i], c.xw0[i], c.xw1[i]};
    store(out + i, interpolate(volume + c.offset[i], step, w));
  }
}

template <class S, class T>
void read_nearest(const S* volume, const Corners<T>& c, int count, S* out) {
  for (int i = 0; i < count; ++i) {
    const T weight = c.zy00[i];
    store(out + i, weight == T(1) ? T(load(volume[c.offset[i]])) : weight);
  }
}

template <class S, class T>
void read_gradient(const S* volume, const S* grad, const Shape3& in, const Corners<T>& c, int count,
                   Positions<T>& sum) {
  const Steps<int64_t> step(in);
  for (int i = pairs_gradient(volume, grad, in, c, count, sum); i < count; ++i) {
    const LinearAxis<T> z{0, c.zw0[i], c.zw1[i], c.zd0[i], c.zd1[i]};
    const LinearAxis<T> y{0, c.yw0[i], c.yw1[i], c.yd0[i], c.yd1[i]};
    const LinearAxis<T> x{0, c.xw0[i], c.xw1[i], c.xd0[i], c.xd1[i]};
    Vec3<T> v{sum.x[i], sum.y[i], sum.z[i]};
    add_position_gradient(volume + c.offset[i], step, z, y, x, T(load(grad[i])), v);
    sum.x[i] = v.x;
    sum.y[i] = v.y;
    sum.z[i] = v.z;
  }
}

// A NaN position has NaN weights, and its gradient is 0 by definition.
template <class T>
void clear_undefined(const Corners<T>& c, int count, Positions<T>& sum) {
  for (int i = 0; i < count; ++i) {
    const T check = c.zw0[i] + c.yw0[i] + c.xw0[i];
    sum.x[i] = check == check ? sum.x[i] : T(0);
    sum.y[i] = check == check ? sum.y[i] : T(0);
    sum.z[i] = check == check ? sum.z[i] : T(0);
  }
}

struct PlainAdd {
  template <class T>
  void operator()(T* p, T value) const {
    *p += value;
  }
};

// Only the z-levels inside [low, high) receive their share: another task owns the rest.
template <class S, class T>
void scatter_linear(T* volume, const S* grad, const Shape3& in, const Corners<T>& c, int count,
                    int32_t low, int32_t high) {
  const Steps<int64_t> step(in);
  for (int i = 0; i < count; ++i) {
    if (c.offset[i] < 0) continue;
    T* p = volume + c.offset[i];
    const T g = load(grad[i]);
    const int32_t z = c.z[i];
    if (z >= low && z < high) {
      scatter_level(p, step, c.zy00[i], c.zy01[i], c.xw0[i], c.xw1[i], g, PlainAdd());
    }
    if (z + 1 >= low && z + 1 < high) {  // never on an axis of size 1, where high is 1
      scatter_level(p + step.z, step, c.zy10[i], c.zy11[i], c.xw0[i], c.xw1[i], g, PlainAdd());
    }
  }
}

template <class S, class T>
void scatter_nearest(T* volume, const S* grad, const Corners<T>& c, int count, int32_t low,
                     int32_t high) {
  for (int i = 0; i < count; ++i) {
    if (c.offset[i] >= 0 && c.z[i] >= low && c.z[i] < high) volume[c.offset[i]] += T(load(grad[i]));
  }
}

}  // namespace block
}  // namespace deepatlas
