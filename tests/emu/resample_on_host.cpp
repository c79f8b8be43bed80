// Runs the functors of sampling and resizing that CUDA runs, one call for each voxel, and compares
// the CPU kernels with them: for every scalar type, source, mode and padding, NaN, infinite and far
// coordinates, and several threads. Prints one line for each failure.
#include <limits>

#include "host.h"
#include "kernels.h"
#include "resample.h"
#include "resize.h"

using namespace deepatlas;
using namespace deepatlas::host;

namespace {

template <class S, class U>
void compare(const std::string& what, const std::vector<U>& found, const std::vector<U>& expected) {
  compare_each(what, found, expected, sizeof(S) == 8 ? 1e-11 : sizeof(S) == 4 ? 2e-4 : 8e-2);
}

template <class Functor>
void run(int64_t count, const Functor& functor) {
  for_each(threads<1>(), count, functor);
}

template <class S, template <class> class SourceT, int M>
void check_sampling(const std::string& what, SampleArgs a) {
  using T = Accumulate<S>;
  using Stored = typename SourceT<S>::Stored;
  const int64_t n = a.batch * a.channels;
  const auto volume = random<S>(n * a.in.voxels(), 1), grad = random<S>(n * a.out.voxels(), 1);
  const bool affine = a.source == Source::kAffine;
  auto coords = random<Stored>(a.batch * (affine ? 12 : 3 * a.out.voxels()), 0.8f);
  const double inf = std::numeric_limits<double>::infinity();
  const double odd[] = {std::nan(""), inf, -inf, 6e4, -6e4, 1, -1};
  if (!affine) {
    for (size_t i = 0; i < 7; ++i) store(&coords[(i * 37) % coords.size()], T(odd[i]));
  }
  std::vector<S> output(grad.size()), expected(grad.size());
  a.volume = volume.data();
  a.coords = coords.data();
  a.grad = grad.data();

  a.output = expected.data();
  run(a.batch * a.out.voxels(), SampleForward<S, SourceT, M, int64_t>(a));
  a.output = output.data();
  sample_forward_cpu(a, threads<3>());
  compare<S>(what + " forward", output, expected);

  std::vector<T> by_volume[3];
  std::vector<Stored> by_coords[3];
  for (int k = 0; k < 3; ++k) {
    // The CPU kernels set it to 0 themselves.
    by_volume[k].assign(volume.size(), T(k == 0 ? 0 : 3));
    by_coords[k].assign(a.batch * 3 * a.out.voxels(), Stored());
    a.grad_volume = by_volume[k].data();
    a.grad_coords = by_coords[k].data();
    if (k == 0) run(a.batch * a.out.voxels(), SampleBackward<S, SourceT, M, int32_t, PlainAdd>(a));
    if (k == 1) sample_backward_cpu(a, threads<1>());
    if (k == 2) sample_backward_cpu(a, threads<4>());
  }
  compare<S>(what + " volume gradient", by_volume[1], by_volume[0]);
  compare<S>(what + " coordinate gradient", by_coords[1], by_coords[0]);
  same_bits(what + " volume gradient", by_volume[1], by_volume[2]);
  same_bits(what + " coordinate gradient", by_coords[1], by_coords[2]);
}

template <class S>
void check_resize(const std::string& what, ResizeArgs a) {
  const auto volume = random<S>(a.items * a.in.voxels(), 1);
  const auto grad = random<S>(a.items * a.out.voxels(), 1);
  std::vector<S> found(grad.size()), expected(grad.size());
  a.source = volume.data();
  a.target = expected.data();
  run(expected.size(), ResizeForward<S, int64_t>(a));
  a.target = found.data();
  resize_forward_cpu(a, threads<3>());
  compare<S>(what + " forward", found, expected);

  found.assign(volume.size(), S());
  expected.assign(volume.size(), S());
  a.source = grad.data();
  a.target = expected.data();
  run(expected.size(), ResizeBackward<S, int32_t>(a));
  a.target = found.data();
  resize_backward_cpu(a, threads<3>());
  compare<S>(what + " backward", found, expected);
}

// Every float16 value must survive load and store, and rounding must be to nearest, ties to even.
void check_half() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half h{uint16_t(bits)};
    const float value = load(h);
    if (value != value) continue;
    Half back;
    store(&back, value);
    const Half above{uint16_t(bits + 1)};
    Half middle;
    store(&middle, 0.5f * (value + load(above)));
    const bool finite_pair = (bits & 0x7fff) < 0x7bff;
    const uint16_t even = uint16_t(bits + (bits & 1));
    if (back.bits != bits || (finite_pair && middle.bits != even)) {
      std::printf("half 0x%04x: back 0x%04x, half way up 0x%04x\n", bits, back.bits, middle.bits);
      ++failures;
      return;
    }
  }
}

template <class S>
void check_all(const std::string& scalar, Scalar code) {
  struct Case {
    int64_t batch, channels;
    Shape3 in, out;
  };
  const Case cases[] = {{2, 2, {5, 6, 7}, {4, 9, 11}},
                        {1, 3, {1, 4, 1}, {3, 1, 5}},
                        {1, 1, {3, 1, 2}, {1, 1, 1}},
                        {1, 1, {12, 13, 14}, {23, 24, 25}}};
  for (size_t i = 0; i < 4; ++i) {
    const Case& c = cases[i];
    for (int padding = 0; padding < 3; ++padding) {
      const std::string what =
          scalar + " case " + std::to_string(i) + " padding " + std::to_string(padding);
      SampleArgs a{};
      a.scalar = code;
      a.padding = padding;
      a.batch = c.batch;
      a.channels = c.channels;
      a.in = c.in;
      a.out = c.out;
      a.mode = kLinear;
      a.source = Source::kCoords;
      check_sampling<S, CoordsSource, kLinear>(what + " resample", a);
      a.source = Source::kDisplacement;
      check_sampling<S, DisplacementSource, kLinear>(what + " warp", a);
      a.source = Source::kAffine;
      check_sampling<S, AffineSource, kLinear>(what + " affine", a);
      a.mode = kNearest;
      a.source = Source::kCoords;
      check_sampling<S, CoordsSource, kNearest>(what + " nearest", a);
    }
    ResizeArgs r{};
    r.scalar = code;
    r.items = c.batch * c.channels;
    r.in = c.in;
    r.out = c.out;
    check_resize<S>(scalar + " case " + std::to_string(i) + " resize", r);
    std::swap(r.in, r.out);
    check_resize<S>(scalar + " case " + std::to_string(i) + " resize back", r);
  }
}

}  // namespace

int main() {
  check_half();
  return every_scalar(
      [](auto s, const char* name, Scalar code) { check_all<decltype(s)>(name, code); });
}
