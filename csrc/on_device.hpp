// Where the operators of binding_cuda.cpp run. The tests replace this file, and this file alone, to call them on a CPU.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>

#define ZOO_OPERATORS zoo
#define ZOO_DEVICE CUDA
#define ZOO_PLACE "on the GPU"

// Of the runtime that the kernels are linked with, which is not torch's.
extern "C" int cudaSetDevice(int device);

namespace {

bool in_place(const torch::stable::Tensor& x) { return x.is_cuda(); }

// While it lives, a tensor's device is current for torch, which allocates, and for the kernels' runtime.
struct OnDevice {
    torch::stable::accelerator::DeviceGuard guard;
    int error;

    explicit OnDevice(const torch::stable::Tensor& x)
        : guard(x.get_device_index()), error(cudaSetDevice(x.get_device_index())) {}
};

}  // namespace
