// Rows of a field on the CPU: the nine components of the columns of a block of voxels, as arrays.
#pragma once

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
};

template <class S, class T>
void subtract(const S* __restrict low, const S* __restrict high, T scale, T unit, int n,
              T* __restrict out) {
  for (int i = 0; i < n; ++i) out[i] = (load(high[i]) - load(low[i])) * scale + unit;
}

// One row of the field of a batch item.
template <class S>
struct Row {
  using T = Accumulate<S>;
  using Along = Step<T, int64_t>;
  const S* field;
  Shape3 shape;
  int32_t z, y;

  int64_t start() const { return (int64_t(z) * shape.h + y) * shape.w; }

  // Computes the columns of the voxels [x0, x0 + n).
  void read(Difference difference, int32_t x0, int n, Block<T>& block) const {
    const Along along_y(difference, y, shape.h, shape.w);
    const Along along_z(difference, z, shape.d, int64_t(shape.h) * shape.w);
    const Along inner(difference, 1, 3, 1);
    for (int k = 0; k < 3; ++k) {
      const S* p = field + k * shape.voxels() + start() + x0;
      T* out = block.column[k];
      // To have complete vectors, the differences at the ends of a row are first taken as if the
      // row went on in memory, and then computed again. Nothing outside the field is read.
      const int from = p > field ? 0 : 1, to = p + n < field + 3 * shape.voxels() ? n : n - 1;
      const T scale = inner.scale * T(0.5) * T(shape.w - 1);
      subtract(p + from + inner.low, p + from + inner.high, scale, T(0), to - from, out + from);
      if (x0 == 0) edge(difference, 0, p, k, out);
      if (x0 + n == shape.w) edge(difference, shape.w - 1, p + n - 1, k, out + n - 1);
      subtract(p + along_y.low, p + along_y.high, along_y.scale, k == 1 ? along_y.unit : T(0), n,
               block.column[3 + k]);
      subtract(p + along_z.low, p + along_z.high, along_z.scale, k == 2 ? along_z.unit : T(0), n,
               block.column[6 + k]);
    }
  }

 private:
  void edge(Difference difference, int32_t x, const S* p, int k, T* out) const {
    const Along along(difference, x, shape.w, 1);
    subtract(p + along.low, p + along.high, along.scale, k == 0 ? along.unit : T(0), 1, out);
  }
};

}  // namespace deepatlas
