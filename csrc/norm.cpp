// Group normalisation with a leaky ReLU on the CPU, in either layout of the channels.
//
// A block is up to kRows rows of W values that lie beside each other, so that the compiler keeps
// the W lanes of a sum in registers. Where the channels lie beside each other, a row is a part of a
// voxel and every lane has a channel of its own; otherwise a row is a run of voxels, and all lanes
// have the same channel. Tasks take pieces of fixed size whose sums are added up in order, so no
// result depends on the number of threads.
#include <algorithm>
#include <vector>

#include "interpolate.h"
#include "kernels.h"

// The loops over blocks are neither inlined nor copied for a constant stride: GCC 12 then
// vectorises the loop over rows in place of that over lanes, which is four times as slow.
#if defined(__GNUC__) && !defined(__clang__)
#define DA_BLOCK __attribute__((noinline, noclone))
#else
#define DA_BLOCK __attribute__((noinline))
#endif

namespace deepatlas {
namespace {

constexpr int kRows = 128;
constexpr int kLanes = 16;
// The voxels of a piece where channels lie beside each other. Otherwise a piece is a channel.
constexpr int64_t kPieceVoxels = 8 * kRows;
// How many elements a task has at least.
constexpr int64_t kTaskElements = int64_t(1) << 15;

// A part of a block: `rows` rows of W values at a stride. Lane l has the channel `channel` + l *
// `step`.
struct Part {
  int64_t offset, stride;
  int rows, channel, step;
};

// Which pieces there are, and the blocks of each.
class Pieces {
 public:
  explicit Pieces(const NormArgs& a)
      : channels_(a.channels),
        voxels_(a.voxels),
        beside_(a.beside),
        pieces_(a.beside ? pieces_of(a.voxels, kPieceVoxels) : a.channels) {}
  int64_t per_item() const { return pieces_; }
  // How many pieces have sums of one channel.
  int64_t of_a_channel() const { return beside_ ? pieces_ : 1; }
  // Where the sums of a channel in a piece are stored: [batch, of_a_channel, channels].
  int64_t slot(int64_t item, int64_t piece, int channel) const {
    return (item * of_a_channel() + (beside_ ? piece : 0)) * channels_ + channel;
  }
  // Calls body(width, part) for the parts of a piece; width is a std::integral_constant.
  template <class F>
  void parts(int64_t item, int64_t piece, const F& body) const {
    if (beside_) {
      const int64_t last = std::min(voxels_, (piece + 1) * kPieceVoxels);
      for (int64_t v = piece * kPieceVoxels; v < last; v += kRows) {
        const int rows = int(std::min<int64_t>(kRows, last - v));
        const int64_t offset = (item * voxels_ + v) * channels_;
        int channel = 0;
        for (; channel + kLanes <= channels_; channel += kLanes) {
          body(Width<kLanes>(), Part{offset + channel, channels_, rows, channel, 1});
        }
        for (; channel + 8 <= channels_; channel += 8) {
          body(Width<8>(), Part{offset + channel, channels_, rows, channel, 1});
        }
        for (; channel < channels_; ++channel) {
          body(Width<1>(), Part{offset + channel, channels_, rows, channel, 1});
        }
      }
      return;
    }
    const int channel = int(piece);
    int64_t offset = (item * channels_ + piece) * voxels_;
    int64_t left = voxels_;
    while (left >= kLanes) {
      const int rows = int(std::min<int64_t>(kRows, left / kLanes));
      body(Width<kLanes>(), Part{offset, kLanes, rows, channel, 0});
      offset += int64_t(rows) * kLanes;
      left -= int64_t(rows) * kLanes;
    }
    if (left > 0) body(Width<1>(), Part{offset, 1, int(left), channel, 0});
  }

