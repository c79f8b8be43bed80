// Rows of a field on the CPU: the nine components of the columns of a block of voxels, as arrays, and
// the stages that compute with them. Every stage is a loop of its own with few operations, because a
// processor looks only some hundred operations ahead: in one long loop it would wait for the roots
// and divisions of a voxel before it begins the next ones.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "jacobian.h"
#include "rows.h"

namespace deepatlas {

// The components of the columns of a block, three for each column.
template <class T>
struct Block {
  alignas(64) T column[9][kRowVoxels];
  DA_HD Columns<T> columns(int i) const {
    return {{column[0][i], column[1][i], column[2][i]},
            {column[3][i], column[4][i], column[5][i]},
            {column[6][i], column[7][i], column[8][i]}};
  }
  // Replaces the columns by those of the identity where the voxel must not count.
  void hold(const T* __restrict weight, int n) {
    for (int k = 0; k < 9; ++k) {
      T* __restrict values = column[k];
      const T unit = k % 4 == 0 ? T(1) : T(0);
      for (int i = 0; i < n; ++i) values[i] = weight[i] > T(0) ? values[i] : unit;
    }
  }
};

// The frames of a block.
template <class T>
struct Frames {
  alignas(64) T det[kRowVoxels], unit_det[kRowVoxels], volume[kRowVoxels];
  alignas(64) T inverse_a[kRowVoxels], inverse_b[kRowVoxels], inverse_c[kRowVoxels];

  void compute(const Block<T>& block, int n, T eps) {
    for (int i = 0; i < n; ++i) {
      const Columns<T> m = block.columns(i);
      const Vec3<T> squared = squared_lengths(m);
      det[i] = determinant(m);
      inverse_a[i] = squared.x;
      inverse_b[i] = squared.y;
      inverse_c[i] = squared.z;
    }
    finish(n, eps);
  }
  // Whether PlainLogarithm can take all determinants. Nearly every block is of this kind.
  bool plain(int n, T eps) const {
    int32_t other = 0;
    for (int i = 0; i < n; ++i) {
      const T least = det[i] < unit_det[i] ? det[i] : unit_det[i];
      const T most = det[i] > unit_det[i] ? det[i] : unit_det[i];
      // Also false for NaN, in which case both may be the other determinant.
      other |= !(least >= eps) | !(most < kInfinity<T>) | !(det[i] == det[i]);
    }
    return other == 0;
  }
  DA_HD Frame<T> operator[](int i) const {
    Frame<T> frame;
    frame.det = det[i];
    frame.unit_det = unit_det[i];
    frame.volume = volume[i];
    frame.inverse = {inverse_a[i], inverse_b[i], inverse_c[i]};
    return frame;
  }

 private:
  // Everything else from the determinants, and from the squared lengths in the place of `inverse`.
  void finish(int n, T eps) {
    for (int i = 0; i < n; ++i) {
      const Frame<T> frame(det[i], {inverse_a[i], inverse_b[i], inverse_c[i]}, eps);
      unit_det[i] = frame.unit_det;
      volume[i] = frame.volume;
      inverse_a[i] = frame.inverse.x;
      inverse_b[i] = frame.inverse.y;
      inverse_c[i] = frame.inverse.z;
    }
  }
};

#if defined(__AVX512F__)
// Three roots and a division of 16 voxels take 36 cycles, during which the divider can do nothing
// else. The estimate of an inverse root and a Newton step, after which its error is one unit in the
// last place, take five.
inline __m512 inverse_root(__m512 x) {
  const __m512 y = _mm512_rsqrt14_ps(x), half = _mm512_set1_ps(0.5f);
  const __m512 rest = _mm512_fnmadd_ps(_mm512_mul_ps(_mm512_mul_ps(x, half), y), y, half);
  return _mm512_fmadd_ps(y, rest, y);
}

// 1 / the lengths of 16 columns, and in the place of their squares the inverse squares: see Frame.
inline __m512 invert_lengths(float* squared, __m512 least) {
  const __m512 x = _mm512_load_ps(squared), most = _mm512_set1_ps(std::numeric_limits<float>::max());
  // Both keep NaN. An infinite square counts as the largest number.
  const __m512 inverse = inverse_root(_mm512_min_ps(most, _mm512_max_ps(least, x)));
  const __mmask16 full = _mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ);
  _mm512_store_ps(squared, _mm512_maskz_mul_ps(full, inverse, inverse));
  return inverse;
}

