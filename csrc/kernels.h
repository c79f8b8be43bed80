// The launchers of all kernels. They take raw pointers and sizes and know no torch type.
//
// Every function `name_cpu` runs on the CPU, in parallel on the threads of `Parallel`, and returns
// when it is done. Its results do not depend on the number of threads. Every function `name_cuda`
// queues its work on `stream` (a cudaStream_t of the current device) and returns null, or the text
// of the launch error. Both read the same arguments.
//
// All arrays are contiguous and lie on the device of the launcher. Shapes are (d, h, w): z, y, x.
// Maps have the channels x, y, z in normalised coordinates: along each axis, -1 is the centre of
// the first voxel and +1 the centre of the last, and an axis of size 1 lies at 0. `scalar` is the
// type of the data: float64, float32, float16 or bfloat16. The accumulate type, T below, is float64
// for float64 and otherwise float32; everything is computed in it unless noted otherwise. Batches,
// channels and shapes of size 0 do not reach these functions: ops_*.cpp handle them. Nothing is
// checked here; ops_*.cpp check everything.
#pragma once

#include <cstdint>

#include "interpolate.h"
#include "launch.h"

namespace deepatlas {

// Calls f with a value of the C++ type of `scalar`.
template <class F>
auto with_scalar(Scalar scalar, const F& f) {
  switch (scalar) {
    case Scalar::kFloat64:
      return f(double());
    case Scalar::kFloat16:
      return f(Half());
    case Scalar::kBFloat16:
      return f(BFloat16());
    default:
      return f(float());
  }
}

// ---- resample, warp and affine_resample ---------------------------------------------------------

// What a sampling op is given: absolute coordinates (resample), a displacement (warp) or a matrix.
enum class Source : int { kCoords, kDisplacement, kAffine };

struct SampleArgs {
  // The type of volume, coords, output and grad.
  Scalar scalar;
  Source source;
  int mode, padding;
  int64_t batch, channels;
  // The shapes of the volume and of the output.
  Shape3 in, out;
  const void* volume;  // [batch, channels, in]
  // Coordinates of the volume, or for Source::kDisplacement a displacement from the identity of
  // `out`. For Source::kAffine a matrix T [batch, 3, 4] from coordinates of `out` to coordinates of
  // the volume.
  const void* coords;  // [batch, 3, out]
  void* output;        // [batch, channels, out]
  // Backward only, like the rest: the gradient of the output.
  const void* grad;  // [batch, channels, out]
  // The gradient of the volume in T, or null if it is not needed. The caller must set it to 0 for
  // CUDA, where it is accumulated by atomic additions; the CPU kernel does that itself.
  void* grad_volume;  // [batch, channels, in]
  // The gradient by the normalised coordinates at which the volume is sampled, in the type of
  // coords (for Source::kAffine in T), or null if it is not needed.
  void* grad_coords;  // [batch, 3, out]
};

// Values of a volume at given places. A NaN coordinate gives NaN in every channel.
void sample_forward_cpu(const SampleArgs& args, const Parallel& parallel);
const char* sample_forward_cuda(const SampleArgs& args, void* stream);

// The gradients of these values. A voxel with a NaN coordinate has none.
void sample_backward_cpu(const SampleArgs& args, const Parallel& parallel);
const char* sample_backward_cuda(const SampleArgs& args, void* stream);

// ---- resize -------------------------------------------------------------------------------------

struct ResizeArgs {
  // The type of source and target.
  Scalar scalar;
  // batch * channels; the batch if the channels lie beside each other.
  int64_t items;
  // The number of values beside each other at each voxel: 1, or on the CPU the channels of tensors with
  // channels last. All of them are resized alike.
  int64_t beside = 1;
  // The shapes of the volume and of the resized volume.
  Shape3 in, out;
  // Forward the volume, backward the gradient of the resized volume.
  const void* source;  // [items, in, beside]; backward: [items, out, beside]
  // Forward the resized volume, backward the gradient of the volume.
  void* target;  // [items, out, beside]; backward: [items, in, beside]
};

// Corner-aligned linear resizing and its adjoint, both deterministic on every device.
void resize_forward_cpu(const ResizeArgs& args, const Parallel& parallel);
void resize_backward_cpu(const ResizeArgs& args, const Parallel& parallel);
const char* resize_forward_cuda(const ResizeArgs& args, void* stream);
const char* resize_backward_cuda(const ResizeArgs& args, void* stream);

// ---- ncc (eq. 9), computed in float64 whatever the data -----------------------------------------

struct NccArgs {
  // The type of a, b, mask, value and the gradients.
  Scalar scalar;
  int64_t batch, channels;
  Shape3 shape;
  // The width of the windows, an odd number; 0 for the whole volume.
  int64_t window;
  // Up to which spread a map counts as flat: see deepatlas_ops.ncc.
  double eps;
  const void* a;     // [batch, channels, shape]
  const void* b;     // [batch, channels, shape]
  const void* mask;  // [batch, 1, shape], or null
  // The moments of each channel (see ncc.h), written by the forward pass and read by the backward
  // pass.
  double* moments;   // [batch, channels, 6]
  void* value;       // [batch, channels]
  const void* grad;  // [batch, channels]
  // Null if they are not needed.
  void* grad_a;  // [batch, channels, shape]
  void* grad_b;  // [batch, channels, shape]
  // Scratch of ncc_workspace_cuda() numbers, on CUDA only.
  double* workspace;
  // On CUDA, how many of these numbers a group of channels may use, 256 MB by default. A single
  // channel may use more.
  int64_t group_values = int64_t(1) << 25;
  int64_t items() const { return batch * channels; }
};

// How many numbers the workspace needs, for both directions.
int64_t ncc_workspace_cuda(const NccArgs& args);

// The correlation of each channel, and its gradients; all deterministic.
void ncc_forward_cpu(const NccArgs& args, const Parallel& parallel);
void ncc_backward_cpu(const NccArgs& args, const Parallel& parallel);
const char* ncc_forward_cuda(const NccArgs& args, void* stream);
const char* ncc_backward_cuda(const NccArgs& args, void* stream);

// ---- log_jacobian, the determinant and smoothness_loss (eqs 10 and 11) --------------------------

struct JacobianArgs {
  // The type of field, weight, grad, grad_field and, but for the determinant, output.
  Scalar scalar;
  int64_t batch;
  Shape3 shape;
  // Absolute coordinates, not a displacement.
  const void* field;  // [batch, 3, shape]
  // smoothness_loss: the weights of the voxels; null weights all equally.
  const void* weight;  // [batch, shape]
  // log_jacobian: divide the columns by their lengths.
  bool normalize;
  // smoothness_loss: the second term is that of the logarithm.
  bool logarithm;
  // Determinant: the smallest one of forward and backward differences.
  bool digital;
  // log_jacobian: the determinant below which the logarithm is replaced.
  double eps;
  // smoothness_loss: the bound of the Huber loss.
  double delta;
  // The determinant is in T, the others in the type of the field.
  void* output;  // [batch, shape]; smoothness_loss: [batch]
  // Backward: the gradient of the output.
  const void* grad;  // like output
  void* grad_field;  // [batch, 3, shape]
  // smoothness_loss: Statistics of jacobian.h, written by the forward pass and read by the backward
  // pass.
  double* statistics;  // [batch, 3]
  // smoothness_loss, forward: scratch in T, and scratch of smoothness_sums_*() numbers.
  void* change;  // [batch, shape]
  double* sums;
  // Backward on CUDA: scratch in T.
  void* columns;  // [batch, 9, shape]
};

// How many numbers `sums` needs.
int64_t smoothness_sums_cpu(const JacobianArgs& args);
int64_t smoothness_sums_cuda(const JacobianArgs& args);

// The logarithm of the Jacobian determinant of each voxel, and its gradient.
void log_jacobian_forward_cpu(const JacobianArgs& args, const Parallel& parallel);
void log_jacobian_backward_cpu(const JacobianArgs& args, const Parallel& parallel);
const char* log_jacobian_forward_cuda(const JacobianArgs& args, void* stream);
const char* log_jacobian_backward_cuda(const JacobianArgs& args, void* stream);

// The Jacobian determinant of each voxel.
void jacobian_determinant_cpu(const JacobianArgs& args, const Parallel& parallel);
const char* jacobian_determinant_cuda(const JacobianArgs& args, void* stream);

// The smoothness loss of each batch item, and its gradient.
void smoothness_forward_cpu(const JacobianArgs& args, const Parallel& parallel);
void smoothness_backward_cpu(const JacobianArgs& args, const Parallel& parallel);
const char* smoothness_forward_cuda(const JacobianArgs& args, void* stream);
const char* smoothness_backward_cuda(const JacobianArgs& args, void* stream);

// ---- edge_difference (section 5.1.5) ------------------------------------------------------------

struct EdgesArgs {
  // The type of moving, fixed, mask, value and the gradients.
  Scalar scalar;
  int64_t batch, channels;
  Shape3 shape;
  const void* moving;  // [batch, channels, shape]
  const void* fixed;   // [batch, channels, shape]
  const void* mask;    // [batch, 1, shape], or null
  // EdgeStatistics of edges.h, written by the forward pass and read by the backward pass.
  double* statistics;  // [batch, 3]
  // Forward: scratch of edges_sums_*() numbers.
  double* sums;
  void* value;       // [batch]
  const void* grad;  // [batch]
  // Null if they are not needed.
  void* grad_moving;  // [batch, channels, shape]
  void* grad_fixed;   // [batch, channels, shape]
  // Backward on CUDA: scratch in T.
  void* slopes;  // [batch, channels, 3, shape]
  int64_t items() const { return batch * channels; }
};

// How many numbers `sums` needs.
int64_t edges_sums_cpu(const EdgesArgs& args);
int64_t edges_sums_cuda(const EdgesArgs& args);

// The relative difference of the edges of each batch item, and its gradients; all deterministic.
void edges_forward_cpu(const EdgesArgs& args, const Parallel& parallel);
void edges_backward_cpu(const EdgesArgs& args, const Parallel& parallel);
const char* edges_forward_cuda(const EdgesArgs& args, void* stream);
const char* edges_backward_cuda(const EdgesArgs& args, void* stream);

// ---- piecewise_linear ---------------------------------------------------------------------------

// As MOST_KNOTS in deepatlas_ops/piecewise.py.
constexpr int kMostKnots = 33;
constexpr int kMostSegments = kMostKnots - 1;

// y = value[i] + slope[i] * (x - knot[i]), where knot i is the last one below x, or the first one
// if there is none below x.
struct PiecewiseArgs {
  // The type of source, grad and target.
  Scalar scalar;
  // The number of elements.
  int64_t count;
  int segments;
  double knot[kMostSegments], value[kMostSegments], slope[kMostSegments];
  const void* source;
  // Backward: the gradient of y.
  const void* grad;
  // Forward the values y, backward the gradient of the source.
  void* target;
};

// The value of the curve at each element, and its gradient.
void piecewise_forward_cpu(const PiecewiseArgs& args, const Parallel& parallel);
void piecewise_backward_cpu(const PiecewiseArgs& args, const Parallel& parallel);
const char* piecewise_forward_cuda(const PiecewiseArgs& args, void* stream);
const char* piecewise_backward_cuda(const PiecewiseArgs& args, void* stream);

// ---- implicit_warp (section 5.1.1, eqs 5-7) -----------------------------------------------------

struct InvertArgs {
  // The type of moving and fixed. Everything else is in T.
  Scalar scalar;
  int64_t batch;
  // The shapes of the moving and of the fixed map.
  Shape3 in, out;
  int iterations;
  // Take Newton steps.
  bool newton;
  // In voxels of the moving grid; 0 runs all iterations.
  double tolerance;
  const void* moving;  // [batch, 3, in]
  // The implicit gradient does not need it.
  const void* fixed;  // [batch, 3, out]
  // The step matrix.
  const void* matrix;  // [batch, 3, 3]
  // From what the recursion leaves to coordinates of the moving grid; null for the identity.
  const void* ruler;  // [batch, 3, 3]
  // Scratch for the packed map.
  void* packed;  // [batch, invert::packed_shape(in), 4]
  // u - identity in normalised coordinates of the moving grid. The implicit gradient reads it.
  void* displacement;  // [batch, 3, out]
  // What remains of fixed - moving(u), in voxels of the moving grid.
  void* residual;  // [batch, out]
  // Whether |u| <= 1 and the residual is below 1. The implicit gradient reads it.
  bool* valid;  // [batch, out]
  // The gradient of displacement.
  const void* grad;  // [batch, 3, out]
  // The caller must set it to 0 for CUDA, where it is accumulated by atomic additions. The implicit
  // gradient accepts null if it is not needed.
  void* grad_moving;  // [batch, 3, in]
  void* grad_fixed;   // [batch, 3, out]
  // Scratch of the unrolled gradient on the CPU.
  void* scattered;  // like packed
  // Parts of the unrolled gradient of the matrix, to be summed by the caller over the lines (rows
  // on the CPU, columns on CUDA) of the moving and of the fixed map.
  void* partial_moving;  // [batch, in.d * in.h, 9]; CUDA: [batch, in.d * in.w, 9]
  void* partial_fixed;   // [batch, out.d * out.h, 9]; CUDA: [batch, out.d * out.w, 9]
};

// Solves moving(u) = fixed for u.
void invert_forward_cpu(const InvertArgs& args, const Parallel& parallel);
const char* invert_forward_cuda(const InvertArgs& args, void* stream);

// The gradients of the solution by the implicit function theorem.
void invert_implicit_cpu(const InvertArgs& args, const Parallel& parallel);
const char* invert_implicit_cuda(const InvertArgs& args, void* stream);

// The gradients of the maps and of the matrix by reversing every iteration. Not for Newton steps.
void invert_unrolled_cpu(const InvertArgs& args, const Parallel& parallel);
const char* invert_unrolled_cuda(const InvertArgs& args, void* stream);

// ---- group_norm_leaky_relu ----------------------------------------------------------------------

// On the CPU alone. T is the accumulate type; sums over voxels are float64.
struct NormArgs {
  Scalar scalar;
  int64_t batch, channels, groups, voxels;
  // Whether the channels of a voxel lie beside each other, [batch, voxels, channels], or apart,
  // [batch, channels, voxels].
  bool beside;
  double slope, eps;
  const void* source;
  const void* weight;  // [batch, channels] in T
  const void* bias;    // [batch, channels] in T
  void* target;        // like source
  // The mean and the reciprocal standard deviation of every group. The forward pass writes them.
  double* statistics;  // [batch, groups, 2]
  // Backward only: the gradient of the result, and the gradients of source (or null if it is not
  // needed), weight and bias.
  const void* grad;   // like source
  void* grad_source;  // like source
  void* grad_weight;  // [batch, channels] in T
  void* grad_bias;    // [batch, channels] in T
};

// Group normalisation, an affine map of every channel, and a leaky ReLU.
void norm_forward_cpu(const NormArgs& args, const Parallel& parallel);
void norm_backward_cpu(const NormArgs& args, const Parallel& parallel);

}  // namespace deepatlas