 private:
  template <int W>
  struct Width {
    static constexpr int value = W;
  };
  int64_t channels_, voxels_;
  bool beside_;
  int64_t pieces_;
};

// Count, mean and sum of squared differences from the mean, which stay exact for values far from 0.
struct Moments {
  double count = 0, mean = 0, squares = 0;
  void add(double n, double its_mean, double its_squares) {
    if (n == 0) return;
    const double total = count + n, share = n / total, difference = its_mean - mean;
    mean += difference * share;
    squares += its_squares + difference * difference * count * share;
    count = total;
  }
  void add(const Moments& other) { add(other.count, other.mean, other.squares); }
};

// The moments of every lane of a part: sums first about 0 and then about their mean. The values
// stay in the first-level cache in between. With two sums in one loop, GCC 12 no longer vectorises
// half types.
template <int W, class S>
DA_BLOCK void add_moments(const S* __restrict p, const Part& part, Moments* of_channel) {
  using T = Accumulate<S>;
  T centre[W] = {}, sum[W] = {}, squares[W] = {};
  const S* __restrict q = p;
  for (int r = 0; r < part.rows; ++r, q += part.stride) {
    for (int l = 0; l < W; ++l) centre[l] += load(q[l]);
  }
  for (int l = 0; l < W; ++l) centre[l] /= T(part.rows);
  q = p;
  for (int r = 0; r < part.rows; ++r, q += part.stride) {
    for (int l = 0; l < W; ++l) sum[l] += load(q[l]) - centre[l];
  }
  q = p;
  for (int r = 0; r < part.rows; ++r, q += part.stride) {
    for (int l = 0; l < W; ++l) squares[l] += (load(q[l]) - centre[l]) * (load(q[l]) - centre[l]);
  }
  const double n = part.rows;
  double mean[W], about[W];
  for (int l = 0; l < W; ++l) {
    const double rest = double(sum[l]) / n;
    mean[l] = double(centre[l]) + rest;
    about[l] = double(squares[l]) - rest * double(sum[l]);
  }
  if (part.step != 0) {
    for (int l = 0; l < W; ++l) of_channel[part.channel + l].add(n, mean[l], about[l]);
    return;
  }
  // All lanes have one channel and the same count, and need one division and not W.
  double middle = 0, total = 0;
  for (int l = 0; l < W; ++l) middle += mean[l];
  middle /= W;
  for (int l = 0; l < W; ++l) total += about[l] + n * (mean[l] - middle) * (mean[l] - middle);
  of_channel[part.channel].add(n * W, middle, total);
}

// What a channel is multiplied by and shifted by, and the mean that is subtracted first: z = (x -
// mean) * scale + bias. Both passes compute it in this way, so that they agree on its sign.
template <class T>
struct Channel {
  T mean, scale, bias;
};

template <int W, class T>
struct Lanes {
  T mean[W], scale[W], bias[W];
  Lanes(const Channel<T>* channel, const Part& part) {
    for (int l = 0; l < W; ++l) {
      const Channel<T>& c = channel[part.channel + l * part.step];
      mean[l] = c.mean, scale[l] = c.scale, bias[l] = c.bias;
    }
  }
};

template <int W, class S, class T>
DA_BLOCK void activate(const S* __restrict p, S* __restrict to, const Part& part,
                       const Lanes<W, T>& by, T slope) {
  for (int r = 0; r < part.rows; ++r, p += part.stride, to += part.stride) {
    for (int l = 0; l < W; ++l) {
      const T z = (load(p[l]) - by.mean[l]) * by.scale[l] + by.bias[l];
      store(to + l, z > T(0) ? z : slope * z);
    }
  }
}

// The sums of a channel in the backward pass: of the gradient of z, and of that times (x - mean).
struct Sums {
  double grad = 0, moved = 0;
};

template <int W, class S, class T>
DA_BLOCK void add_sums(const S* __restrict p, const S* __restrict grad, const Part& part,
                       const Lanes<W, T>& by, T slope, Sums* of_channel) {
  T sum[W] = {}, moved[W] = {};
  for (int r = 0; r < part.rows; ++r, p += part.stride, grad += part.stride) {
    for (int l = 0; l < W; ++l) {
      const T d = load(p[l]) - by.mean[l], g = load(grad[l]);
      const T slant = d * by.scale[l] + by.bias[l] > T(0) ? g : slope * g;
      sum[l] += slant;
      moved[l] += slant * d;
    }
  }
  for (int l = 0; l < W; ++l) {
    Sums& sums = of_channel[part.channel + l * part.step];
    sums.grad += double(sum[l]);
    sums.moved += double(moved[l]);
  }
}

// The gradient of x is scale * (gradient of z) - shift - tilt * (x - mean).
template <int W, class S, class T>
DA_BLOCK void differentiate(const S* __restrict p, const S* __restrict grad, S* __restrict to,
                            const Part& part, const Lanes<W, T>& by, const T* shift_of,
                            const T* tilt_of, T slope) {
  T shift[W], tilt[W];
  for (int l = 0; l < W; ++l) {
    shift[l] = shift_of[part.channel + l * part.step];
    tilt[l] = tilt_of[part.channel + l * part.step];
  }
  for (int r = 0; r < part.rows; ++r, p += part.stride, grad += part.stride, to += part.stride) {
    for (int l = 0; l < W; ++l) {
      const T d = load(p[l]) - by.mean[l], g = load(grad[l]);
      const T slant = d * by.scale[l] + by.bias[l] > T(0) ? g : slope * g;
      store(to + l, slant * by.scale[l] - shift[l] - d * tilt[l]);
    }
  }
}

// Calls first(item, piece) for the pieces of a unit, then between(item, group) for its groups, and
// then last(item, piece). A unit is as little as can be normalised, so that it is still in the
// caches when it is read again: an item where the channels lie beside each other, and otherwise a
// group.
template <class First, class Between, class Last>
void over_units(const NormArgs& a, const Pieces& pieces, const Parallel& parallel,
                const First& first, const Between& between, const Last& last) {
  const int64_t each = pieces.per_item(), size = a.channels / a.groups;
  if (!a.beside) {
    const int64_t grain = std::max<int64_t>(1, kTaskElements / (size * a.voxels));
    parallel(a.batch * a.groups, grain, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t item = unit / a.groups, group = unit % a.groups;
        for (int64_t c = 0; c < size; ++c) first(item, group * size + c);
        between(item, group);
        for (int64_t c = 0; c < size; ++c) last(item, group * size + c);
      }
    });
    return;
  }
  const int64_t grain = std::max<int64_t>(1, kTaskElements / (kPieceVoxels * a.channels));
  for (int64_t item = 0; item < a.batch; ++item) {
    parallel(each, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) first(item, i);
    });
    for (int64_t group = 0; group < a.groups; ++group) between(item, group);
    parallel(each, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) last(item, i);
    });
  }
}

