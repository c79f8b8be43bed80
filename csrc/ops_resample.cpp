// The ops resample, warp and affine_resample for PyTorch.
#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>

#include "ops.h"

namespace deepatlas {
namespace {

// The name of the argument that gives the positions.
const char* name_of(Source source) {
  return source == Source::kCoords   ? "coords"
         : source == Source::kAffine ? "theta"
                                     : "displacement";
}

// The arguments of the kernels except for the pointers. Checks what the three ops share. `size` is
// that of the output.
SampleArgs sample_args(const char* op, Source source, const Tensor& volume, const Tensor& field,
                       at::IntArrayRef size, int64_t mode, int64_t padding) {
  check_volume(op, "volume", volume);
  check_options(op, mode, padding);
  check_like(op, name_of(source), field, "volume", volume);
  check_batch(op, name_of(source), field, "volume", volume);
  if (source == Source::kAffine) {
    TORCH_CHECK(field.dim() == 3 && field.size(1) == 3 && field.size(2) == 4, "deepatlas_ops.", op,
                ": theta must be [B, 3, 4], got ", field.sizes());
    TORCH_CHECK(size.size() == 3, "deepatlas_ops.", op, ": size must be (D, H, W), got ", size);
  } else {
    check_map(op, name_of(source), field);
  }
  SampleArgs a{};
  a.scalar = scalar_of(op, "volume", volume);
  a.source = source;
  a.mode = int(mode);
  a.padding = int(padding);
  a.batch = volume.size(0);
  a.channels = volume.size(1);
  a.in = shape_of(op, "volume", volume.sizes().slice(2));
  a.out = shape_of(op, "the output", size);
  check_not_empty(op, "volume", a.in, a.out);
  return a;
}

// The field as the kernels read it. theta is converted to the type that the kernels compute in.
Tensor prepared(Source source, const Tensor& field) {
  return source == Source::kAffine ? field.to(accumulate_type(field)).contiguous()
                                   : field.contiguous();
}

Tensor sample(const char* op, Source source, const Tensor& volume, const Tensor& field,
              at::IntArrayRef size, int64_t mode, int64_t padding) {
  const c10::OptionalDeviceGuard guard(volume.device());
  SampleArgs a = sample_args(op, source, volume, field, size, mode, padding);
  const Tensor v = volume.contiguous(), f = prepared(source, field);
  Tensor output = at::empty({a.batch, a.channels, a.out.d, a.out.h, a.out.w}, v.options());
  if (output.numel() == 0) return output;
  a.volume = v.const_data_ptr();
  a.coords = f.const_data_ptr();
  a.output = output.mutable_data_ptr();
  DA_LAUNCH(op, sample_forward, a, v);
  return output;
}

// The gradient of theta from the gradient by the normalised sampling position [B, 3, D, H, W]: its
// first moments over the identity grid. These are plain sums and hence deterministic. A matrix
// product would be rounded to a half type by autocast, and CUDA may round it to TF32.
Tensor theta_gradient(const Tensor& g, const Tensor& theta) {
  const auto identity = [&](int64_t n) {
    // From -1 to 1, or 0 for an axis of size 1.
    return at::arange(1 - n, n, 2, g.options()).div(double(n > 1 ? n - 1 : 1));
  };
  const Tensor rows = g.sum(-1), planes = rows.sum(-1);
  const Tensor along_x = g.sum(at::IntArrayRef{2, 3}).mul(identity(g.size(4))).sum(-1);
  const Tensor along_y = rows.sum(2).mul(identity(g.size(3))).sum(-1);
  const Tensor along_z = planes.mul(identity(g.size(2))).sum(-1);
  const Tensor moments = at::cat({along_x.unsqueeze(2), along_y.unsqueeze(2), along_z.unsqueeze(2),
                                  planes.sum(-1).unsqueeze(2)},
                                 2);
  return moments.to(theta.scalar_type());
}

std::tuple<Tensor, Tensor> sample_backward(const char* op, Source source, const Tensor& grad,
                                           const Tensor& volume, const Tensor& field, int64_t mode,
                                           int64_t padding, bool need_volume, bool need_field) {
  const c10::OptionalDeviceGuard guard(volume.device());
  check_volume(op, "grad", grad);
  const auto size = grad.sizes().slice(2);
  SampleArgs a = sample_args(op, source, volume, field, size, mode, padding);
  check_like(op, "grad", grad, "volume", volume);
  check_batch(op, "grad", grad, "volume", volume);
  TORCH_CHECK(
      grad.size(1) == a.channels && (source == Source::kAffine || field.sizes().slice(2) == size),
      "deepatlas_ops.", op, ": grad must have the shape of the output, got ", grad.sizes());
  if (on_cuda(volume) && need_volume) {
    at::globalContext().alertNotDeterministic(
        "deepatlas_ops: the CUDA gradient by the sampled volume");
  }
  const auto accumulate = accumulating(volume);
  Tensor grad_volume, grad_field, grad_position;
  const bool any = a.batch * a.out.voxels() > 0;
  if (need_volume) {
    grad_volume = any && !on_cuda(volume) ? at::empty(volume.sizes(), accumulate)
                                         : at::zeros(volume.sizes(), accumulate);
  }
  if (need_field) {
    grad_position = at::empty({a.batch, 3, a.out.d, a.out.h, a.out.w},
                              source == Source::kAffine ? accumulate : field.options());
  }
  if (any && (need_volume || need_field)) {
    const Tensor g = grad.contiguous(), v = volume.contiguous(), f = prepared(source, field);
    a.volume = v.const_data_ptr();
    a.coords = f.const_data_ptr();
    a.grad = g.const_data_ptr();
    a.grad_volume = need_volume ? grad_volume.mutable_data_ptr() : nullptr;
    a.grad_coords = need_field ? grad_position.mutable_data_ptr() : nullptr;
    DA_LAUNCH(op, sample_backward, a, v);
  }
  grad_volume =
      need_volume ? grad_volume.to(volume.scalar_type()) : at::empty({0}, volume.options());
  if (!need_field) {
    grad_field = at::empty({0}, field.options());
  } else {
    grad_field = source == Source::kAffine ? theta_gradient(grad_position, field) : grad_position;
  }
  return {grad_volume, grad_field};
}

Tensor resample(const Tensor& volume, const Tensor& coords, int64_t mode, int64_t padding) {
  const auto size = coords.dim() == 5 ? coords.sizes().slice(2) : at::IntArrayRef{};
  return sample("resample", Source::kCoords, volume, coords, size, mode, padding);
}

Tensor warp(const Tensor& volume, const Tensor& displacement, int64_t mode, int64_t padding) {
  const auto size = displacement.dim() == 5 ? displacement.sizes().slice(2) : at::IntArrayRef{};
  return sample("warp", Source::kDisplacement, volume, displacement, size, mode, padding);
}

Tensor affine_resample(const Tensor& volume, const Tensor& theta, at::IntArrayRef size,
                       int64_t mode, int64_t padding) {
  return sample("affine_resample", Source::kAffine, volume, theta, size, mode, padding);
}

std::tuple<Tensor, Tensor> resample_backward(const Tensor& grad, const Tensor& volume,
                                             const Tensor& coords, int64_t mode, int64_t padding,
                                             bool need_volume, bool need_coords) {
  return sample_backward("resample_backward", Source::kCoords, grad, volume, coords, mode, padding,
                         need_volume, need_coords);
}

std::tuple<Tensor, Tensor> warp_backward(const Tensor& grad, const Tensor& volume,
                                         const Tensor& displacement, int64_t mode, int64_t padding,
                                         bool need_volume, bool need_displacement) {
  return sample_backward("warp_backward", Source::kDisplacement, grad, volume, displacement, mode,
                         padding, need_volume, need_displacement);
}

std::tuple<Tensor, Tensor> affine_resample_backward(const Tensor& grad, const Tensor& volume,
                                                    const Tensor& theta, int64_t mode,
                                                    int64_t padding, bool need_volume,
                                                    bool need_theta) {
  return sample_backward("affine_resample_backward", Source::kAffine, grad, volume, theta, mode,
                         padding, need_volume, need_theta);
}

void register_resample(torch::Library& m) {
  m.impl("resample", &resample);
  m.impl("resample_backward", &resample_backward);
  m.impl("warp", &warp);
  m.impl("warp_backward", &warp_backward);
  m.impl("affine_resample", &affine_resample);
  m.impl("affine_resample_backward", &affine_resample_backward);
}

}  // namespace
}  // namespace deepatlas

DA_REGISTER(deepatlas::register_resample)
