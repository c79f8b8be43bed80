// The op piecewise_linear for PyTorch.
#include "ops.h"

namespace deepatlas {
namespace {

// The arguments of the kernels except for the pointers, from checked knots and values.
PiecewiseArgs curve_of(const char* op, const Tensor& x, at::ArrayRef<double> knots,
                       at::ArrayRef<double> values) {
  PiecewiseArgs a{};
  a.scalar = scalar_of(op, "x", x);
  a.count = x.numel();
  const auto n = int64_t(knots.size());
  TORCH_CHECK(n >= 2 && n <= kMostKnots && int64_t(values.size()) == n, "deepatlas_ops.", op,
              ": knots and values must be 2 to ", kMostKnots, " numbers each, got ", n, " and ",
              values.size());
  a.segments = int(n - 1);
  for (int i = 0; i < a.segments; ++i) {
    TORCH_CHECK(knots[i] < knots[i + 1], "deepatlas_ops.", op, ": knots must rise, got ", knots);
    a.knot[i] = knots[i];
    a.value[i] = values[i];
    a.slope[i] = (values[i + 1] - values[i]) / (knots[i + 1] - knots[i]);
  }
  return a;
}

Tensor piecewise_linear(const Tensor& x, at::ArrayRef<double> knots, at::ArrayRef<double> values) {
  const char* op = "piecewise_linear";
  const c10::OptionalDeviceGuard guard(x.device());
  PiecewiseArgs a = curve_of(op, x, knots, values);
  const Tensor source = x.contiguous(), target = at::empty(x.sizes(), source.options());
  if (a.count == 0) return target;
  a.source = source.const_data_ptr();
  a.target = target.mutable_data_ptr();
  DA_LAUNCH(op, piecewise_forward, a, source);
  return target;
}

Tensor piecewise_linear_backward(const Tensor& grad, const Tensor& x, at::ArrayRef<double> knots,
                                 at::ArrayRef<double> values) {
  const char* op = "piecewise_linear_backward";
  const c10::OptionalDeviceGuard guard(x.device());
  PiecewiseArgs a = curve_of(op, x, knots, values);
  check_like(op, "grad", grad, "x", x);
  check_size(op, "grad", grad, x.sizes());
  const Tensor source = x.contiguous(), g = grad.contiguous();
  const Tensor target = at::empty(x.sizes(), source.options());
  if (a.count == 0) return target;
  a.source = source.const_data_ptr();
  a.grad = g.const_data_ptr();
  a.target = target.mutable_data_ptr();
  DA_LAUNCH(op, piecewise_backward, a, source);
  return target;
}

void register_piecewise(torch::Library& m) {
  m.impl("piecewise_linear", &piecewise_linear);
  m.impl("piecewise_linear_backward", &piecewise_linear_backward);
}

}  // namespace
}  // namespace deepatlas

DA_REGISTER(deepatlas::register_piecewise)