// Fills in how the channels of a group are normalised.
template <class T>
void describe(const NormArgs& a, int64_t item, int64_t group, Channel<T>* channel) {
  const int64_t size = a.channels / a.groups, first = item * a.channels + group * size;
  const double* statistics = a.statistics + 2 * (item * a.groups + group);
  for (int64_t i = first; i < first + size; ++i) {
    const double weight = double(static_cast<const T*>(a.weight)[i]);
    channel[i] = {T(statistics[0]), T(statistics[1] * weight), static_cast<const T*>(a.bias)[i]};
  }
}

template <class S>
void forward(const NormArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const S* source = static_cast<const S*>(a.source);
  S* target = static_cast<S*>(a.target);
  const Pieces pieces(a);
  const int64_t parts = pieces.of_a_channel(), size = a.channels / a.groups;
  std::vector<Moments> moments(a.batch * parts * a.channels);
  std::vector<Channel<T>> channel(a.batch * a.channels);
  over_units(
      a, pieces, parallel,
      [&](int64_t item, int64_t piece) {
        Moments* of_channel = &moments[pieces.slot(item, piece, 0)];
        pieces.parts(item, piece, [&](auto width, const Part& part) {
          add_moments<decltype(width)::value>(source + part.offset, part, of_channel);
        });
      },
      [&](int64_t item, int64_t group) {
        Moments total;
        for (int64_t part = 0; part < parts; ++part) {
          const Moments* of = &moments[(item * parts + part) * a.channels + group * size];
          for (int64_t c = 0; c < size; ++c) total.add(of[c]);
        }
        double* statistics = a.statistics + 2 * (item * a.groups + group);
        statistics[0] = total.mean;
        statistics[1] = 1 / std::sqrt(total.squares / total.count + a.eps);
        describe(a, item, group, channel.data());
      },
      [&](int64_t item, int64_t piece) {
        const Channel<T>* of_item = &channel[item * a.channels];
        pieces.parts(item, piece, [&](auto width, const Part& part) {
          activate(source + part.offset, target + part.offset, part,
                   Lanes<decltype(width)::value, T>(of_item, part), T(a.slope));
        });
      });
}

