// What the ops_*.cpp files share: launching a kernel on the device of a tensor, checks of dtypes
// and shapes, and allocation. This file and those are the only ones that include PyTorch. The
// schemas of the ops are defined in deepatlas_ops/. All ops_*.cpp are compiled as one file, since
// PyTorch's headers take longer than the rest, so they share an unnamed namespace.
//
// The ops check their arguments and raise a c10::Error, in Python a RuntimeError, that names the op
// and the argument. They accept tensors with any strides and return contiguous ones.
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

#ifdef EMULATE_CUDA
// tests/emu compiles the .cu files for the CPU and defines these: whether they run in place of the
// CPU kernels, the stream that they must be given, and a list of the launchers that were called.
bool on_cuda(const Tensor&);
void* emulated_stream();
void note_launch(const char* launcher);
#else
// Whether the kernels of CUDA compute with this tensor.
inline bool on_cuda(const Tensor& t) { return t.is_cuda(); }
#endif

#ifdef WITH_CUDA
inline void* current_stream(const Tensor& t) {
  const c10::impl::VirtualGuardImpl guard(t.device().type());
  return guard.getStream(t.device()).native_handle();
}

// Calls `launcher` with the current stream of the device of `like`. The caller holds the device
// guard.
template <class Args>
void launch_cuda(const char* op, const char* (*launcher)(const Args&, void*), const Args& args,
                 const Tensor& like) {
#ifdef EMULATE_CUDA
  (void)like;
  void* stream = emulated_stream();
#else
  void* stream = current_stream(like);
#endif
  const char* error = launcher(args, stream);
  TORCH_CHECK(error == nullptr, "deepatlas_ops.", op,
              ": the CUDA kernel could not be launched: ", error);
}
#ifdef EMULATE_CUDA
#define DA_NOTE(launcher) note_launch(#launcher)
#else
#define DA_NOTE(launcher)
#endif
// DA_LAUNCH(op, name, args, like) runs name##_cuda or name##_cpu, by the device of the tensor
// `like`. DA_CALL(name, args, like) is the result of a function of the arguments that both devices
// have.
#define DA_LAUNCH(op, name, args, like)         \
  do {                                          \
    if (on_cuda(like)) {                        \
      DA_NOTE(name##_cuda);                     \
      launch_cuda(op, name##_cuda, args, like); \
    } else {                                    \
      name##_cpu(args, torch_threads());        \
    }                                           \
  } while (false)
#define DA_CALL(name, args, like) (on_cuda(like) ? name##_cuda(args) : name##_cpu(args))
#else
#define DA_LAUNCH(op, name, args, like) name##_cpu(args, torch_threads())
#define DA_CALL(name, args, like) name##_cpu(args)
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

// The options of a contiguous tensor on the device of `t` in the type that the kernels accumulate
// in.
inline at::TensorOptions accumulating(const Tensor& t) {
  return t.options().dtype(accumulate_type(t)).memory_format(std::nullopt);
}

// A contiguous tensor like `t` for its gradient, or an empty tensor if the gradient is not needed.
inline Tensor gradient_like(const Tensor& t, bool need) {
  const auto options = t.options().memory_format(std::nullopt);
  return need ? at::empty(t.sizes(), options) : at::empty({0}, options);
}

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

// `t` must have the dtype `type`, and the device of the argument `other`, which is called
// `other_name`.
inline void check_type(const char* op, const char* name, const Tensor& t, at::ScalarType type,
                       const char* other_name, const Tensor& other) {
  TORCH_CHECK(t.device() == other.device(), "deepatlas_ops.", op, ": ", name, " must be on ",
              other.device(), " like ", other_name, ", got ", t.device());
  TORCH_CHECK(t.scalar_type() == type, "deepatlas_ops.", op, ": ", name, " must be ", type,
              type == other.scalar_type() ? " like " : " for this ", other_name, ", got ",
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

// DA_REGISTER(function) registers the implementations that `function(torch::Library&)` names, for
// the CPU and for CUDA. They choose the kernel by the device of their tensors.
#ifdef WITH_CUDA
#define DA_REGISTER(function)                                \
  TORCH_LIBRARY_IMPL(deepatlas_ops, CPU, m) { function(m); } \
  TORCH_LIBRARY_IMPL(deepatlas_ops, CUDA, m) { function(m); }
#else
#define DA_REGISTER(function) \
  TORCH_LIBRARY_IMPL(deepatlas_ops, CPU, m) { function(m); }
#endif

}  // namespace deepatlas
