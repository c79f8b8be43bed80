// Vectors of float64 in the width of the processor, for loops over a row that the compiler does not
// vectorise by itself: with running sums along the row, or with a fast reciprocal root. They use
// the vector extensions of g++ and clang, and intrinsics where these have no words for an
// instruction.
#pragma once

#include <cstring>

#include "common.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace deepatlas {

#if defined(__AVX512F__)
constexpr int kDoubles = 8;
#elif defined(__AVX__)
constexpr int kDoubles = 4;
#else
constexpr int kDoubles = 2;
#endif

typedef double Doubles __attribute__((vector_size(8 * kDoubles)));
typedef int64_t Integers __attribute__((vector_size(8 * kDoubles)));
typedef float Floats __attribute__((vector_size(4 * kDoubles)));

// The size of a row that is filled up to whole vectors.
inline int32_t whole_vectors(int32_t width) {
  return (width + kDoubles - 1) / kDoubles * kDoubles;
}

// ---- loading and storing ------------------------------------------------------------------------

DA_HD Doubles get(const double* p) {
  Doubles v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
DA_HD void put(double* p, Doubles v) { std::memcpy(p, &v, sizeof(v)); }

DA_HD Doubles widen(const double* p) { return get(p); }
#if defined(__AVX512F__)
// From these, g++ makes two vectors of half the width and joins them, if it is left to itself.
DA_HD Doubles widen(const float* p) {
  return Doubles(_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p)));
}
DA_HD Doubles widen(const Half* p) {
  return Doubles(_mm512_maskz_cvtps_pd(0xff, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p))));
}
#else
DA_HD Doubles widen(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Doubles);
}
#endif
template <class S>
DA_HD Doubles widen(const S* p) {
  float v[kDoubles];
  for (int i = 0; i < kDoubles; ++i) v[i] = load(p[i]);
  return widen(v);
}

DA_HD void narrow(double* p, Doubles v) { put(p, v); }
#if defined(__AVX512F__)
DA_HD void narrow(float* p, Doubles v) {
  _mm256_storeu_ps(p, _mm512_maskz_cvtpd_ps(0xff, __m512d(v)));
}
DA_HD void narrow(Half* p, Doubles v) {
  const __m256 f = _mm512_maskz_cvtpd_ps(0xff, __m512d(v));
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(f, _MM_FROUND_TO_NEAREST_INT));
}
#else
DA_HD void narrow(float* p, Doubles v) {
  const Floats f = __builtin_convertvector(v, Floats);
  std::memcpy(p, &f, sizeof(f));
}
#endif
template <class S>
DA_HD void narrow(S* p, Doubles v) {
  float f[kDoubles];
  narrow(f, v);
  for (int i = 0; i < kDoubles; ++i) store(p + i, f[i]);
}

// A whole vector of a row, or the values that are left at its end. The others are 0 and are not
// stored. The size of a whole vector is known to the compiler, which saves the branches.
struct Whole {
  static constexpr int size = kDoubles;
  DA_HD Doubles keep(Doubles v) const { return v; }
};
struct Rest {
  int size;
  DA_HD Doubles keep(Doubles v) const {
    double values[kDoubles];
    put(values, v);
    for (int i = size; i < kDoubles; ++i) values[i] = 0;
    return get(values);
  }
};

// For lambdas that must not be called where a loop would do.
#define DA_INLINE_LAMBDA __attribute__((always_inline))

// Calls body(x, Whole or Rest) for the vectors of a row.
template <class Body>
DA_HD void for_each_vector(int32_t width, const Body& body) {
  int32_t x = 0;
  for (; x + kDoubles <= width; x += kDoubles) body(x, Whole{});
  if (x < width) body(x, Rest{width - x});
}

