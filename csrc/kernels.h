// Launchers of every kernel: raw contiguous pointers and sizes, no torch type.
#pragma once

#include <cstdint>

#include "interpolate.h"
#include "launch.h"

namespace deepatlas {

// Where the samples of `resample`, `warp` and `affine_resample` come from.
enum class Source : int { kCoords, kDisplacement, kAffine };

struct SampleArgs {
  Scalar scalar;  // of volume, coords, output and grad
  Source source;
  int mode, padding;
  int64_t batch, channels;
  Shape3 in, out;
  const void* volume;  // [batch, channels, in]
  const void* coords;  // [batch, 3, out]; affine: theta [batch, 3, 4] in the accumulate type
  void* output;        // forward: [batch, channels, out]
  const void* grad;    // backward: [batch, channels, out]
  void* grad_volume;   // backward: [batch, channels, in], accumulate type, zeroed by the caller for
                       // CUDA and by the CPU kernel itself; null: not wanted
  void* grad_coords;   // backward: [batch, 3, out], by normalised coordinates; scalar type, affine:
                       // accumulate type; null: not wanted
};

struct ResizeArgs {
  Scalar scalar;
  int64_t items;  // batch * channels
  Shape3 in, out;
  const void* source;  // forward: [items, in]; backward: gradient [items, out]
  void* target;        // forward: [items, out]; backward: gradient [items, in]
};

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

void sample_forward_cpu(const SampleArgs& args, const Parallel& parallel);
void sample_backward_cpu(const SampleArgs& args, const Parallel& parallel);
void resize_forward_cpu(const ResizeArgs& args, const Parallel& parallel);
void resize_backward_cpu(const ResizeArgs& args, const Parallel& parallel);

// The CUDA launchers queue on `stream` (a cudaStream_t) and return null, or the text of the launch
// error.
const char* sample_forward_cuda(const SampleArgs& args, void* stream);
const char* sample_backward_cuda(const SampleArgs& args, void* stream);
const char* resize_forward_cuda(const ResizeArgs& args, void* stream);
const char* resize_backward_cuda(const ResizeArgs& args, void* stream);

// ---- ncc ----------------------------------------------------------------------------------------

struct NccArgs {
  Scalar scalar;  // of a, b, mask, value and the gradients
  int64_t batch, channels;
  Shape3 shape;
  int64_t window;  // 0: over the whole volume; else odd
  double eps;
  const void* a;      // [batch, channels, shape]
  const void* b;      // [batch, channels, shape]
  const void* mask;   // [batch, 1, shape], or null
  double* moments;    // [batch, channels, 6], see ncc.h: written forward, read backward
  void* value;        // forward: [batch, channels]
  const void* grad;   // backward: [batch, channels]
  void* grad_a;       // backward: [batch, channels, shape]; null: not wanted
  void* grad_b;       // backward: the same
  double* workspace;  // CUDA: ncc_workspace(args) values
  // CUDA: how many of them a group of channels may take (256 MB), if it is more than one channel
  int64_t group_values = int64_t(1) << 25;
  int64_t items() const { return batch * channels; }
};

void ncc_forward_cpu(const NccArgs& args, const Parallel& parallel);
void ncc_backward_cpu(const NccArgs& args, const Parallel& parallel);
int64_t ncc_workspace_cuda(const NccArgs& args);  // for both directions
const char* ncc_forward_cuda(const NccArgs& args, void* stream);
const char* ncc_backward_cuda(const NccArgs& args, void* stream);

// ---- Jacobians ----------------------------------------------------------------------------------

struct JacobianArgs {
  Scalar scalar;  // of field, weight, grad, output and grad_field
  int64_t batch;
  Shape3 shape;
  const void* field;   // [batch, 3, shape], absolute coordinates
  const void* weight;  // smoothness: [batch, shape]; null: all alike
  bool normalize;      // log_jacobian: columns over their lengths
  bool logarithm;      // smoothness: second term on the logarithm
  bool digital;        // determinant: the least of forward and backward differences
  double eps;          // log_jacobian
  double delta;        // smoothness
  void* output;        // log_jacobian: [batch, shape]; determinant: the same, accumulate type;
                       // smoothness: [batch]
  const void* grad;    // backward: like the output
  void* grad_field;    // backward: [batch, 3, shape]
  double* statistics;  // smoothness: [batch, 3], written by forward and read by backward
  void* change;        // smoothness forward: scratch [batch, shape], accumulate type
  double* sums;        // smoothness forward: scratch of smoothness_sums() numbers
  void* columns;       // backward on CUDA: scratch [batch, 9, shape], accumulate type
};

// Partial sums of smoothness_loss: one set a plane on the CPU, one a thread on CUDA.
int64_t smoothness_sums_cpu(const JacobianArgs& args);
int64_t smoothness_sums_cuda(const JacobianArgs& args);

void log_jacobian_forward_cpu(const JacobianArgs& args, const Parallel& parallel);
void log_jacobian_backward_cpu(const JacobianArgs& args, const Parallel& parallel);
void jacobian_determinant_cpu(const JacobianArgs& args, const Parallel& parallel);
void smoothness_forward_cpu(const JacobianArgs& args, const Parallel& parallel);
void smoothness_backward_cpu(const JacobianArgs& args, const Parallel& parallel);
const char* log_jacobian_forward_cuda(const JacobianArgs& args, void* stream);
const char* log_jacobian_backward_cuda(const JacobianArgs& args, void* stream);
const char* jacobian_determinant_cuda(const JacobianArgs& args, void* stream);
const char* smoothness_forward_cuda(const JacobianArgs& args, void* stream);
const char* smoothness_backward_cuda(const JacobianArgs& args, void* stream);

// ---- edge_difference ----------------------------------------------------------------------------

struct EdgesArgs {
  Scalar scalar;  // of the images, mask, value, grad and the gradients
  int64_t batch, channels;
  Shape3 shape;
  const void* moving;  // [batch, channels, shape]
  const void* fixed;   // [batch, channels, shape]
  const void* mask;    // [batch, 1, shape]; null: all alike
  double* statistics;  // [batch, 3], see edges.h: written by forward and read by backward
  double* sums;        // forward: scratch of edges_sums() numbers
  void* value;         // forward: [batch]
  const void* grad;    // backward: [batch]
  void* grad_moving;   // backward: [batch, channels, shape]; null: not wanted
  void* grad_fixed;    // backward: the same
  void* slopes;        // backward on CUDA: scratch [batch, channels, 3, shape], accumulate type
  int64_t items() const { return batch * channels; }
};

int64_t edges_sums_cpu(const EdgesArgs& args);
int64_t edges_sums_cuda(const EdgesArgs& args);
void edges_forward_cpu(const EdgesArgs& args, const Parallel& parallel);
void edges_backward_cpu(const EdgesArgs& args, const Parallel& parallel);
const char* edges_forward_cuda(const EdgesArgs& args, void* stream);
const char* edges_backward_cuda(const EdgesArgs& args, void* stream);

// ---- piecewise_linear ---------------------------------------------------------------------------

constexpr int kMostKnots = 32;

// y = value[i] + slope[i] (x - knot[i]) with the last knot i below x, the first one if there is
// none.
struct PiecewiseArgs {
  Scalar scalar;  // of source, grad and target
  int64_t count;  // elements
  int segments;
  double knot[kMostKnots], value[kMostKnots], slope[kMostKnots];
  const void* source;
  const void* grad;  // backward
  void* target;      // forward: the values; backward: the gradient by the source
};

void piecewise_forward_cpu(const PiecewiseArgs& args, const Parallel& parallel);
void piecewise_backward_cpu(const PiecewiseArgs& args, const Parallel& parallel);
const char* piecewise_forward_cuda(const PiecewiseArgs& args, void* stream);
const char* piecewise_backward_cuda(const PiecewiseArgs& args, void* stream);

// ---- implicit_warp ------------------------------------------------------------------------------

// T is the accumulate type of `scalar`.
struct InvertArgs {
  Scalar scalar;  // of moving and fixed
  int64_t batch;
  Shape3 in, out;  // the moving and the fixed grid
  int iterations;
  bool newton;
  double tolerance;    // voxels of the moving grid; 0: no early exit
  const void* moving;  // [batch, 3, in]
  const void* fixed;   // [batch, 3, out]; not used by the implicit gradient
  const void* matrix;  // T [batch, 3, 3], the step matrix
  const void* ruler;   // T [batch, 3, 3], from what is left to moving coordinates; null: identity
  void* packed;        // T [batch, invert::packed_shape(in), 4], scratch
  void* displacement;  // T [batch, 3, out]; read by the implicit gradient
  void* residual;      // T [batch, out]
  bool* valid;         // [batch, out]; read by the implicit gradient
  const void* grad;    // T [batch, 3, out], of displacement
  void* grad_moving;  // T [batch, 3, in], zeroed by the caller for CUDA; implicit: null: not wanted
  void* grad_fixed;   // T [batch, 3, out]
  void* scattered;    // as packed, scratch of the unrolled gradient on the CPU
  void* partial_moving;  // T [batch, in.d * in.h, 9] (CUDA: in.d * in.w) and
  void* partial_fixed;   // the same of out: parts of the unrolled gradient by matrix
};

void invert_forward_cpu(const InvertArgs& args, const Parallel& parallel);
void invert_implicit_cpu(const InvertArgs& args, const Parallel& parallel);
void invert_unrolled_cpu(const InvertArgs& args, const Parallel& parallel);
const char* invert_forward_cuda(const InvertArgs& args, void* stream);
const char* invert_implicit_cuda(const InvertArgs& args, void* stream);
const char* invert_unrolled_cuda(const InvertArgs& args, void* stream);

}  // namespace deepatlas
