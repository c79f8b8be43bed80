// The op resize for PyTorch.
#include "ops.h"

namespace deepatlas {
namespace {

// resize of a volume to `size`, or backward from the gradient of a resized volume to that of a
// volume of `size`. The result is contiguous, or has the channels last. The CPU reads and writes both
// layouts; CUDA computes in contiguous tensors.
Tensor resize_any(const char* op, bool backward, const Tensor& tensor, at::IntArrayRef size,
                  bool channels_last) {
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
  const auto planar = at::MemoryFormat::Contiguous, last = at::MemoryFormat::ChannelsLast3d;
  const bool beside = channels_last && !on_cuda(tensor);
  const Tensor t = tensor.contiguous(beside ? last : planar);
  const auto empty = [&](at::MemoryFormat layout) {
    return at::empty({tensor.size(0), tensor.size(1), size[0], size[1], size[2]},
                     t.options().memory_format(layout));
  };
  Tensor result = empty(beside ? last : planar);
  if (beside) {
    a.items = tensor.size(0);
    a.beside = tensor.size(1);
  }
  if (result.numel() == 0) return channels_last ? empty(last) : result;
  if (t.numel() == 0) return empty(channels_last ? last : planar).zero_();
  a.source = t.const_data_ptr();
  a.target = result.mutable_data_ptr();
  if (backward) {
    DA_LAUNCH(op, resize_backward, a, t);
  } else {
    DA_LAUNCH(op, resize_forward, a, t);
  }
  return channels_last == beside ? result : empty(last).copy_(result);
}

Tensor resize(const Tensor& volume, at::IntArrayRef size, bool channels_last) {
  return resize_any("resize", false, volume, size, channels_last);
}

Tensor resize_backward(const Tensor& grad, at::IntArrayRef size, bool channels_last) {
  return resize_any("resize_backward", true, grad, size, channels_last);
}

void register_resize(torch::Library& m) {
  m.impl("resize", &resize);
  m.impl("resize_backward", &resize_backward);
}

}  // namespace
}  // namespace deepatlas

DA_REGISTER(deepatlas::register_resize)