template <class S>
DA_HD Doubles widen(const S* p, Whole) {
  return widen(p);
}
template <class S>
DA_HD Doubles widen(const S* p, Rest rest) {
  S v[kDoubles] = {};
  std::memcpy(v, p, size_t(rest.size) * sizeof(S));
  return widen(v);
}
template <class S>
DA_HD void narrow(S* p, Doubles v, Whole) {
  narrow(p, v);
}
template <class S>
DA_HD void narrow(S* p, Doubles v, Rest rest) {
  S part[kDoubles];
  narrow(part, v);
  std::memcpy(p, part, size_t(rest.size) * sizeof(S));
}

// ---- choosing -----------------------------------------------------------------------------------

DA_HD Doubles every(double x) { return x - Doubles{}; }
DA_HD Doubles choose(Integers which, Doubles yes, Doubles no) { return which ? yes : no; }
// At least `low`. Keeps NaN.
DA_HD Doubles raised(Doubles x, double low) { return choose(x < low, every(low), x); }

#if defined(__clang__)
#define DA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define DA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Integers{__VA_ARGS__})
#endif

// ---- sums within a vector -----------------------------------------------------------------------

#if defined(__AVX512F__)
// The values of v, moved up by kPlaces, behind zeros.
template <int kPlaces>
DA_HD Doubles moved(Doubles v) {
  const __m512i zero = _mm512_setzero_si512(), bits = _mm512_castpd_si512(__m512d(v));
  return Doubles(_mm512_castsi512_pd(_mm512_maskz_alignr_epi64(0xff, bits, zero, 8 - kPlaces)));
}
#endif

// The sums of the values up to each.
DA_HD Doubles running_sums(Doubles v) {
#if defined(__AVX512F__)
  v += moved<1>(v);
  v += moved<2>(v);
  v += moved<4>(v);
#elif defined(__AVX__)
  v += DA_SHUFFLE(v, Doubles{}, 4, 0, 1, 2);
  v += DA_SHUFFLE(v, Doubles{}, 4, 5, 0, 1);
#else
  v += DA_SHUFFLE(v, Doubles{}, 2, 0);
#endif
  return v;
}

// The last value, in every place.
DA_HD Doubles last_of(Doubles v) {
#if defined(__AVX512F__)
  const __m512i sevens = _mm512_set1_epi64(7);
  return Doubles(_mm512_maskz_permutexvar_pd(0xff, sevens, __m512d(v)));
#elif defined(__AVX__)
  return DA_SHUFFLE(v, v, 3, 3, 3, 3);
#else
  return DA_SHUFFLE(v, v, 1, 1);
#endif
}

DA_HD double sum_of(Doubles v) {
  double values[kDoubles], sum = 0;
  put(values, v);
  for (const double value : values) sum += value;
  return sum;
}

// ---- 1 / sqrt(v) --------------------------------------------------------------------------------

#if defined(__AVX512F__)
// Where a root and a division take 25 cycles, an estimate takes one. With y = (1 + d) / sqrt(v) and
// e = 1 - v y^2, the result is y (1 - e)^(-1/2); the estimate leaves |e| < 2^-13, so that the terms
// up to e^3 give the last digits of float64.
DA_HD Doubles inverse_root(Doubles v) {
  const Doubles y = Doubles(_mm512_maskz_rsqrt14_pd(0xff, __m512d(v)));
  const Doubles e = 1.0 - v * y * y;
  return y + y * e * (0.5 + e * (0.375 + e * 0.3125));
}
#elif defined(__AVX__)
DA_HD Doubles inverse_root(Doubles v) { return 1.0 / Doubles(_mm256_sqrt_pd(__m256d(v))); }
#elif defined(__SSE2__)
DA_HD Doubles inverse_root(Doubles v) { return 1.0 / Doubles(_mm_sqrt_pd(__m128d(v))); }
#else
DA_HD Doubles inverse_root(Doubles v) {
  double values[kDoubles];
  put(values, v);
  for (double& value : values) value = 1 / std::sqrt(value);
  return get(values);
}
#endif

}  // namespace deepatlas
