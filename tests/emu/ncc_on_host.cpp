// Runs the CUDA kernels of correlation on the host, functors voxel by voxel and reductions with one
// thread for each CUDA thread, and compares them with the CPU kernels: for every scalar type, over
// the volume and within windows, with and without a mask over NaN. Prints one line for each
// failure.
#include "host_launch.h"
// The kernels need the definitions above.
#include "host.h"
#include "ncc_functors.h"

using namespace deepatlas;
using namespace deepatlas::host;

namespace {

template <class S>
void compare(const std::string& what, const std::vector<S>& found, const std::vector<S>& expected) {
  const double tolerance = sizeof(S) == 8 ? 5e-11 : sizeof(S) == 4 ? 1e-6 : 1e-2;
  // Below 1e-3 there are only rounding errors.
  compare_scaled(what, found, expected, tolerance, 1e-3);
  for (const S& value : expected) {
    if (std::isfinite(double(load(value)))) continue;
    std::printf("%s: is not finite\n", what.c_str());
    ++failures;
    return;
  }
}

template <class S>
struct Results {
  std::vector<S> value, grad_a, grad_b;
  std::vector<double> moments;
};

// The results of a forward and a backward pass, into memory that holds another value before.
template <class S, class Forward, class Backward>
Results<S> run(NccArgs args, const Forward& forward, const Backward& backward) {
  const int64_t all = args.items() * args.shape.voxels();
  const S sentinel = random<S>(1, 1)[0];
  Results<S> r{std::vector<S>(args.items(), sentinel), std::vector<S>(all, sentinel),
               std::vector<S>(all, sentinel), std::vector<double>(args.items() * ncc::kMoments)};
  args.moments = r.moments.data();
  args.value = r.value.data();
  forward(args);
  args.grad_a = r.grad_a.data();
  args.grad_b = r.grad_b.data();
  backward(args);
  return r;
}

template <class S>
void check(const std::string& what, NccArgs args, bool masked) {
  const int64_t voxels = args.shape.voxels(), all = args.items() * voxels;
  auto a = random<S>(all, 1), b = random<S>(all, 1);
  auto mask = random<S>(args.batch * voxels, 1);
  const auto grad = random<S>(args.items(), 1);
  for (int64_t i = 0; i < all; ++i) {
    store(&b[i], Accumulate<S>(load(a[i]) + load(b[i])));
  }
  if (masked) {
    for (int64_t i = 0; i < args.batch * voxels; ++i) {
      const double weight = std::abs(double(load(mask[i])));
      store(&mask[i], Accumulate<S>(weight > 0.7 ? weight : 0));
      if (weight > 0.7) continue;
      // A voxel without weight must not be used.
      for (int64_t c = 0; c < args.channels; ++c) {
        const int64_t at = (i / voxels * args.channels + c) * voxels + i % voxels;
        store(&a[at], Accumulate<S>(std::nan("")));
      }
    }
    args.mask = mask.data();
  }
  args.a = a.data();
  args.b = b.data();
  args.grad = grad.data();
  const auto cpu = [&](auto parallel) {
    return run<S>(
        args, [&](const NccArgs& x) { ncc_forward_cpu(x, parallel); },
        [&](const NccArgs& x) { ncc_backward_cpu(x, parallel); });
  };
  const auto expected = cpu(threads<1>()), threaded = cpu(threads<3>());
  same_bits(what + " value", expected.value, threaded.value);
  same_bits(what + " gradient by a", expected.grad_a, threaded.grad_a);
  same_bits(what + " gradient by b", expected.grad_b, threaded.grad_b);
  if (args.window > 0 && args.items() > 2 && ncc::device::group_size(args) != 2) {
    std::printf("%s: the channels are not cut into groups of two\n", what.c_str());
    ++failures;
  }
  std::vector<double> workspace(ncc::device::workspace_size(args));
  args.workspace = workspace.data();
  const auto found = run<S>(
      args, [](const NccArgs& x) { ncc::device::device_forward<S>(x, HostLaunch()); },
      [](const NccArgs& x) { ncc::device::device_backward<S>(x, HostLaunch()); });
  compare(what + " value", found.value, expected.value);
  compare(what + " moments", found.moments, expected.moments);
  compare(what + " gradient by a", found.grad_a, expected.grad_a);
  compare(what + " gradient by b", found.grad_b, expected.grad_b);
}

template <class S>
void check_all(const std::string& scalar, Scalar code) {
  struct Case {
    int64_t batch, channels;
    Shape3 shape;
  };
  const Case cases[] = {{1, 3, {5, 17, 9}}, {2, 3, {1, 4, 1}}, {1, 1, {35, 16, 11}}};
  for (const Case& c : cases) {
    for (const int64_t window : {0, 3, 7, 41}) {
      for (const bool masked : {false, true}) {
        NccArgs args{};
        args.scalar = code;
        args.batch = c.batch;
        args.channels = c.channels;
        args.shape = c.shape;
        args.window = window;
        args.eps = 1e-5;
        // Two channels fit at a time. Where there are three, the last group is smaller.
        args.group_values = 2 * 2 * ncc::device::kMaps * c.shape.voxels();
        check<S>(scalar + " depth " + std::to_string(c.shape.d) + " window " +
                     std::to_string(window) + (masked ? " masked" : ""),
                 args, masked);
      }
    }
  }
}

}  // namespace

int main() {
  return every_scalar(
      [](auto s, const char* name, Scalar code) { check_all<decltype(s)>(name, code); });
}
