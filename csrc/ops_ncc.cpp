// The op ncc for PyTorch.
#include "ncc.h"
#include "ops.h"

namespace deepatlas {
namespace {

using ncc::kMoments;

// The arguments of the kernels, and the contiguous tensors that own their memory.
struct NccInputs {
  Tensor a, b, mask, moments, workspace;
  NccArgs args{};
};

NccInputs ncc_inputs(const char* op, const Tensor& a, const Tensor& b,
                     const std::optional<Tensor>& mask, int64_t window, double eps) {
  check_volume(op, "a", a);
  check_like(op, "b", b, "a", a);
  TORCH_CHECK(b.sizes() == a.sizes(), "deepatlas_ops.", op, ": b must have the shape ", a.sizes(),
              " of a, got ", b.sizes());
  TORCH_CHECK(window == 0 || (window > 0 && window % 2 == 1), "deepatlas_ops.", op,
              ": window must be 0 (global) or odd, got ", window);
  NccInputs in;
  in.args.scalar = scalar_of(op, "a", a);
  in.args.batch = a.size(0);
  in.args.channels = a.size(1);
  in.args.shape = shape_of(op, "a", a.sizes().slice(2));
  in.args.window = window;
  in.args.eps = eps;
  TORCH_CHECK(in.args.items() == 0 || in.args.shape.voxels() > 0, "deepatlas_ops.", op,
              ": a has no voxels, got ", a.sizes());
  in.a = a.contiguous();
  in.b = b.contiguous();
  in.args.a = in.a.const_data_ptr();
  in.args.b = in.b.const_data_ptr();
  if (mask) {
    check_like(op, "mask", *mask, "a", a);
    const auto size = a.sizes();
    TORCH_CHECK(mask->sizes() == at::IntArrayRef({size[0], 1, size[2], size[3], size[4]}),
                "deepatlas_ops.", op, ": mask must be [B, 1, D, H, W] like a, got ", mask->sizes());
    in.mask = mask->contiguous();
    in.args.mask = in.mask.const_data_ptr();
  }
  return in;
}

// Sets the moments and, on CUDA, a workspace.
void use_moments(NccInputs& in, const Tensor& moments) {
  in.moments = moments;
  in.args.moments = in.moments.mutable_data_ptr<double>();
#ifdef WITH_CUDA
  if (on_cuda(in.a)) {
    in.workspace = at::empty({ncc_workspace_cuda(in.args)}, moments.options());
    in.args.workspace = in.workspace.mutable_data_ptr<double>();
  }
#endif
}

std::tuple<Tensor, Tensor> ncc(const Tensor& a, const Tensor& b, const std::optional<Tensor>& mask,
                               int64_t window, double eps) {
  const c10::OptionalDeviceGuard guard(a.device());
  NccInputs in = ncc_inputs("ncc", a, b, mask, window, eps);
  const Tensor value = at::empty({in.args.batch, in.args.channels}, in.a.options());
  const Tensor moments =
      at::empty({in.args.batch, in.args.channels, kMoments}, in.a.options().dtype(at::kDouble));
  if (value.numel() > 0) {
    use_moments(in, moments);
    in.args.value = value.mutable_data_ptr();
    DA_LAUNCH("ncc", ncc_forward, in.args, in.a);
  }
  return {value, moments};
}

std::tuple<Tensor, Tensor> ncc_backward(const Tensor& grad, const Tensor& a, const Tensor& b,
                                        const std::optional<Tensor>& mask, const Tensor& moments,
                                        int64_t window, double eps, bool need_a, bool need_b) {
  const char* op = "ncc_backward";
  const c10::OptionalDeviceGuard guard(a.device());
  NccInputs in = ncc_inputs(op, a, b, mask, window, eps);
  check_like(op, "grad", grad, "a", a);
  TORCH_CHECK(grad.sizes() == a.sizes().slice(0, 2), "deepatlas_ops.", op,
              ": grad must be [B, C], got ", grad.sizes());
  TORCH_CHECK(moments.device() == a.device() && moments.scalar_type() == at::kDouble &&
                  moments.sizes() == at::IntArrayRef({a.size(0), a.size(1), kMoments}),
              "deepatlas_ops.", op, ": moments must be those of ncc, [B, C, ", kMoments,
              "] in float64 on ", a.device(), ", got ", moments.sizes(), " ",
              moments.scalar_type());
  const Tensor grad_a = gradient_like(in.a, need_a), grad_b = gradient_like(in.b, need_b);
  if ((need_a || need_b) && a.numel() > 0) {
    const Tensor g = grad.contiguous();
    use_moments(in, moments.contiguous());
    in.args.grad = g.const_data_ptr();
    in.args.grad_a = need_a ? grad_a.mutable_data_ptr() : nullptr;
    in.args.grad_b = need_b ? grad_b.mutable_data_ptr() : nullptr;
    DA_LAUNCH(op, ncc_backward, in.args, in.a);
  }
  return {grad_a, grad_b};
}

void register_ncc(torch::Library& m) {
  m.impl("ncc", &ncc);
  m.impl("ncc_backward", &ncc_backward);
}

}  // namespace
}  // namespace deepatlas

DA_REGISTER(deepatlas::register_ncc)
