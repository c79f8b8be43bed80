// The op implicit_warp for PyTorch.
#include <ATen/Context.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "invert.h"
#include "ops.h"

namespace deepatlas {
namespace {

constexpr const char* kMoving = "c_moving";

// `t` must have the type that the kernels accumulate in for the maps.
void check_wide(const char* op, const char* name, const Tensor& t, const Tensor& moving) {
  check_type(op, name, t, accumulate_type(moving), kMoving, moving);
}

void check_matrix(const char* op, const char* name, const Tensor& t, const Tensor& moving) {
  check_wide(op, name, t, moving);
  TORCH_CHECK(t.dim() == 3 && t.size(0) == moving.size(0) && t.size(1) == 3 && t.size(2) == 3,
              "deepatlas_ops.", op, ": ", name, " must be [B, 3, 3], got ", t.sizes());
}

// The arguments of the kernels except for the pointers. `fixed`, called `name`, may be the gradient
// on the fixed grid.
InvertArgs invert_args(const char* op, const Tensor& moving, const char* name, const Tensor& fixed,
                       const Tensor& matrix) {
  check_map(op, kMoving, moving);
  check_map(op, name, fixed);
  check_matrix(op, "matrix", matrix, moving);
  check_batch(op, name, fixed, kMoving, moving);
  InvertArgs a{};
  a.scalar = scalar_of(op, kMoving, moving);
  a.in = shape_of(op, kMoving, moving.sizes().slice(2));
  a.out = shape_of(op, name, fixed.sizes().slice(2));
  check_not_empty(op, kMoving, a.in, a.out);
  return a;
}

void set_iterations(const char* op, InvertArgs& a, int64_t iterations, double tolerance) {
  TORCH_CHECK(iterations >= 1 && iterations <= INT32_MAX, "deepatlas_ops.", op,
              ": iterations must be 1 to 2^31 - 1, got ", iterations);
  a.iterations = int(iterations);
  a.tolerance = tolerance;
}

int64_t together(const InvertArgs& a, int64_t batch, const Tensor& like, int64_t least) {
  return invert::together(a, batch, int64_t(on_cuda(like) ? 128 : 4) << 20, least);
}

Tensor scratch(const InvertArgs& a, int64_t items, const at::TensorOptions& options) {
  return at::empty({items * invert::packed_shape(a.in).voxels(), 4}, options);
}

// A pointer to batch item `b` of a contiguous tensor, or null if the tensor is undefined or empty.
void* item(const Tensor& t, int64_t b) {
  if (!t.defined() || t.numel() == 0) return nullptr;
  return static_cast<char*>(const_cast<void*>(t.const_data_ptr())) +
         b * (t.numel() / t.size(0)) * t.element_size();
}

// The contiguous tensors of a whole batch that the pointers of InvertArgs point into. Some are
// undefined.
struct Batch {
  Tensor moving, fixed, matrix, ruler, displacement, residual, valid, grad, grad_moving, grad_fixed,
      partial_moving, partial_fixed;
};

// Calls launch(args) for `items` batch items at a time, until the whole batch is done.
template <class Launch>
void in_turns(InvertArgs a, const Batch& t, int64_t items, const Launch& launch) {
  const int64_t batch = t.moving.size(0);
  for (int64_t b = 0; b < batch; b += items) {
    a.batch = std::min(items, batch - b);
    a.moving = item(t.moving, b);
    a.fixed = item(t.fixed, b);
    a.matrix = item(t.matrix, b);
    a.ruler = item(t.ruler, b);
    a.displacement = item(t.displacement, b);
    a.residual = item(t.residual, b);
    a.valid = static_cast<bool*>(item(t.valid, b));
    a.grad = item(t.grad, b);
    a.grad_moving = item(t.grad_moving, b);
    a.grad_fixed = item(t.grad_fixed, b);
    a.partial_moving = item(t.partial_moving, b);
    a.partial_fixed = item(t.partial_fixed, b);
    launch(a);
  }
}

std::tuple<Tensor, Tensor, Tensor> solve(const char* op, const Tensor& moving, const Tensor& fixed,
                                         const Tensor& matrix, const std::optional<Tensor>& ruler,
                                         int64_t iterations, double tolerance, bool newton) {
  const c10::OptionalDeviceGuard guard(moving.device());
  InvertArgs a = invert_args(op, moving, "c_fixed", fixed, matrix);
  check_like(op, "c_fixed", fixed, kMoving, moving);
  set_iterations(op, a, iterations, tolerance);
  a.newton = newton;
  if (ruler) check_matrix(op, "ruler", *ruler, moving);
  const int64_t batch = moving.size(0);
  const auto options = accumulating(moving);
  const Tensor displacement = at::empty(fixed.sizes(), options);
  const Tensor residual = at::empty({batch, 1, a.out.d, a.out.h, a.out.w}, options);
  const Tensor valid = at::empty(residual.sizes(), options.dtype(at::kBool));
  if (residual.numel() == 0) return {displacement, residual, valid};
  Batch t;
  t.moving = moving.contiguous();
  t.fixed = fixed.contiguous();
  t.matrix = matrix.contiguous();
  if (ruler) t.ruler = ruler->contiguous();
  t.displacement = displacement;
  t.residual = residual;
  t.valid = valid;
  const int64_t items = together(a, batch, moving, 1);
  const Tensor packed = scratch(a, items, options);
  a.packed = packed.mutable_data_ptr();
  in_turns(a, t, items,
           [&](const InvertArgs& part) { DA_LAUNCH(op, invert_forward, part, moving); });
  return {displacement, residual, valid};
}

std::tuple<Tensor, Tensor, Tensor> implicit_warp(const Tensor& moving, const Tensor& fixed,
                                                 const Tensor& matrix,
                                                 const std::optional<Tensor>& ruler,
                                                 int64_t iterations, double tolerance,
                                                 bool newton) {
  return solve("implicit_warp", moving, fixed, matrix, ruler, iterations, tolerance, newton);
}

std::tuple<Tensor, Tensor, Tensor> implicit_warp_unrolled(const Tensor& moving, const Tensor& fixed,
                                                          const Tensor& matrix,
                                                          const std::optional<Tensor>& ruler,
                                                          int64_t iterations, double tolerance) {
  return solve("implicit_warp_unrolled", moving, fixed, matrix, ruler, iterations, tolerance,
               false);
}

void alert(const Tensor& moving) {
  if (on_cuda(moving)) {
    at::globalContext().alertNotDeterministic(
        "deepatlas_ops: the CUDA gradient of implicit_warp by c_moving");
  }
}

// A tensor for the gradient of a map. The CPU kernels write every element; the CUDA kernels add to
// zeros.
Tensor gradient(const Tensor& like, const at::TensorOptions& options) {
  return !on_cuda(like) && like.numel() > 0 ? at::empty(like.sizes(), options)
                                           : at::zeros(like.sizes(), options);
}

std::tuple<Tensor, Tensor> implicit_warp_backward(const Tensor& grad, const Tensor& moving,
                                                  const Tensor& displacement, const Tensor& valid,
                                                  const Tensor& matrix, bool need_moving) {
  const char* op = "implicit_warp_backward";
  const c10::OptionalDeviceGuard guard(moving.device());
  InvertArgs a = invert_args(op, moving, "grad", grad, matrix);
  check_wide(op, "grad", grad, moving);
  check_wide(op, "displacement", displacement, moving);
  check_type(op, "valid", valid, at::kBool, kMoving, moving);
  TORCH_CHECK(displacement.sizes() == grad.sizes() && valid.numel() * 3 == grad.numel(),
              "deepatlas_ops.", op, ": displacement and valid must fit grad, ", grad.sizes(),
              ", got ", displacement.sizes(), " and ", valid.sizes());
  if (need_moving) alert(moving);
  const auto options = accumulating(moving);
  const bool any = grad.numel() > 0;
  Tensor grad_moving, grad_fixed = at::empty(grad.sizes(), options);
  if (need_moving) {
    grad_moving = any ? gradient(moving, options) : at::zeros(moving.sizes(), options);
  }
  if (any) {
    Batch t;
    t.moving = moving.contiguous();
    t.matrix = matrix.contiguous();
    t.displacement = displacement.contiguous();
    t.valid = valid.contiguous();
    t.grad = grad.contiguous();
    t.grad_moving = grad_moving;
    t.grad_fixed = grad_fixed;
    const int64_t items = together(a, moving.size(0), moving, 1);
    const Tensor packed = scratch(a, items, options);
    a.packed = packed.mutable_data_ptr();
    in_turns(a, t, items,
             [&](const InvertArgs& part) { DA_LAUNCH(op, invert_implicit, part, moving); });
  }
  return {need_moving ? grad_moving.to(moving.scalar_type()) : at::empty({0}, moving.options()),
          grad_fixed.to(moving.scalar_type())};
}

// The sum over the lines. On the CPU its order does not depend on the number of threads.
Tensor sum_lines(const Tensor& partial) {
  if (on_cuda(partial)) return partial.sum(1);
  Tensor sum = at::zeros({partial.size(0), 9}, partial.options().dtype(at::kDouble));
  double* to = sum.mutable_data_ptr<double>();
  with_scalar(partial.scalar_type() == at::kDouble ? Scalar::kFloat64 : Scalar::kFloat32,
              [&](auto s) {
                const auto* from = static_cast<const decltype(s)*>(partial.const_data_ptr());
                const int64_t each = partial.size(1) * 9;
                for (int64_t i = 0; i < partial.numel(); ++i) {
                  to[i / each * 9 + i % 9] += double(load(from[i]));
                }
              });
  return sum.to(partial.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> implicit_warp_unrolled_backward(
    const Tensor& grad, const Tensor& moving, const Tensor& fixed, const Tensor& matrix,
    int64_t iterations, double tolerance) {
  const char* op = "implicit_warp_unrolled_backward";
  const c10::OptionalDeviceGuard guard(moving.device());
  InvertArgs a = invert_args(op, moving, "c_fixed", fixed, matrix);
  check_like(op, "c_fixed", fixed, kMoving, moving);
  check_wide(op, "grad", grad, moving);
  TORCH_CHECK(grad.sizes() == fixed.sizes(), "deepatlas_ops.", op,
              ": grad must have the shape of c_fixed, ", fixed.sizes(), ", got ", grad.sizes());
  set_iterations(op, a, iterations, tolerance);
  alert(moving);
  const int64_t batch = moving.size(0);
  const auto options = accumulating(moving);
  if (grad.numel() == 0) {
    return {at::zeros_like(moving), at::zeros_like(fixed), at::zeros_like(matrix)};
  }
  const Tensor grad_moving = gradient(moving, options), grad_fixed = gradient(fixed, options);
  const bool cuda = on_cuda(moving);
  const auto lines = [&](const Shape3& s) { return int64_t(s.d) * (cuda ? s.w : s.h); };
  Batch t;
  t.moving = moving.contiguous();
  t.fixed = fixed.contiguous();
  t.matrix = matrix.contiguous();
  t.grad = grad.contiguous();
  t.grad_moving = grad_moving;
  t.grad_fixed = grad_fixed;
  t.partial_moving = at::empty({batch, lines(a.in), 9}, options);
  t.partial_fixed = at::empty({batch, lines(a.out), 9}, options);
  // With one item for each thread, no item is cut into slabs, which would do some work twice.
  const int64_t items = together(a, batch, moving, cuda ? 1 : at::get_num_threads());
  const Tensor packed = scratch(a, items, options);
  const Tensor scattered = cuda ? Tensor() : scratch(a, items, options);
  a.packed = packed.mutable_data_ptr();
  a.scattered = cuda ? nullptr : scattered.mutable_data_ptr();
  in_turns(a, t, items,
           [&](const InvertArgs& part) { DA_LAUNCH(op, invert_unrolled, part, moving); });
  return {grad_moving.to(moving.scalar_type()), grad_fixed.to(moving.scalar_type()),
          sum_lines(t.partial_moving).add(sum_lines(t.partial_fixed)).view({batch, 3, 3})};
}

void register_invert(torch::Library& m) {
  m.impl("implicit_warp", &implicit_warp);
  m.impl("implicit_warp_backward", &implicit_warp_backward);
  m.impl("implicit_warp_unrolled", &implicit_warp_unrolled);
  m.impl("implicit_warp_unrolled_backward", &implicit_warp_unrolled_backward);
}

}  // namespace
}  // namespace deepatlas

DA_REGISTER(deepatlas::register_invert)
