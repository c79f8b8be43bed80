// Correlation within windows on the CPU (ncc_window.cpp), for float64, float32, float16 and
// bfloat16.
#pragma once

#include "kernels.h"

namespace deepatlas {
namespace ncc {

// Computes args.value from args.moments.
template <class S>
void window_forward(const NccArgs& args, const Parallel& parallel);

// Computes args.grad_a and args.grad_b, if they are needed, from args.moments and args.grad.
template <class S>
void window_backward(const NccArgs& args, const Parallel& parallel);

}  // namespace ncc
}  // namespace deepatlas
