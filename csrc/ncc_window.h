// Windowed correlation on the CPU (ncc_window.cpp), for float64, float32, float16 and bfloat16.
#pragma once

#include "kernels.h"

namespace deepatlas {
namespace ncc {

// From args.moments to args.value.
template <class S>
void window_forward(const NccArgs& args, const Parallel& parallel);

// From args.moments and args.grad to args.grad_a and args.grad_b.
template <class S>
void window_backward(const NccArgs& args, const Parallel& parallel);

}  // namespace ncc
}  // namespace deepatlas