template <class S>
void backward(const NormArgs& a, const Parallel& parallel) {
  using T = Accumulate<S>;
  const S* source = static_cast<const S*>(a.source);
  const S* grad = static_cast<const S*>(a.grad);
  S* target = static_cast<S*>(a.grad_source);
  const Pieces pieces(a);
  const int64_t parts = pieces.of_a_channel(), size = a.channels / a.groups;
  std::vector<Sums> sums(a.batch * parts * a.channels);
  std::vector<Channel<T>> channel(a.batch * a.channels);
  std::vector<T> shift(a.batch * a.channels), tilt(a.batch * a.channels);
  for (int64_t item = 0; item < a.batch; ++item) {
    for (int64_t group = 0; group < a.groups; ++group) describe(a, item, group, channel.data());
  }
  over_units(
      a, pieces, parallel,
      [&](int64_t item, int64_t piece) {
        Sums* of_channel = &sums[pieces.slot(item, piece, 0)];
        pieces.parts(item, piece, [&](auto width, const Part& part) {
          const Lanes<decltype(width)::value, T> by(&channel[item * a.channels], part);
          add_sums(source + part.offset, grad + part.offset, part, by, T(a.slope), of_channel);
        });
      },
      [&](int64_t item, int64_t group) {
        const int64_t first = item * a.channels + group * size;
        const double deviation = a.statistics[2 * (item * a.groups + group) + 1];
        Sums whole;
        for (int64_t i = first; i < first + size; ++i) {
          Sums total;
          for (int64_t part = 0; part < parts; ++part) {
            const Sums& of = sums[(item * (parts - 1) + part) * a.channels + i];
            total.grad += of.grad;
            total.moved += of.moved;
          }
          static_cast<T*>(a.grad_weight)[i] = T(total.moved * deviation);
          static_cast<T*>(a.grad_bias)[i] = T(total.grad);
          const double weight = double(static_cast<const T*>(a.weight)[i]);
          whole.grad += weight * total.grad;
          whole.moved += weight * total.moved;
        }
        const double share = deviation / (double(size) * double(a.voxels));
        std::fill_n(&shift[first], size, T(share * whole.grad));
        std::fill_n(&tilt[first], size, T(share * deviation * deviation * whole.moved));
      },
      [&](int64_t item, int64_t piece) {
        if (target == nullptr) return;
        const int64_t first = item * a.channels;
        pieces.parts(item, piece, [&](auto width, const Part& part) {
          const Lanes<decltype(width)::value, T> by(&channel[first], part);
          differentiate(source + part.offset, grad + part.offset, target + part.offset, part, by,
                        &shift[first], &tilt[first], T(a.slope));
        });
      });
}

}  // namespace

void norm_forward_cpu(const NormArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) { forward<decltype(s)>(args, parallel); });
}

void norm_backward_cpu(const NormArgs& args, const Parallel& parallel) {
  with_scalar(args.scalar, [&](auto s) { backward<decltype(s)>(args, parallel); });
}

}  // namespace deepatlas
