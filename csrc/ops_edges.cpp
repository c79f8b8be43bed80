// The op edge_difference for PyTorch.
#include "ops.h"

namespace deepatlas {
namespace {

// The arguments of the kernels, and the contiguous tensors that own their memory.
struct EdgesInputs {
  Tensor moving, fixed, mask;
  EdgesArgs args{};
};

EdgesInputs edges_inputs(const char* op, const Tensor& moving, const Tensor& fixed,
                         const std::optional<Tensor>& mask) {
  check_volume(op, "moving", moving);
  check_like(op, "fixed", fixed, "moving", moving);
  check_size(op, "fixed", fixed, moving.sizes());
  EdgesInputs in;
  in.args.scalar = scalar_of(op, "moving", moving);
  in.args.batch = moving.size(0);
  in.args.channels = moving.size(1);
  in.args.shape = shape_of(op, "moving", moving.sizes().slice(2));
  in.moving = moving.contiguous();
  in.fixed = fixed.contiguous();
  in.args.moving = in.moving.const_data_ptr();
  in.args.fixed = in.fixed.const_data_ptr();
  if (mask) {
    const auto size = moving.sizes();
    check_like(op, "mask", *mask, "moving", moving);
    check_size(op, "mask", *mask, {size[0], 1, size[2], size[3], size[4]});
    in.mask = mask->contiguous();
    in.args.mask = in.mask.const_data_ptr();
  }
  return in;
}

std::tuple<Tensor, Tensor> edge_difference(const Tensor& moving, const Tensor& fixed,
                                           const std::optional<Tensor>& mask) {
  const char* op = "edge_difference";
  const c10::OptionalDeviceGuard guard(moving.device());
  EdgesInputs in = edges_inputs(op, moving, fixed, mask);
  const auto wide = in.moving.options().dtype(at::kDouble);
  const Tensor value = at::empty({in.args.batch}, in.moving.options());
  const Tensor statistics = at::empty({in.args.batch, 3}, wide);
  if (in.moving.numel() == 0) return {value.zero_(), statistics.zero_()};
  const Tensor sums = at::empty({DA_CALL(edges_sums, in.args, moving)}, wide);
  in.args.value = value.mutable_data_ptr();
  in.args.statistics = statistics.mutable_data_ptr<double>();
  in.args.sums = sums.mutable_data_ptr<double>();
  DA_LAUNCH(op, edges_forward, in.args, in.moving);
  return {value, statistics};
}

std::tuple<Tensor, Tensor> edge_difference_backward(const Tensor& grad, const Tensor& moving,
                                                    const Tensor& fixed,
                                                    const std::optional<Tensor>& mask,
                                                    const Tensor& statistics, bool need_moving,
                                                    bool need_fixed) {
  const char* op = "edge_difference_backward";
  const c10::OptionalDeviceGuard guard(moving.device());
  EdgesInputs in = edges_inputs(op, moving, fixed, mask);
  check_like(op, "grad", grad, "moving", moving);
  check_size(op, "grad", grad, {in.args.batch});
  check_type(op, "statistics", statistics, at::kDouble, "moving", moving);
  check_size(op, "statistics", statistics, {in.args.batch, 3});
  const Tensor grad_moving = gradient_like(in.moving, need_moving);
  const Tensor grad_fixed = gradient_like(in.fixed, need_fixed);
  if ((need_moving || need_fixed) && moving.numel() > 0) {
    const Tensor g = grad.contiguous(), s = statistics.contiguous();
    const int64_t scratch = on_cuda(moving) ? 3 * moving.numel() : 0;
    const Tensor slopes = at::empty({scratch}, accumulating(in.moving));
    in.args.grad = g.const_data_ptr();
    in.args.statistics = const_cast<double*>(s.const_data_ptr<double>());
    in.args.grad_moving = need_moving ? grad_moving.mutable_data_ptr() : nullptr;
    in.args.grad_fixed = need_fixed ? grad_fixed.mutable_data_ptr() : nullptr;
    in.args.slopes = slopes.mutable_data_ptr();
    DA_LAUNCH(op, edges_backward, in.args, in.moving);
  }
  return {grad_moving, grad_fixed};
}

void register_edges(torch::Library& m) {
  m.impl("edge_difference", &edge_difference);
  m.impl("edge_difference_backward", &edge_difference_backward);
}

}  // namespace
}  // namespace deepatlas

DA_REGISTER(deepatlas::register_edges)
