// csrc/on_device.hpp for a CPU: the binding's operators take tensors there, under a name of their own.
#pragma once

#include <torch/csrc/stable/tensor.h>

#define ZOO_OPERATORS zoo_on_shim
#define ZOO_DEVICE CPU
#define ZOO_PLACE "on the CPU"

namespace {

bool in_place(const torch::stable::Tensor& x) { return x.is_cpu(); }

struct OnDevice {
    int error = 0;

    explicit OnDevice(const torch::stable::Tensor&) {}
};

}  // namespace
