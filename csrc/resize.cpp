// Resizing on the CPU, axis by axis. Along z and y it interpolates between complete rows, which are
// contiguous and vectorise. Only the last axis needs a table of indices. Where the channels lie beside
// each other, a row is that much longer, and along x whole voxels are interpolated.
#include "resize.h"

#include <algorithm>
#include <type_traits>
#include <vector>

#include "pairs_avx2.h"

namespace deepatlas {
namespace {

// The linear axis of every output index. `step` is the offset from the first to the second voxel of
// a pair: 1, or 0 on an axis of size 1.
template <class T>
struct AxisTable {
  std::vector<int64_t> base;
  std::vector<T> w0, w1;
  int32_t step;

  AxisTable(int32_t in, int32_t out) : base(out), w0(out), w1(out), step(in > 1) {
    const AxisMap<T> map(in, out);
    for (int32_t i = 0; i < out; ++i) {
      const LinearAxis<T> axis = locate_linear<kBorder>(map(i), in);
      base[i] = axis.base;
      w0[i] = axis.w0;
      w1[i] = axis.w1;
    }
  }
};

// The adjoint of an AxisTable: for each input index, the outputs [begin, begin + count) that depend
// on it, and their weights. The weights are padded with zeros to `most` for each index, and the
// index is the last axis of their array, so that the last axis of the volume vectorises.
template <class T>
struct AdjointTable {
  std::vector<int32_t> begin, count;
  std::vector<T> weight;  // [most, in]
  int32_t most = 0;

  AdjointTable(int32_t in, int32_t out) : begin(in, 0), count(in, 0) {
    const AxisTable<T> table(in, out);
    const auto visit = [&](auto&& f) {
      for (int32_t i = 0; i < out; ++i) {
        f(int32_t(table.base[i]), i, table.w0[i]);
        if (table.step > 0) f(int32_t(table.base[i]) + 1, i, table.w1[i]);
      }
    };
    // Positions increase, so all outputs between the first and the last that depend on an index do.
    visit([&](int32_t j, int32_t i, T) {
      if (count[j] == 0) begin[j] = i;
      count[j] = i - begin[j] + 1;
    });
    for (const int32_t n : count) most = std::max(most, n);
    // Reads for the padding must stay inside the axis.
    for (int32_t& first : begin) first = std::min(first, out - most);
    weight.assign(size_t(most) * in, T(0));
    visit([&](int32_t j, int32_t i, T w) { weight[size_t(i - begin[j]) * in + j] += w; });
    for (int32_t j = 0; j < in; ++j) {
      count[j] = most;
      while (count[j] > 0 && at(j, count[j] - 1, in) == T(0)) --count[j];
    }
  }
  T at(int32_t j, int32_t k, int32_t in) const { return weight[size_t(k) * in + j]; }
};

// The weighted sum of two rows, and that of four rows.
template <class S, class T, class R>
void blend2(const S* __restrict a, const S* __restrict b, T wa, T wb, int64_t n,
            R* __restrict out) {
  for (int64_t i = 0; i < n; ++i) store(out + i, wa * load(a[i]) + wb * load(b[i]));
}

template <class S, class T>
void blend4(const S* const* rows, const T* w, int64_t n, T* __restrict out) {
  const S* __restrict a = rows[0], * __restrict b = rows[1];
  const S* __restrict c = rows[2], * __restrict d = rows[3];
  const T wa = w[0], wb = w[1], wc = w[2], wd = w[3];
  for (int64_t i = 0; i < n; ++i) {
    out[i] = wa * load(a[i]) + wb * load(b[i]) + wc * load(c[i]) + wd * load(d[i]);
  }
}

// Interpolates the first part of a row along x with pairs_avx2.h, where that is possible, and
// returns how many outputs that are.
template <class S, class T>
int32_t pairs_stretch(const T*, const AxisTable<T>&, S*) {
  return 0;
}

#ifdef DEEPATLAS_PAIRS
int32_t pairs_stretch(const float* row, const AxisTable<float>& x, float* out) {
  const int32_t n = int32_t(x.base.size());
  // On an axis of size 1 there are no pairs.
  if (x.step == 0) return 0;
  int32_t i = 0;
  for (; i + pairs::kLanes <= n; i += pairs::kLanes) {
    _mm_storeu_ps(out + i, pairs::fold(pairs::load(row, &x.base[i]), &x.w0[i], &x.w1[i]));
  }
  return i;
}
#endif

// Interpolates a row along x, whose voxels have `beside` values each.
template <class S, class T>
void stretch(const T* __restrict row, const AxisTable<T>& x, int64_t beside, S* __restrict out) {
  const int32_t n = int32_t(x.base.size()), step = x.step;
  if (beside > 1) {
    for (int32_t i = 0; i < n; ++i) {
      const T* a = row + x.base[i] * beside;
      blend2(a, a + step * beside, x.w0[i], x.w1[i], beside, out + i * beside);
    }
    return;
  }
  for (int32_t i = pairs_stretch(row, x, out); i < n; ++i) {
    store(out + i, x.w0[i] * row[x.base[i]] + x.w1[i] * row[x.base[i] + step]);
  }
}

template <class S, class T>
void narrow(const T* __restrict from, int64_t n, S* __restrict to) {
  for (int64_t i = 0; i < n; ++i) store(to + i, from[i]);
}

// For more output rows than input rows. Several output rows use the same input row, interpolated
// along z and x, so it keeps the last two: `plane` is their output plane, counted over all items,
// and `held` their input row.
template <class S, class T>
struct Upsampler {
  const AxisTable<T>&z, &y, &x;
  const ResizeArgs& a;
  // The values of a row of the volume and of the result.
  int64_t row_in, row_out;
  std::vector<T> blended, kept[2], line;
  int64_t plane[2] = {-1, -1};
  int32_t held[2] = {-1, -1};

