// The ops log_jacobian, jacobian_determinant and smoothness_loss for PyTorch.
#include "ops.h"

namespace deepatlas {
namespace {

// The arguments of the kernels except for the pointers. Checks what the ops share.
JacobianArgs jacobian_args(const char* op, const Tensor& field) {
  check_map(op, "field", field);
  JacobianArgs a{};
  a.scalar = scalar_of(op, "field", field);
  a.batch = field.size(0);
  a.shape = shape_of(op, "field", field.sizes().slice(2));
  return a;
}

// `t` must have the dtype and the device of `field`, and the given size.
void check_sized(const char* op, const char* name, const Tensor& t, const Tensor& field,
                 at::IntArrayRef size) {
  check_like(op, name, t, "field", field);
  check_size(op, name, t, size);
}

std::vector<int64_t> size_of(const Tensor& field, int64_t channels) {
  return {field.size(0), channels, field.size(2), field.size(3), field.size(4)};
}

// Scratch for the gradients of the columns. Only CUDA keeps all of them at once.
Tensor empty_columns(const Tensor& field) {
  return at::empty(on_cuda(field) ? size_of(field, 9) : std::vector<int64_t>{0},
                   accumulating(field));
}

Tensor log_jacobian(const Tensor& field, bool normalize, double eps) {
  const c10::OptionalDeviceGuard guard(field.device());
  JacobianArgs a = jacobian_args("log_jacobian", field);
  const Tensor f = field.contiguous(), output = at::empty(size_of(field, 1), f.options());
  if (output.numel() == 0) return output;
  a.normalize = normalize;
  a.eps = eps;
  a.field = f.const_data_ptr();
  a.output = output.mutable_data_ptr();
  DA_LAUNCH("log_jacobian", log_jacobian_forward, a, f);
  return output;
}

Tensor log_jacobian_backward(const Tensor& grad, const Tensor& field, bool normalize, double eps) {
  const char* op = "log_jacobian_backward";
  const c10::OptionalDeviceGuard guard(field.device());
  JacobianArgs a = jacobian_args(op, field);
  check_sized(op, "grad", grad, field, size_of(field, 1));
  const Tensor f = field.contiguous(), g = grad.contiguous();
  const Tensor result = at::empty(size_of(field, 3), f.options()), columns = empty_columns(f);
  if (result.numel() == 0) return result;
  a.normalize = normalize;
  a.eps = eps;
  a.field = f.const_data_ptr();
  a.grad = g.const_data_ptr();
  a.grad_field = result.mutable_data_ptr();
  a.columns = columns.mutable_data_ptr();
  DA_LAUNCH(op, log_jacobian_backward, a, f);
  return result;
}

Tensor jacobian_determinant(const Tensor& field, bool digital) {
  const c10::OptionalDeviceGuard guard(field.device());
  JacobianArgs a = jacobian_args("jacobian_determinant", field);
  const Tensor f = field.contiguous(), output = at::empty(size_of(field, 1), accumulating(f));
  if (output.numel() == 0) return output;
  a.digital = digital;
  a.field = f.const_data_ptr();
  a.output = output.mutable_data_ptr();
  DA_LAUNCH("jacobian_determinant", jacobian_determinant, a, f);
  return output;
}

std::tuple<Tensor, Tensor> smoothness_loss(const Tensor& field, const std::optional<Tensor>& mask,
                                           double delta, bool logarithm) {
  const char* op = "smoothness_loss";
  const c10::OptionalDeviceGuard guard(field.device());
  JacobianArgs a = jacobian_args(op, field);
  if (mask) check_sized(op, "mask", *mask, field, size_of(field, 1));
  a.delta = delta;
  a.logarithm = logarithm;
  const Tensor f = field.contiguous(), w = mask ? mask->contiguous() : Tensor();
  const auto wide = f.options().dtype(at::kDouble);
  const Tensor loss = at::empty({a.batch}, f.options()), statistics = at::empty({a.batch, 3}, wide);
  if (f.numel() == 0) return {loss.zero_(), statistics.zero_()};
  const Tensor sums = at::empty({DA_CALL(smoothness_sums, a, f)}, wide);
  const Tensor change = at::empty({a.batch, a.shape.voxels()}, accumulating(f));
  a.field = f.const_data_ptr();
  a.weight = mask ? w.const_data_ptr() : nullptr;
  a.output = loss.mutable_data_ptr();
  a.statistics = statistics.mutable_data_ptr<double>();
  a.change = change.mutable_data_ptr();
  a.sums = sums.mutable_data_ptr<double>();
  DA_LAUNCH(op, smoothness_forward, a, f);
  return {loss, statistics};
}

Tensor smoothness_loss_backward(const Tensor& grad, const Tensor& field,
                                const std::optional<Tensor>& mask, const Tensor& statistics,
                                double delta, bool logarithm) {
  const char* op = "smoothness_loss_backward";
  const c10::OptionalDeviceGuard guard(field.device());
  JacobianArgs a = jacobian_args(op, field);
  check_sized(op, "grad", grad, field, {a.batch});
  if (mask) check_sized(op, "mask", *mask, field, size_of(field, 1));
  TORCH_CHECK(statistics.scalar_type() == at::kDouble && statistics.device() == field.device() &&
                  statistics.sizes() == at::IntArrayRef({a.batch, 3}),
              "deepatlas_ops.", op, ": statistics must be float64 [", a.batch, ", 3] on ",
              field.device(), ", got ", statistics.scalar_type(), " ", statistics.sizes());
  a.delta = delta;
  a.logarithm = logarithm;
  const Tensor f = field.contiguous(), g = grad.contiguous(), s = statistics.contiguous();
  const Tensor w = mask ? mask->contiguous() : Tensor();
  const Tensor result = at::empty(size_of(field, 3), f.options()), columns = empty_columns(f);
  if (result.numel() == 0) return result;
  a.field = f.const_data_ptr();
  a.weight = mask ? w.const_data_ptr() : nullptr;
  a.grad = g.const_data_ptr();
  a.grad_field = result.mutable_data_ptr();
  a.statistics = const_cast<double*>(s.const_data_ptr<double>());
  a.columns = columns.mutable_data_ptr();
  DA_LAUNCH(op, smoothness_backward, a, f);
  return result;
}

void register_jacobian(torch::Library& m) {
  m.impl("log_jacobian", &log_jacobian);
  m.impl("log_jacobian_backward", &log_jacobian_backward);
  m.impl("jacobian_determinant", &jacobian_determinant);
  m.impl("smoothness_loss", &smoothness_loss);
  m.impl("smoothness_loss_backward", &smoothness_loss_backward);
}

}  // namespace
}  // namespace deepatlas

DA_REGISTER(deepatlas::register_jacobian)
