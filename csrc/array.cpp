// The kernels for NumPy arrays, as a Python module. This file is the only one that includes
// pybind11, and it includes no PyTorch. deepatlas_ops/array/ checks the arguments and words the
// errors; the checks here keep a wrong call from reading or writing outside of an array.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "array_threads.h"
#include "invert.h"
#include "ncc.h"

namespace py = pybind11;

namespace deepatlas {
namespace {

using Sizes = std::vector<py::ssize_t>;

// ---- arrays -------------------------------------------------------------------------------------

[[noreturn]] void refuse(const char* name, const char* expected) {
  throw std::invalid_argument(std::string(name) + ": expected " + expected);
}

Scalar scalar_of(const py::array& a, const char* name) {
  if (py::isinstance<py::array_t<double>>(a)) return Scalar::kFloat64;
  if (py::isinstance<py::array_t<float>>(a)) return Scalar::kFloat32;
  refuse(name, "float64 or float32 in the byte order of the machine");
}

py::dtype dtype_of(Scalar scalar) {
  return scalar == Scalar::kFloat64 ? py::dtype::of<double>() : py::dtype::of<float>();
}

py::array empty(Scalar scalar, const Sizes& sizes) { return py::array(dtype_of(scalar), sizes); }

// An array that the kernels can read: its memory is in the order of its indices.
const py::array& readable(const py::array& a, const char* name, Scalar scalar, int64_t rank) {
  constexpr int wanted = py::array::c_style | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
  if ((a.flags() & wanted) != wanted) refuse(name, "an aligned array in C order");
  if (scalar_of(a, name) != scalar) refuse(name, "the dtype of the first array");
  if (a.ndim() != rank) refuse(name, "another number of axes");
  for (py::ssize_t i = 0; i < rank; ++i) {
    if (a.shape(i) > kLongestAxis) refuse(name, "at most 2^24 voxels on each axis");
  }
  return a;
}

void require_sizes(const py::array& a, const char* name, const Sizes& sizes) {
  if (!std::equal(sizes.begin(), sizes.end(), a.shape(), a.shape() + a.ndim())) {
    refuse(name, "another shape");
  }
}

Shape3 shape_of(const py::array& a) {
  return {int32_t(a.shape(2)), int32_t(a.shape(3)), int32_t(a.shape(4))};
}

// [B, C, D, H, W] with voxels to read from.
Shape3 grid_of(const py::array& a, const char* name, Scalar scalar, int64_t channels = -1) {
  readable(a, name, scalar, 5);
  if (channels >= 0 && a.shape(1) != channels) refuse(name, "another number of channels");
  const Shape3 shape = shape_of(a);
  if (shape.voxels() == 0) refuse(name, "at least one voxel on each axis");
  return shape;
}

Sizes sizes_of(const py::array& like, int64_t channels, const Shape3& s) {
  return {like.shape(0), py::ssize_t(channels), s.d, s.h, s.w};
}

// Calls a kernel without the lock of Python.
template <class Args>
void launch(void (*kernel)(const Args&, const Parallel&), const Args& args) {
  const py::gil_scoped_release release;
  kernel(args, threads::parallel());
}

// ---- the kernels --------------------------------------------------------------------------------

py::array sample(bool displacement, const py::array& volume, const py::array& field, int mode,
                 int padding) {
  SampleArgs a{};
  a.scalar = scalar_of(volume, "volume");
  a.source = displacement ? Source::kDisplacement : Source::kCoords;
  a.in = grid_of(volume, "volume", a.scalar);
  a.out = grid_of(field, "field", a.scalar, 3);
  a.batch = volume.shape(0);
  a.channels = volume.shape(1);
  if (field.shape(0) != a.batch) refuse("field", "the batch size of the volume");
  if (mode < kLinear || mode > kNearest) refuse("mode", "0 or 1");
  if (padding < kBorder || padding > kReflection) refuse("padding", "0, 1 or 2");
  a.mode = mode;
  a.padding = padding;
  py::array output = empty(a.scalar, sizes_of(volume, a.channels, a.out));
  if (output.size() == 0) return output;
  a.volume = volume.data();
  a.coords = field.data();
  a.output = output.mutable_data();
  launch(sample_forward_cpu, a);
  return output;
}

py::array resize(const py::array& volume, int64_t d, int64_t h, int64_t w) {
  ResizeArgs a{};
  a.scalar = scalar_of(volume, "volume");
  a.in = grid_of(volume, "volume", a.scalar);
  for (const int64_t n : {d, h, w}) {
    if (n < 1 || n > kLongestAxis) refuse("size", "1 to 2^24 voxels on each axis");
  }
  a.out = {int32_t(d), int32_t(h), int32_t(w)};
  a.items = volume.shape(0) * volume.shape(1);
  py::array output = empty(a.scalar, sizes_of(volume, volume.shape(1), a.out));
  if (output.size() == 0) return output;
  a.source = volume.data();
  a.target = output.mutable_data();
  launch(resize_forward_cpu, a);
  return output;
}

JacobianArgs jacobian_args(const py::array& field, const py::array& output, Scalar scalar) {
  JacobianArgs a{};
  a.scalar = scalar;
  a.batch = field.shape(0);
  a.shape = shape_of(field);
  a.field = field.data();
  a.output = const_cast<void*>(output.data());
  return a;
}

py::array log_jacobian(const py::array& field, bool normalize, double eps) {
  const Scalar scalar = scalar_of(field, "field");
  const Shape3 shape = grid_of(field, "field", scalar, 3);
  const py::array output = empty(scalar, sizes_of(field, 1, shape));
  if (output.size() == 0) return output;
  JacobianArgs a = jacobian_args(field, output, scalar);
  a.normalize = normalize;
  a.eps = eps;
  launch(log_jacobian_forward_cpu, a);
  return output;
}

py::array determinant(const py::array& field, bool digital) {
  const Scalar scalar = scalar_of(field, "field");
  const Shape3 shape = grid_of(field, "field", scalar, 3);
  const py::array output = empty(scalar, sizes_of(field, 1, shape));
  if (output.size() == 0) return output;
  JacobianArgs a = jacobian_args(field, output, scalar);
  a.digital = digital;
  launch(jacobian_determinant_cpu, a);
  return output;
}

py::array correlation(const py::array& x, const py::array& y,
                      const std::optional<py::array>& mask, int64_t window, double eps) {
  NccArgs a{};
  a.scalar = scalar_of(x, "a");
  a.shape = grid_of(x, "a", a.scalar);
  a.batch = x.shape(0);
  a.channels = x.shape(1);
  grid_of(y, "b", a.scalar);
  require_sizes(y, "b", sizes_of(x, a.channels, a.shape));
  if (mask) {
    grid_of(*mask, "mask", a.scalar);
    require_sizes(*mask, "mask", sizes_of(x, 1, a.shape));
    a.mask = mask->data();
  }
  if (window < 0 || (window > 0 && window % 2 == 0)) refuse("window", "0 or an odd number");
  py::array value = empty(a.scalar, {x.shape(0), x.shape(1)});
  if (value.size() == 0) return value;
  std::vector<double> moments(size_t(a.items()) * ncc::kMoments);
  a.window = window;
  a.eps = eps;
  a.a = x.data();
  a.b = y.data();
  a.moments = moments.data();
  a.value = value.mutable_data();
  launch(ncc_forward_cpu, a);
  return value;
}

// ---- implicit_warp ------------------------------------------------------------------------------

struct Free {
  void operator()(void* p) const { std::free(p); }
};

// Uninitialised memory, aligned for Packed.
std::unique_ptr<void, Free> scratch(int64_t bytes) {
  constexpr int64_t line = 64;
  void* p = std::aligned_alloc(line, pieces_of(bytes, line) * line);
  if (p == nullptr) throw std::bad_alloc();
  return std::unique_ptr<void, Free>(p);
}

py::tuple implicit_warp(const py::array& moving, const py::array& fixed, const py::array& matrix,
                        const std::optional<py::array>& ruler, int64_t iterations,
                        double tolerance, bool newton) {
  InvertArgs a{};
  a.scalar = scalar_of(moving, "c_moving");
  a.in = grid_of(moving, "c_moving", a.scalar, 3);
  a.out = grid_of(fixed, "c_fixed", a.scalar, 3);
  const int64_t batch = moving.shape(0);
  if (fixed.shape(0) != batch) refuse("c_fixed", "the batch size of c_moving");
  require_sizes(readable(matrix, "matrix", a.scalar, 3), "matrix", {moving.shape(0), 3, 3});
  if (ruler) {
    require_sizes(readable(*ruler, "ruler", a.scalar, 3), "ruler", {moving.shape(0), 3, 3});
  }
  if (iterations < 1 || iterations > INT32_MAX) refuse("iterations", "1 to 2^31 - 1");
  a.iterations = int(iterations);
  a.tolerance = tolerance;
  a.newton = newton;
  py::array displacement = empty(a.scalar, sizes_of(fixed, 3, a.out));
  py::array residual = empty(a.scalar, sizes_of(fixed, 1, a.out));
  py::array valid(py::dtype::of<bool>(), sizes_of(fixed, 1, a.out));
  if (batch == 0) return py::make_tuple(displacement, residual, valid);
  const int64_t bytes = a.scalar == Scalar::kFloat64 ? 8 : 4;
  const int64_t items = invert::together(a, batch, int64_t(4) << 20, 1);
  const auto packed = scratch(items * invert::packed_shape(a.in).voxels() * 4 * bytes);
  a.packed = packed.get();
  const auto at = [&](const py::array& array, int64_t b) {
    return static_cast<char*>(const_cast<void*>(array.data())) + array.nbytes() / batch * b;
  };
  for (int64_t b = 0; b < batch; b += items) {
    a.batch = std::min(items, batch - b);
    a.moving = at(moving, b);
    a.fixed = at(fixed, b);
    a.matrix = at(matrix, b);
    a.ruler = ruler ? at(*ruler, b) : nullptr;
    a.displacement = at(displacement, b);
    a.residual = at(residual, b);
    a.valid = reinterpret_cast<bool*>(at(valid, b));
    launch(invert_forward_cpu, a);
  }
  return py::make_tuple(displacement, residual, valid);
}

}  // namespace
}  // namespace deepatlas

PYBIND11_MODULE(deepatlas_ops_array, m) {
  using namespace deepatlas;
  threads::start();
  m.def("sample", &sample);
  m.def("resize", &resize);
  m.def("log_jacobian", &log_jacobian);
  m.def("determinant", &determinant);
  m.def("ncc", &correlation);
  m.def("implicit_warp", &implicit_warp);
  m.def("set_num_threads", [](int number) { threads::number = std::max(1, number); });
  m.def("get_num_threads", [] { return threads::number.load(); });
}