  Upsampler(const AxisTable<T>& z, const AxisTable<T>& y, const AxisTable<T>& x,
            const ResizeArgs& a)
      : z(z), y(y), x(x), a(a), row_in(a.in.w * a.beside), row_out(a.out.w * a.beside),
        blended(row_in), line(row_out) {
    for (auto& row : kept) row.resize(row_out);
  }

  // An input row, interpolated along z and x. It is computed into `slot` unless it is kept already.
  // The slot `avoid`, unless it is negative, must not be replaced.
  const T* fetch(const S* volume, int64_t key, int32_t zi, int32_t row, int avoid, int& slot) {
    for (slot = 0; slot < 2; ++slot) {
      if (plane[slot] == key && held[slot] == row) return kept[slot].data();
    }
    slot = avoid == 0 ? 1 : 0;
    // Rows increase, so the one with the smaller index is not needed any more.
    if (avoid < 0 && plane[0] == key && held[0] > held[1]) slot = 1;
    const S* first = volume + (int64_t(z.base[zi]) * a.in.h + row) * row_in;
    blend2(first, first + int64_t(z.step) * a.in.h * row_in, z.w0[zi], z.w1[zi], row_in,
           blended.data());
    stretch(blended.data(), x, a.beside, kept[slot].data());
    plane[slot] = key;
    held[slot] = row;
    return kept[slot].data();
  }

