// The op resize for PyTorch.
#include "ops.h"

namespace deepatlas {
namespace {

// resize of a volume to `size`, or backward from the gradient of a resized volume to that of a
// volume of `size`.
Tensor resize_any(const char* op, bool backward, const Tensor& tensor, at::IntArrayRef size) {
  const c10::OptionalDeviceGuard guard(tensor.device());
  const char* name = backward ? "grad" : "volume";
  check_volume(op, name, tensor);
  TORCH_CHECK(size.size() == 3, "deepatlas_ops.", op, ": size must be (D, H, W), got ", size);
  ResizeArgs a{};
  a.scalar = scalar_of(op, name, tensor);
  a.items = tensor.size(0) * tensor.size(1);
  const Shape3 given = shape_of(op, name, tensor.sizes().slice(2)),
               asked = shape_of(op, "size", size);
  a.in = backward ? asked : given;
  a.out = backward ? given : asked;
  check_not_empty(op, backward ? "size" : "volume", a.in, a.out);
  const Tensor t = tensor.contiguous();
  Tensor result =
      at::empty({tensor.size(0), tensor.size(1), size[0], size[1], size[2]}, t.options());
  if (result.numel() == 0) return result;
  if (t.numel() == 0) return result.zero_();
  a.source = t.const_data_ptr();
  a.target = result.mutable_data_ptr();
  if (backward) {
    DA_LAUNCH(op, resize_backward, a, t);
  } else {
    DA_LAUNCH(op, resize_forward, a, t);
  }
  return result;
}

Tensor resize(const Tensor& volume, at::IntArrayRef size) {
  return resize_any("resize", false, volume, size);
}

Tensor resize_backward(const Tensor& grad, at::IntArrayRef size) {
  return resize_any("resize_backward", true, grad, size);
}

void register_resize(torch::Library& m) {
  m.impl("resize", &resize);
  m.impl("resize_backward", &resize_backward);
}

}  // namespace
}  // namespace deepatlas

DA_REGISTER(deepatlas::register_resize)
