// What the ops_*.cpp files share: launching on the tensor's device, dtype and shape checks,
// allocation helpers. With them the only files that know PyTorch; the schemas are defined in
// deepatlas_ops/.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <optional>
#include <tuple>

#include "kernels.h"

namespace deepatlas {

using at::Tensor;

// ---- launching ----------------------------------------------------------------------------------

inline Parallel torch_threads() {
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

inline Scalar scalar_of(const char* op, const char* name, const Tensor& t) {
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
      TORCH_CHECK(false, "deepatlas_ops.", op, ": ", name,
                  " must be float64, float32, float16 or bfloat16, got ", t.scalar_type());
  }
}

inline at::ScalarType accumulate_type(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// For tensors of what the kernels accumulate in, contiguous whatever `t` is.
inline at::TensorOptions accumulating(const Tensor& t) {
  return t.options().dtype(accumulate_type(t)).memory_format(std::nullopt);
}

// Positions are computed in the floating type of the data: beyond 2^24 voxels an axis float32 has
// no voxel resolution, and voxel indices along one axis are 32-bit.
inline constexpr int64_t kLongestAxis = int64_t(1) << 24;

inline Shape3 shape_of(const char* op, const char* name, at::IntArrayRef size) {
  for (const int64_t n : size) {
    TORCH_CHECK(n >= 0 && n <= kLongestAxis, "deepatlas_ops.", op, ": every axis of ", name,
                " must have 0 to ", kLongestAxis, " voxels, got ", size);
  }
  return {int32_t(size[0]), int32_t(size[1]), int32_t(size[2])};
}

inline void check_volume(const char* op, const char* name, const Tensor& t) {
  TORCH_CHECK(t.dim() == 5, "deepatlas_ops.", op, ": ", name, " must be [B, C, D, H, W], got ",
              t.sizes());
}

inline void check_map(const char* op, const char* name, const Tensor& t) {
  TORCH_CHECK(t.dim() == 5 && t.size(1) == 3, "deepatlas_ops.", op, ": ", name,
              " must be [B, 3, D, H, W], got ", t.sizes());
}

// `t` has that type, and the device of the argument `other`, which is called `other_name`.
inline void check_type(const char* op, const char* name, const Tensor& t, at::ScalarType type,
                       const char* other_name, const Tensor& other) {
  TORCH_CHECK(t.device() == other.device(), "deepatlas_ops.", op, ": ", name, " must be on ",
              other.device(), " like ", other_name, ", got ", t.device());
  TORCH_CHECK(t.scalar_type() == type, "deepatlas_ops.", op, ": ", name, " must be ", type,
              type == other.scalar_type() ? " like " : " beside this ", other_name, ", got ",
              t.scalar_type());
}

inline void check_like(const char* op, const char* name, const Tensor& t, const char* other_name,
                       const Tensor& other) {
  check_type(op, name, t, other.scalar_type(), other_name, other);
}

inline void check_batch(const char* op, const char* name, const Tensor& t, const char* other_name,
                        const Tensor& other) {
  TORCH_CHECK(t.dim() > 0 && t.size(0) == other.size(0), "deepatlas_ops.", op, ": ", name,
              " must have the batch size ", other.size(0), " of ", other_name, ", got ", t.sizes());
}

inline void check_size(const char* op, const char* name, const Tensor& t, at::IntArrayRef size) {
  TORCH_CHECK(t.sizes() == size, "deepatlas_ops.", op, ": ", name, " must be ", size, ", got ",
              t.sizes());
}

inline void check_not_empty(const char* op, const char* name, const Shape3& in, const Shape3& out) {
  TORCH_CHECK(in.voxels() > 0 || out.voxels() == 0, "deepatlas_ops.", op, ": ", name,
              " has no voxels to sample from, got [", in.d, ", ", in.h, ", ", in.w, "]");
}

inline void check_options(const char* op, int64_t mode, int64_t padding) {
  TORCH_CHECK(mode == kLinear || mode == kNearest, "deepatlas_ops.", op,
              ": mode must be 0 (linear) or 1 (nearest), got ", mode);
  TORCH_CHECK(padding >= kBorder && padding <= kReflection, "deepatlas_ops.", op,
              ": padding must be 0 (border), 1 (zeros) or 2 (reflection), got ", padding);
}

// ---- registration -------------------------------------------------------------------------------

// DA_REGISTER(function): `function(torch::Library&)` names the implementations, which dispatch on
// the device of their tensors, so that CPU and CUDA share them.
#ifdef WITH_CUDA
#define DA_REGISTER(function)                                \
  TORCH_LIBRARY_IMPL(deepatlas_ops, CPU, m) { function(m); } \
  TORCH_LIBRARY_IMPL(deepatlas_ops, CUDA, m) { function(m); }
#else
#define DA_REGISTER(function) \
  TORCH_LIBRARY_IMPL(deepatlas_ops, CPU, m) { function(m); }
#endif

}  // namespace deepatlas