  void row(const S* volume, int64_t key, int32_t zi, int32_t yi, S* target) {
    int slot, other;
    const T* low = fetch(volume, key, zi, int32_t(y.base[yi]), -1, slot);
    const T* high = fetch(volume, key, zi, int32_t(y.base[yi]) + y.step, slot, other);
    if constexpr (std::is_same_v<S, T>) {
      blend2(low, high, y.w0[yi], y.w1[yi], row_out, target);
    } else {
      blend2(low, high, y.w0[yi], y.w1[yi], row_out, line.data());
      narrow(line.data(), row_out, target);
    }
  }
};

template <class S>
void forward(const ResizeArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const AxisTable<T> z(a.in.d, a.out.d), y(a.in.h, a.out.h), x(a.in.w, a.out.w);
  const bool up = a.out.h > a.in.h;
  const int64_t row_in = a.in.w * a.beside, row_out = a.out.w * a.beside;
  const int64_t values = a.in.d * a.in.h * row_in, lines = a.items * a.out.d * a.out.h;
  parallel(lines, std::max<int64_t>(1, 16384 / row_out), [&](int64_t begin, int64_t end) {
    Upsampler<S, T> upsampler(z, y, x, a);
    std::vector<T> blended(row_in);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t key = i / a.out.h, item = key / a.out.d;
      const int32_t yi = int32_t(i - key * a.out.h), zi = int32_t(key - item * a.out.d);
      const S* volume = static_cast<const S*>(a.source) + item * values;
      S* target = static_cast<S*>(a.target) + i * row_out;
      if (up) {
        upsampler.row(volume, key, zi, yi, target);
        continue;
      }
      const S* p = volume + (int64_t(z.base[zi]) * a.in.h + y.base[yi]) * row_in;
      const S* q = p + int64_t(z.step) * a.in.h * row_in;
      const int64_t step = int64_t(y.step) * row_in;
      const S* rows[4] = {p, p + step, q, q + step};
      const T w[4] = {z.w0[zi] * y.w0[yi], z.w0[zi] * y.w1[yi], z.w1[zi] * y.w0[yi],
                      z.w1[zi] * y.w1[yi]};
      blend4(rows, w, row_in, blended.data());
      stretch(blended.data(), x, a.beside, target);
    }
  });
}

template <class S, class T>
void add_row(const S* __restrict row, T w, int64_t n, T* __restrict sum) {
  for (int64_t i = 0; i < n; ++i) sum[i] += w * load(row[i]);
}

// The number of input rows of a task, and how many bytes of the rows that they gather should at most lie
// in the second-level cache. The output rows that several input rows need are gathered once.
constexpr int32_t kTile = 16;
constexpr int64_t kTileBytes = 512 * 1024;

// The sum of the outputs along x that each voxel of a row depends on.
template <class T>
void gather_along_x(const T* __restrict line, const AdjointTable<T>& x, int32_t width,
                    int64_t beside, T* __restrict result) {
  std::fill_n(result, width * beside, T(0));
  if (beside > 1) {
    for (int32_t i = 0; i < width; ++i) {
      for (int32_t k = 0; k < x.count[i]; ++k) {
        add_row(line + (x.begin[i] + k) * beside, x.at(i, k, width), beside, result + i * beside);
      }
    }
    return;
  }
  for (int32_t k = 0; k < x.most; ++k) {
    const T* __restrict weight = &x.weight[size_t(k) * width];
    for (int32_t i = 0; i < width; ++i) result[i] += weight[i] * line[x.begin[i] + k];
  }
}

// Each input voxel gathers its gradient along z, then y, then x. No two tasks write the same voxel.
template <class S>
void backward(const ResizeArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const AdjointTable<T> z(a.in.d, a.out.d), y(a.in.h, a.out.h), x(a.in.w, a.out.w);
  const int64_t w = a.out.w * a.beside, row_in = a.in.w * a.beside;
  int32_t tile = kTile;
  while (tile > 1 && int64_t(tile) * a.out.h / a.in.h * w * int64_t(sizeof(T)) > kTileBytes) tile /= 2;
  const int64_t tiles = pieces_of(a.in.h, tile);
  parallel(a.items * a.in.d * tiles, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> gathered, line(w), result(row_in);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t plane = task / tiles, item = plane / a.in.d;
      const int32_t zi = int32_t(plane - item * a.in.d);
      const int32_t first = int32_t(task - plane * tiles) * tile,
                    last = std::min(first + tile, a.in.h);
      int32_t low = a.out.h, high = 0;
      for (int32_t j = first; j < last; ++j) {
        low = std::min(low, y.begin[j]);
        high = std::max(high, y.begin[j] + y.count[j]);
      }
      high = std::max(high, low);
      gathered.assign((high - low) * w, T(0));
      for (int32_t k = 0; k < z.count[zi]; ++k) {
        const int64_t level = item * a.out.d + z.begin[zi] + k;
        const S* grad = static_cast<const S*>(a.source) + (level * a.out.h + low) * w;
        add_row(grad, z.at(zi, k, a.in.d), (high - low) * w, gathered.data());
      }
      for (int32_t j = first; j < last; ++j) {
        std::fill(line.begin(), line.end(), T(0));
        for (int32_t k = 0; k < y.count[j]; ++k) {
          add_row(&gathered[(y.begin[j] + k - low) * w], y.at(j, k, a.in.h), w, line.data());
        }
        gather_along_x(line.data(), x, a.in.w, a.beside, result.data());
        narrow(result.data(), row_in, static_cast<S*>(a.target) + (plane * a.in.h + j) * row_in);
      }
    }
  });
}

}  // namespace

void resize_forward_cpu(const ResizeArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) { forward<decltype(s)>(args, parallel); });
}

void resize_backward_cpu(const ResizeArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) { backward<decltype(s)>(args, parallel); });
}

}  // namespace deepatlas