template <>
inline void Frames<float>::finish(int n, float eps) {
  const __m512 least = _mm512_set1_ps(eps * eps);
  // The arrays have complete vectors.
  for (int i = 0; i < n; i += 16) {
    const __m512 a = invert_lengths(inverse_a + i, least), b = invert_lengths(inverse_b + i, least),
                 c = invert_lengths(inverse_c + i, least);
    const __m512 product = _mm512_mul_ps(_mm512_mul_ps(a, b), c);
    _mm512_store_ps(volume + i, product);
    _mm512_store_ps(unit_det + i, _mm512_mul_ps(_mm512_load_ps(det + i), product));
  }
}
#endif

// Calls f(y, x, n) for the blocks of the rows [first, last) of a plane. A block is a part of one row
// that begins at voxel x, or it is several rows away from the borders of the plane; then x is 0.
template <class F>
void in_row_blocks(const Shape3& s, int32_t first, int32_t last, const F& f) {
  for (int32_t y = first; y < last;) {
    const int32_t inner = std::min(last, s.h - 1) - y;
    const int32_t rows = y == 0 ? 1 : std::max(1, std::min(kRowVoxels / s.w, inner));
    if (rows > 1) {
      f(y, 0, int(rows * s.w));
    } else {
      in_blocks(s.w, [&](int32_t x, int n) { f(y, x, n); });
    }
    y += rows;
  }
}

// The field of a batch item.
template <class S>
struct FieldRows {
  using T = Accumulate<S>;
  using Along = Step<T, int64_t>;
  const S* field;
  Shape3 shape;

  FieldRows(const JacobianArgs& a, int64_t item)
      : field(static_cast<const S*>(a.field) + item * 3 * a.shape.voxels()), shape(a.shape) {}

  int64_t voxel(int32_t z, int32_t y, int32_t x) const {
    return (int64_t(z) * shape.h + y) * shape.w + x;
  }

  // Computes the columns of a block of plane z: see in_row_blocks.
  void read(Difference difference, int32_t z, int32_t y, int32_t x0, int n, Block<T>& block) const {
    const Along along_y(difference, y, shape.h, shape.w);
    const Along along_z(difference, z, shape.d, int64_t(shape.h) * shape.w);
    Along along_x(difference, 1, 3, 1);
    along_x.scale *= T(0.5) * T(shape.w - 1);
    const Along start(difference, 0, shape.w, 1), end(difference, shape.w - 1, shape.w, 1);
    for (int k = 0; k < 3; ++k) {
      const S* p = field + k * shape.voxels() + voxel(z, y, x0);
      T* out = block.column[k];
      // To have complete vectors, the differences at the ends of a row are first taken as if the
      // row went on in memory, and then computed again. Nothing outside the field is read.
      const int from = p > field ? 0 : 1, to = p + n < field + 3 * shape.voxels() ? n : n - 1;
      subtract(p, along_x, T(0), from, to, out);
      for (int i = x0 > 0 ? shape.w - x0 : 0; i < n; i += shape.w) {
        out[i] = one(p + i, start, k == 0);
      }
      for (int i = shape.w - 1 - x0; i < n; i += shape.w) out[i] = one(p + i, end, k == 0);
      subtract(p, along_y, k == 1 ? along_y.unit : T(0), 0, n, block.column[3 + k]);
      subtract(p, along_z, k == 2 ? along_z.unit : T(0), 0, n, block.column[6 + k]);
    }
  }

 private:
  static T one(const S* p, const Along& along, bool own) {
    return (load(p[along.high]) - load(p[along.low])) * along.scale + (own ? along.unit : T(0));
  }
  static void subtract(const S* p, const Along& along, T unit, int from, int to,
                       T* __restrict out) {
    const S* __restrict low = p + along.low;
    const S* __restrict high = p + along.high;
    const T scale = along.scale;
    for (int i = from; i < to; ++i) out[i] = (load(high[i]) - load(low[i])) * scale + unit;
  }
};

}  // namespace deepatlas
