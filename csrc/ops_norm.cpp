// The op group_norm_leaky_relu for PyTorch, on the CPU.
#include "ops.h"

namespace deepatlas {
namespace {

// The arguments of the kernels, and the tensors that own their memory.
struct NormInputs {
  Tensor x, weight, bias;
  at::MemoryFormat layout;
  NormArgs args{};
};

NormInputs norm_inputs(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                       int64_t groups, double slope) {
  check_volume(op, "x", x);
  NormInputs in;
  NormArgs& a = in.args;
  a.scalar = scalar_of(op, "x", x);
  const Shape3 shape = shape_of(op, "x", x.sizes().slice(2));
  a.batch = x.size(0), a.channels = x.size(1), a.groups = groups, a.voxels = shape.voxels();
  TORCH_CHECK(groups > 0 && a.channels > 0 && a.channels % groups == 0, "deepatlas_ops.", op,
              ": groups must divide the ", a.channels, " channels of x, got ", groups);
  check_type(op, "weight", weight, accumulate_type(x), "x", x);
  check_type(op, "bias", bias, accumulate_type(x), "x", x);
  check_size(op, "weight", weight, {a.batch, a.channels});
  check_size(op, "bias", bias, {a.batch, a.channels});
  a.slope = slope;
  a.beside = !x.is_contiguous() && x.is_contiguous(at::MemoryFormat::ChannelsLast3d);
  in.layout = a.beside ? at::MemoryFormat::ChannelsLast3d : at::MemoryFormat::Contiguous;
  in.x = x.contiguous(in.layout), in.weight = weight.contiguous(), in.bias = bias.contiguous();
  a.source = in.x.const_data_ptr();
  a.weight = in.weight.const_data_ptr();
  a.bias = in.bias.const_data_ptr();
  return in;
}

std::tuple<Tensor, Tensor> group_norm_leaky_relu(const Tensor& x, const Tensor& weight,
                                                 const Tensor& bias, int64_t groups, double slope,
                                                 double eps) {
  const char* op = "group_norm_leaky_relu";
  NormInputs in = norm_inputs(op, x, weight, bias, groups, slope);
  const Tensor target = at::empty(x.sizes(), in.x.options().memory_format(in.layout));
  const Tensor statistics =
      at::zeros({in.args.batch, groups, 2}, in.weight.options().dtype(at::kDouble));
  if (x.numel() == 0) return {target, statistics};
  in.args.eps = eps;
  in.args.target = target.mutable_data_ptr();
  in.args.statistics = statistics.mutable_data_ptr<double>();
  norm_forward_cpu(in.args, torch_threads());
  return {target, statistics};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_leaky_relu_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& bias,
    const Tensor& statistics, int64_t groups, double slope, bool need_x) {
  const char* op = "group_norm_leaky_relu_backward";
  NormInputs in = norm_inputs(op, x, weight, bias, groups, slope);
  check_like(op, "grad", grad, "x", x);
  check_size(op, "grad", grad, x.sizes());
  check_type(op, "statistics", statistics, at::kDouble, "x", x);
  check_size(op, "statistics", statistics, {in.args.batch, groups, 2});
  const auto options = in.x.options().memory_format(in.layout);
  const Tensor by_x = need_x ? at::empty(x.sizes(), options) : at::empty({0}, in.x.options());
  const Tensor by_weight = at::zeros(weight.sizes(), in.weight.options());
  const Tensor by_bias = at::zeros(bias.sizes(), in.weight.options());
  if (x.numel() == 0) return {by_x, by_weight, by_bias};
  const Tensor g = grad.contiguous(in.layout), s = statistics.clone(at::MemoryFormat::Contiguous);
  in.args.statistics = s.mutable_data_ptr<double>();
  in.args.grad = g.const_data_ptr();
  in.args.grad_source = need_x ? by_x.mutable_data_ptr() : nullptr;
  in.args.grad_weight = by_weight.mutable_data_ptr();
  in.args.grad_bias = by_bias.mutable_data_ptr();
  norm_backward_cpu(in.args, torch_threads());
  return {by_x, by_weight, by_bias};
}

}  // namespace
}  // namespace deepatlas

// CUDA tensors do not come here: PyTorch has such kernels of its own for them, and the public
// function calls those.
TORCH_LIBRARY_IMPL(deepatlas_ops, CPU, m) {
  m.impl("group_norm_leaky_relu", &deepatlas::group_norm_leaky_relu);
  m.impl("group_norm_leaky_relu_backward", &deepatlas::group_norm_leaky_relu_backward);
}
