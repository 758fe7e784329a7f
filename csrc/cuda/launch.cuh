// Starting kernels: the one door, so that a test's runtime can stand where CUDA's does.
#pragma once

#ifdef LIGHTKERNELS_CUDA_ON_CPU
#include <cuda_on_cpu.h>  // the tests' stand-in: a launch_kernel that has Python run the kernel's PTX
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace lightkernels::cuda {

// Puts kernel(args...) on the stream. A refusal of the launch is an exception here; a fault while it runs is reported
// by a later call into CUDA, as everywhere.
template <class... Params>
void launch_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, void* stream, const Params&... args) {
  kernel<<<grid, block, smem, static_cast<cudaStream_t>(stream)>>>(args...);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    throw std::runtime_error(std::string("launch of a CUDA kernel failed: ") + cudaGetErrorString(error));
  }
}

}  // namespace lightkernels::cuda

#endif
