// Sampling of one block of voxels on the CPU: the arithmetic of resample.h in stages. First come
// the positions and then the corners and weights, which the compiler can vectorise, and at last the
// loads and stores, which it cannot.
#pragma once

#include <algorithm>

#include "blocks.h"
#include "pairs_avx2.h"
#include "resample.h"

namespace deepatlas {
namespace block {

// Positions in voxels of the volume, or gradients by them.
template <class T>
struct Positions {
  alignas(64) T x[kBlockVoxels], y[kBlockVoxels], z[kBlockVoxels];
};

// The cells of a block: the first corner, the weights of both corners along each axis and their
// derivatives, and the products of the weights along z and y. In nearest mode, zy00 is the weight
// of the voxel. `offset` is -1 where a backward pass must skip the voxel: for a NaN position and,
// in nearest mode, outside the volume.
template <class T>
struct Corners {
  template <class U>
  using Array = U[kBlockVoxels];

  alignas(64) Array<int64_t> offset;
  alignas(64) Array<int32_t> z, y, x;
  alignas(64) Array<T> zw0, zw1, yw0, yw1, xw0, xw1;
  alignas(64) Array<T> zd0, zd1, yd0, yd1, xd0, xd1;
  alignas(64) Array<T> zy00, zy01, zy10, zy11;
};

// ---- stages -------------------------------------------------------------------------------------

// The positions of the voxels of a block.
template <class Src, class T>
void place(const Src& source, const Shape3& out, int64_t b, int64_t n, int count,
           Positions<T>& to) {
  for_each_row_part(out, n, count, [&](int32_t z, int32_t y, int32_t x, int first, int part) {
    const auto row = source.row(b, z, y);
    T* __restrict px = to.x + first, * __restrict py = to.y + first, * __restrict pz = to.z + first;
    for (int k = 0; k < part; ++k) {
      const Vec3<T> v = row(x + k);
      px[k] = v.x;
      py[k] = v.y;
      pz[k] = v.z;
    }
  });
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
  flatten(in, c.z, c.y, c.x, count, c.offset);
}

template <int P, class T>
void stage_nearest(const Positions<T>& p, const Shape3& in, int count, Corners<T>& c) {
  locate_axis<P>(p.z, in.d, count, c.z, c.zw0);
  locate_axis<P>(p.y, in.h, count, c.y, c.yw0);
  locate_axis<P>(p.x, in.w, count, c.x, c.xw0);
  for (int i = 0; i < count; ++i) c.zy00[i] = c.zw0[i] * c.yw0[i] * c.xw0[i];
  flatten(in, c.z, c.y, c.x, count, c.offset);
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

// Sets the offsets of the voxels that a backward pass must skip to -1.
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

// The pairs_ functions handle a multiple of four voxels and return how many. The scalar loops
// handle the others.
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
  // On an axis of size 1 there are no pairs.
  if (in.w == 1) return 0;
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
    // The two z-levels interpolated along y, and their derivatives along y.
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

// Sets the gradient of voxels with a NaN position, whose weights are NaN, to 0.
template <class T>
void clear_undefined(const Corners<T>& c, int count, Positions<T>& sum) {
  for (int i = 0; i < count; ++i) {
    const T check = c.zw0[i] + c.yw0[i] + c.xw0[i];
    sum.x[i] = check == check ? sum.x[i] : T(0);
    sum.y[i] = check == check ? sum.y[i] : T(0);
    sum.z[i] = check == check ? sum.z[i] : T(0);
  }
}

// Scatters into the z-levels [low, high) only, because other tasks own the others.
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
    // This is false on an axis of size 1, where high is at most 1.
    if (z + 1 >= low && z + 1 < high) {
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
