// The fast path of resample.cpp and resize.cpp for float32 on x86 processors with AVX2. The two
// voxels of a pair along x are neighbours in memory, so one load of 8 bytes reads both, and the
// pairs of four output voxels fill a vector. The sums are those of interpolate() and
// add_position_gradient().
#pragma once

#if defined(__AVX2__) && defined(__FMA__)
#define DEEPATLAS_PAIRS 1

#include <immintrin.h>

#include <cstdint>

namespace deepatlas {
namespace pairs {

// The number of output voxels that each function below handles at once.
constexpr int kLanes = 4;

inline __m128 load_two(const float* p, int64_t first, int64_t second) {
  const __m128 low = _mm_castsi128_ps(_mm_loadu_si64(p + first));
  return _mm_loadh_pi(low, reinterpret_cast<const __m64*>(p + second));
}

// The pairs (p[o], p[o + 1]) for four offsets o.
inline __m256 load(const float* p, const int64_t* offset) {
  return _mm256_set_m128(load_two(p, offset[2], offset[3]), load_two(p, offset[0], offset[1]));
}

// From a b c d to a a b b c c d d.
inline __m256 twice(__m128 w) {
  const __m256i index = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
  return _mm256_permutevar8x32_ps(_mm256_castps128_ps256(w), index);
}
inline __m256 twice(const float* w) { return twice(_mm_loadu_ps(w)); }

// The weighted sum of each pair, with weights for the left and for the right voxels.
inline __m128 fold(__m256 pairs, const float* left, const float* right) {
  const __m128 low = _mm256_castps256_ps128(pairs), high = _mm256_extractf128_ps(pairs, 1);
  const __m128 first = _mm_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0));
  const __m128 second = _mm_shuffle_ps(low, high, _MM_SHUFFLE(3, 1, 3, 1));
  return _mm_fmadd_ps(_mm_loadu_ps(right), second, _mm_mul_ps(_mm_loadu_ps(left), first));
}

// The sum of four vectors with weights.
inline __m256 blend(__m256 a, __m256 b, __m256 c, __m256 d, __m256 wa, __m256 wb, __m256 wc,
                    __m256 wd) {
  return _mm256_fmadd_ps(wd, d,
                         _mm256_fmadd_ps(wc, c, _mm256_fmadd_ps(wb, b, _mm256_mul_ps(wa, a))));
}

// Adds g * value to four sums.
inline void accumulate(float* sum, __m128 g, __m128 value) {
  _mm_storeu_ps(sum, _mm_fmadd_ps(g, value, _mm_loadu_ps(sum)));
}

}  // namespace pairs
}  // namespace deepatlas

#endif  // AVX2 and FMA
