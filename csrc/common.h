// Scalar types, the host/device macro and the arithmetic of one axis, which all kernels share on
// the CPU and on CUDA. This file must not include a torch header, because nvcc compiles the .cu
// files alone.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define DA_HD __host__ __device__ __forceinline__
#else
#if defined(__F16C__)
#include <immintrin.h>
#endif
#define DA_HD inline __attribute__((always_inline))
#endif

namespace deepatlas {

enum class Scalar : int { kFloat64, kFloat32, kFloat16, kBFloat16 };
enum Mode : int { kLinear = 0, kNearest = 1 };
enum Padding : int { kBorder = 0, kZeros = 1, kReflection = 2 };

// Storage types of the half precisions. They are loaded and stored, but never computed with.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

// The type that a kernel computes and accumulates in: float64 for float64, otherwise float32.
template <class S>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class S>
using Accumulate = typename AccumulateOf<S>::type;

// How many pieces of `piece` elements hold `count` elements.
DA_HD int64_t pieces_of(int64_t count, int64_t piece) { return (count + piece - 1) / piece; }

// ---- bits of floating-point numbers -------------------------------------------------------------

template <class To, class From>
DA_HD To copy_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the types must have the same size");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

#if defined(__CUDA_ARCH__)
DA_HD float from_bits(uint32_t bits) { return __uint_as_float(bits); }
DA_HD double from_bits(uint64_t bits) { return __longlong_as_double(static_cast<long long>(bits)); }
DA_HD uint32_t to_bits(float value) { return __float_as_uint(value); }
DA_HD uint64_t to_bits(double value) { return static_cast<uint64_t>(__double_as_longlong(value)); }
#else
DA_HD float from_bits(uint32_t bits) { return copy_bits<float>(bits); }
DA_HD double from_bits(uint64_t bits) { return copy_bits<double>(bits); }
DA_HD uint32_t to_bits(float value) { return copy_bits<uint32_t>(value); }
DA_HD uint64_t to_bits(double value) { return copy_bits<uint64_t>(value); }
#endif

// ---- loading and storing ------------------------------------------------------------------------

DA_HD double load(double v) { return v; }
DA_HD float load(float v) { return v; }
DA_HD float load(BFloat16 v) { return from_bits(uint32_t(v.bits) << 16); }
DA_HD float load(Half v) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(v.bits));
#elif defined(__F16C__) && !defined(__CUDACC__)
  return _cvtsh_ss(v.bits);
#else
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t rest = v.bits & 0x7fffu;
  if (rest >= 0x7c00u) return from_bits(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // A subnormal number is an exact multiple of 2^-24.
  if (rest < 0x400u) {
    const float magnitude = float(rest) * from_bits(0x33800000u);
    return sign ? -magnitude : magnitude;
  }
  return from_bits(sign | ((rest << 13) + 0x38000000u));
#endif
}

