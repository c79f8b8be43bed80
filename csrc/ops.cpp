// The only file that knows PyTorch: checks, allocation, dtype, device and stream, registration. The
// schemas are defined in deepatlas_ops/_library.py.
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <tuple>

#include "kernels.h"

namespace deepatlas {
namespace {

using at::Tensor;

// ---- launching ----------------------------------------------------------------------------------

Parallel torch_threads() {
  return {at::get_num_threads(),
          [](int64_t count, int64_t grain, void* context, Parallel::Body body) {
            at::parallel_for(0, count, grain, [&](int64_t a, int64_t b) { body(context, a, b); });
          }};
}

#ifdef WITH_CUDA
// Runs `launcher` on the current stream of the tensor's device; the caller holds the device guard.
template <class Args>
void launch_cuda(const char* op, const char* (*launcher)(const Args&, void*), const Args& args,
                 const Tensor& like) {
  const c10::impl::VirtualGuardImpl guard(like.device().type());
  const char* error = launcher(args, guard.getStream(like.device()).native_handle());
  TORCH_CHECK(error == nullptr, "deepatlas_ops.", op,
              ": the CUDA kernel could not be launched: ", error);
}
#define DA_LAUNCH(op, name, args, like)         \
  do {                                          \
    if ((like).is_cuda()) {                     \
      launch_cuda(op, name##_cuda, args, like); \
    } else {                                    \
      name##_cpu(args, torch_threads());        \
    }                                           \
  } while (false)
#else
#define DA_LAUNCH(op, name, args, like) name##_cpu(args, torch_threads())
#endif

// ---- checks -------------------------------------------------------------------------------------

Scalar scalar_of(const char* op, const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kDouble:
      return Scalar::kFloat64;
    case at::kFloat:
      return Scalar::kFloat32;
    case at::kHalf:
      return Scalar::kFloat16;
    case at::kBFloat16:
      return Scalar::kBFloat16;
    default:
      TORCH_CHECK(false, "deepatlas_ops.", op,
                  ": volume must be float64, float32, float16 or bfloat16, got ", t.scalar_type());
  }
}

at::ScalarType accumulate_type(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Positions are computed in the floating type of the data: beyond 2^24 voxels an axis float32 has
// no voxel resolution, and voxel indices along one axis are 32-bit.
constexpr int64_t kLongestAxis = int64_t(1) << 24;

Shape3 shape_of(const char* op, const char* name, at::IntArrayRef size) {
  for (const int64_t n : size) {
    TORCH_CHECK(n >= 0 && n <= kLongestAxis, "deepatlas_ops.", op, ": every axis of ", name,
                " must have 0 to ", kLongestAxis, " voxels, got [", size, "]");
  }
  return {int32_t(size[0]), int32_t(size[1]), int32_t(size[2])};
}

void check_volume(const char* op, const char* name, const Tensor& t) {
  TORCH_CHECK(t.dim() == 5, "deepatlas_ops.", op, ": ", name, " must be [B, C, D, H, W], got ",
              t.sizes());
}

// `field` is coords, displacement or theta.
void check_pair(const char* op, const Tensor& volume, const char* name, const Tensor& field) {
  TORCH_CHECK(field.device() == volume.device(), "deepatlas_ops.", op, ": ", name, " must be on ",
              volume.device(), " like volume, got ", field.device());
  TORCH_CHECK(field.scalar_type() == volume.scalar_type(), "deepatlas_ops.", op, ": ", name,
              " must be ", volume.scalar_type(), " like volume, got ", field.scalar_type());
  TORCH_CHECK(field.dim() > 0 && field.size(0) == volume.size(0), "deepatlas_ops.", op, ": ", name,
              " must have the batch size ", volume.size(0), " of volume, got ", field.sizes());
}

void check_not_empty(const char* op, const Shape3& in, const Shape3& out) {
  TORCH_CHECK(in.voxels() > 0 || out.voxels() == 0, "deepatlas_ops.", op,
              ": volume has no voxels to sample from, got [", in.d, ", ", in.h, ", ", in.w, "]");
}

void check_options(const char* op, int64_t mode, int64_t padding) {
  TORCH_CHECK(mode == kLinear || mode == kNearest, "deepatlas_ops.", op,
              ": mode must be 0 (linear) or 1 (nearest), got ", mode);
  TORCH_CHECK(padding >= kBorder && padding <= kReflection, "deepatlas_ops.", op,
              ": padding must be 0 (border), 1 (zeros) or 2 (reflection), got ", padding);
}

// ---- sampling -----------------------------------------------------------------------------------

const char* name_of(Source source) {
  return source == Source::kCoords   ? "coords"
         : source == Source::kAffine ? "theta"
                                     : "displacement";
}

// Everything but the pointers; checks what the three sampling ops share. `size` is that of the
// output.
SampleArgs sample_args(const char* op, Source source, const Tensor& volume, const Tensor& field,
                       at::IntArrayRef size, int64_t mode, int64_t padding) {
  check_volume(op, "volume", volume);
  check_options(op, mode, padding);
  check_pair(op, volume, name_of(source), field);
  if (source == Source::kAffine) {
    TORCH_CHECK(field.dim() == 3 && field.size(1) == 3 && field.size(2) == 4, "deepatlas_ops.", op,
                ": theta must be [B, 3, 4], got ", field.sizes());
    TORCH_CHECK(size.size() == 3, "deepatlas_ops.", op, ": size must be (D, H, W), got [", size,
                "]");
  } else {
    TORCH_CHECK(field.dim() == 5 && field.size(1) == 3, "deepatlas_ops.", op, ": ", name_of(source),
                " must be [B, 3, D, H, W], got ", field.sizes());
  }
  SampleArgs a{};
  a.scalar = scalar_of(op, volume);
  a.source = source;
  a.mode = int(mode);
  a.padding = int(padding);
  a.batch = volume.size(0);
  a.channels = volume.size(1);
  a.in = shape_of(op, "volume", volume.sizes().slice(2));
  a.out = shape_of(op, "the output", size);
  check_not_empty(op, a.in, a.out);
  return a;
}

// The field as the kernels read it: theta is small and used as it is computed with.
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

// Gradient by theta from the gradient by the normalised sampling position [B, 3, D, H, W]: its
// first moments over the separable identity grid. Plain reductions, hence deterministic.
Tensor theta_gradient(const Tensor& g, const Tensor& theta) {
  const auto identity = [&](int64_t n) {
    return at::arange(1 - n, n, 2, g.options()).div(double(n > 1 ? n - 1 : 1));  // [-1, 1], or 0
  };
  const Tensor rows = g.sum(-1), planes = rows.sum(-1);
  const Tensor along_x = at::matmul(g.sum(at::IntArrayRef{2, 3}), identity(g.size(4)));
  const Tensor along_y = at::matmul(rows.sum(2), identity(g.size(3)));
  const Tensor along_z = at::matmul(planes, identity(g.size(2)));
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
  check_pair(op, volume, "grad", grad);
  TORCH_CHECK(
      grad.size(1) == a.channels && (source == Source::kAffine || field.sizes().slice(2) == size),
      "deepatlas_ops.", op, ": grad must have the shape of the output, got ", grad.sizes());
  if (volume.is_cuda() && need_volume) {
    at::globalContext().alertNotDeterministic(
        "deepatlas_ops: the CUDA gradient by the sampled volume");
  }
  const auto accumulate =
      volume.options().dtype(accumulate_type(volume)).memory_format(std::nullopt);
  Tensor grad_volume, grad_field, grad_position;
  const bool any = a.batch * a.out.voxels() > 0;
  if (need_volume) {
    grad_volume = any && volume.is_cpu() ? at::empty(volume.sizes(), accumulate)
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

// ---- resize -------------------------------------------------------------------------------------

Tensor resize_any(const char* op, bool backward, const Tensor& tensor, at::IntArrayRef size) {
  const c10::OptionalDeviceGuard guard(tensor.device());
  check_volume(op, backward ? "grad" : "volume", tensor);
  TORCH_CHECK(size.size() == 3, "deepatlas_ops.", op, ": size must be (D, H, W), got [", size, "]");
  ResizeArgs a{};
  a.scalar = scalar_of(op, tensor);
  a.items = tensor.size(0) * tensor.size(1);
  const Shape3 given = shape_of(op, "the input", tensor.sizes().slice(2)),
               asked = shape_of(op, "size", size);
  a.in = backward ? asked : given;
  a.out = backward ? given : asked;
  check_not_empty(op, a.in, a.out);
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

void register_all(torch::Library& m) {
  m.impl("resample", &resample);
  m.impl("resample_backward", &resample_backward);
  m.impl("warp", &warp);
  m.impl("warp_backward", &warp_backward);
  m.impl("resize", &resize);
  m.impl("resize_backward", &resize_backward);
  m.impl("affine_resample", &affine_resample);
  m.impl("affine_resample_backward", &affine_resample_backward);
}

}  // namespace
}  // namespace deepatlas

TORCH_LIBRARY_IMPL(deepatlas_ops, CPU, m) { deepatlas::register_all(m); }
#ifdef WITH_CUDA
TORCH_LIBRARY_IMPL(deepatlas_ops, CUDA, m) { deepatlas::register_all(m); }
#endif
