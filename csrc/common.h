// Scalar types, host/device macro and the arithmetic of one axis, shared by every kernel on CPU and
// CUDA. No torch header may enter this file: the .cu files compile with nvcc alone.
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

// Storage types of the half precisions: only loaded and stored, never computed with.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

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

DA_HD float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

DA_HD uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

DA_HD double load(double v) { return v; }
DA_HD float load(float v) { return v; }
DA_HD float load(BFloat16 v) { return bits_to_float(uint32_t(v.bits) << 16); }
DA_HD float load(Half v) {
#if defined(__CUDA_ARCH__)
  return __half2float(__ushort_as_half(v.bits));
#elif defined(__F16C__) && !defined(__CUDACC__)
  return _cvtsh_ss(v.bits);
#else
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t rest = v.bits & 0x7fffu;
  if (rest >= 0x7c00u) return bits_to_float(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest < 0x400u) {  // subnormal: an exact multiple of 2^-24
    const float magnitude = float(rest) * bits_to_float(0x33800000u);
    return sign ? -magnitude : magnitude;
  }
  return bits_to_float(sign | ((rest << 13) + 0x38000000u));
#endif
}

DA_HD void store(double* p, double v) { *p = v; }
DA_HD void store(float* p, float v) { *p = v; }
DA_HD void store(BFloat16* p, float v) {
  const uint32_t bits = float_to_bits(v);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest even
  p->bits = uint16_t(v == v ? rounded : 0x7fc0u);
}
DA_HD void store(Half* p, float v) {
#if defined(__CUDA_ARCH__)
  p->bits = __half_as_ushort(__float2half_rn(v));
#elif defined(__F16C__) && !defined(__CUDACC__)
  p->bits = _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
#else
  const uint32_t bits = float_to_bits(v);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t rest = bits & 0x7fffffffu;
  uint32_t half;
  if (rest > 0x7f800000u) {
    half = 0x7e00u;
  } else if (rest >= 0x477ff000u) {  // rounds to 2^16 or more
    half = 0x7c00u;
  } else if (rest < 0x38800000u) {  // subnormal: adding 1/2 leaves the rounded multiple of 2^-24
    half = float_to_bits(bits_to_float(rest) + 0.5f) - 0x3f000000u;
  } else {
    half = (rest + 0xfffu + ((rest >> 13) & 1u) - 0x38000000u) >> 13;
  }
  p->bits = uint16_t(sign | half);
#endif
}

// Keeps NaN: every comparison with it is false.
template <class T>
DA_HD T clamp(T x, T low, T high) {
  return x < low ? low : (x > high ? high : x);
}

// Sends NaN to `low`: for values about to become an index.
template <class T>
DA_HD T clamp_index(T x, T low, T high) {
  const T lower = x > low ? x : low;
  return lower < high ? lower : high;
}

// Infinity times the half extent 0 of an axis of size 1 would be NaN; a finite far value is not.
template <class T>
DA_HD T finite(T c) {
  return clamp(c, T(-1e9), T(1e9));
}

// One axis of a linear sample: voxels `base` and `base + 1` (the same voxel twice on an axis of
// size 1) with their weights, and the derivatives of the weights by the voxel position. Both voxels
// always exist, so that no sample ever reads outside the volume, whatever the position; a NaN
// position gives NaN weights.
template <class T>
struct LinearAxis {
  int32_t base;
  T w0, w1;
  T d0, d1;
};

// One axis of a nearest sample: weight 1 inside, 0 outside (zeros padding), NaN for a NaN position.
template <class T>
struct NearestAxis {
  int32_t base;
  T weight;
};

// Mirror at the centres of the first and last voxel; `slope` is the sign of the mirrored
// derivative.
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

// Position after padding; `slope` becomes the derivative of the result by the position, with
// PyTorch's convention that a clamped position, its ends included, has none.
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
  // f lies in [-2, 3]: the pair stands at the edge and one or both of its voxels may be out of
  // reach.
  const T left = f < T(0) ? T(1) + f : T(1) - f;
  const T right = f > T(1) ? T(2) - f : f;
  axis.w0 = left < T(0) ? T(0) : left;
  axis.w1 = right < T(0) ? T(0) : right;
  const T rising = (f >= T(-1)) & (f < T(0)) ? T(1) : T(0);
  const T inside = (f >= T(0)) & (f < T(1)) ? T(1) : T(0);
  const T falling = (f >= T(1)) & (f < T(2)) ? T(1) : T(0);
  axis.d0 = rising - inside;
  axis.d1 = inside - falling;
  if (size == 1) axis.w1 = T(0);  // its second voxel is the first one
  return axis;
}

template <int P, class T>
DA_HD NearestAxis<T> locate_nearest(T x, int32_t size) {
  T slope;
  const T last = T(size - 1);
  const T r = std::nearbyint(pad<P>(x, last, slope));  // half to even, as PyTorch
  const T inside = (r >= T(0)) & (r <= last) ? T(1) : T(0);
  return {int32_t(clamp_index(r, T(0), last)), r == r ? inside : r};
}

// The same with the padding known only at run time (uniform over a kernel).
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