DA_HD void store(double* p, double v) { *p = v; }
DA_HD void store(float* p, float v) { *p = v; }
DA_HD void store(BFloat16* p, float v) {
  const uint32_t bits = to_bits(v);
  // This rounds to nearest, ties to even.
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p->bits = uint16_t(v == v ? rounded : 0x7fc0u);
}
DA_HD void store(Half* p, float v) {
#if defined(__CUDA_ARCH__)
  p->bits = __half_as_ushort(__float2half_rn(v));
#elif defined(__F16C__) && !defined(__CUDACC__)
  p->bits = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
#else
  const uint32_t bits = to_bits(v);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x477ff000u) {
    // The number rounds to 2^16 or more, which is infinity.
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {
    // The result is subnormal. Adding 1/2 leaves the rounded multiple of 2^-24 in the mantissa.
    half = to_bits(from_bits(rest) + 0.5f) - 0x3f000000u;
  } else {
    half = (rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13;
  }
  p->bits = uint16_t(sign | half);
#endif
}

// Adds without atomics, for functors that take the way of adding as a parameter.
struct PlainAdd {
  template <class T>
  void operator()(T* p, T value) const {
    *p += value;
  }
};

// ---- limits -------------------------------------------------------------------------------------

// Keeps NaN, because every comparison with it is false.
template <class T>
DA_HD T clamp(T x, T low, T high) {
  return x < low ? low : (x > high ? high : x);
}

// Turns NaN into `low`, for values that become an index.
template <class T>
DA_HD T clamp_index(T x, T low, T high) {
  const T lower = x > low ? x : low;
  return lower < high ? lower : high;
}

// Replaces infinity by a large finite value: infinity times the half extent of an axis of size 1,
// which is 0, would be NaN.
template <class T>
DA_HD T finite(T c) {
  return clamp(c, T(-1e9), T(1e9));
}

// ---- one axis of a sample -----------------------------------------------------------------------

// One axis of a linear sample: the weights of the voxels `base` and `base + 1` (on an axis of size
// 1 the same voxel twice), and the derivatives of the weights by the position in voxels. Both
// voxels always exist, so no sample reads outside the volume, whatever the position. A NaN position
// gives NaN weights.
template <class T>
struct LinearAxis {
  int32_t base;
  T w0, w1;
  T d0, d1;
};

// One axis of a nearest sample. The weight is 1 inside, 0 outside (with zeros padding), and NaN for
// a NaN position.
template <class T>
struct NearestAxis {
  int32_t base;
  T weight;
};

// Mirrors a position at the centres of the first and the last voxel. `slope` becomes 1, or -1 where
// the mirrored axis runs backwards.
template <class T>
DA_HD T reflect(T x, T last, T& slope) {
  const T distance = std::fabs(x);
  const T turns = std::floor(distance / last);
  const T rest = distance - turns * last;
  const bool odd = turns - T(2) * std::floor(turns * T(0.5)) != T(0);
  slope = (x < T(0)) != odd ? T(-1) : T(1);
  const T mirrored = odd ? last - rest : rest;
  return last > T(0) ? mirrored : x * T(0);
}

// The position after padding. `slope` becomes the derivative of the result by the position. As in
// PyTorch it is 0 where the position is clamped, including the two ends of the range.
template <int P, class T>
DA_HD T pad(T x, T last, T& slope) {
  slope = T(1);
  if (P == kZeros) return clamp(x, T(-2), last + T(2));
  if (P == kReflection) x = reflect(x, last, slope);
  slope = (x <= T(0)) | (x >= last) ? T(0) : slope;
  return clamp(x, T(0), last);
}

template <int P, class T>
DA_HD LinearAxis<T> locate_linear(T x, int32_t size) {
  T slope;
  x = pad<P>(x, T(size - 1), slope);
  LinearAxis<T> axis;
  axis.base = int32_t(clamp_index(x, T(0), T(size > 1 ? size - 2 : 0)));
  const T f = x - T(axis.base);
  if (P != kZeros) {
    axis.w0 = T(1) - f;
    axis.w1 = f;
    axis.d0 = -slope;
    axis.d1 = slope;
    return axis;
  }
  // Here f lies in [-2, 3]. Outside [0, 1] the pair is at the border, and one or both of its voxels
  // are too far away to have a weight.
  const T left = f < T(0) ? T(1) + f : T(1) - f;
  const T right = f > T(1) ? T(2) - f : f;
  axis.w0 = left < T(0) ? T(0) : left;
  axis.w1 = right < T(0) ? T(0) : right;
  const T rising = (f >= T(-1)) & (f < T(0)) ? T(1) : T(0);
  const T inside = (f >= T(0)) & (f < T(1)) ? T(1) : T(0);
  const T falling = (f >= T(1)) & (f < T(2)) ? T(1) : T(0);
  axis.d0 = rising - inside;
  axis.d1 = inside - falling;
  // On an axis of size 1 the second voxel is the first one.
  if (size == 1) axis.w1 = T(0);
  return axis;
}

template <int P, class T>
DA_HD NearestAxis<T> locate_nearest(T x, int32_t size) {
  T slope;
  const T last = T(size - 1);
  // Like PyTorch, this rounds halves to even.
  const T r = std::nearbyint(pad<P>(x, last, slope));
  const T inside = (r >= T(0)) & (r <= last) ? T(1) : T(0);
  return {int32_t(clamp_index(r, T(0), last)), r == r ? inside : r};
}

// The same for a padding that is only known at run time, but is the same for all voxels.
template <class T>
DA_HD LinearAxis<T> locate_linear(int padding, T x, int32_t size) {
  if (padding == kBorder) return locate_linear<kBorder>(x, size);
  if (padding == kZeros) return locate_linear<kZeros>(x, size);
  return locate_linear<kReflection>(x, size);
}

template <class T>
DA_HD NearestAxis<T> locate_nearest(int padding, T x, int32_t size) {
  if (padding == kBorder) return locate_nearest<kBorder>(x, size);
  if (padding == kZeros) return locate_nearest<kZeros>(x, size);
  return locate_nearest<kReflection>(x, size);
}

}  // namespace deepatlas
