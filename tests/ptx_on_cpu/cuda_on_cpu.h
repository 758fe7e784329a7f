// CUDA's runtime for tests without a GPU: csrc/cuda/launch.cuh includes this in place of its own launch_kernel. Host
// code and boundary are compiled as ever; a kernel that they launch is told to Python (cuda.py), which runs its PTX,
// and so is the memory that they ask torch for. What else the boundary asks of CUDA through torch is answered here: our
// linker takes these functions before libtorch's.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

extern "C" const char __ehdr_start __attribute__((visibility("hidden")));  // where this library begins in memory

namespace lightkernels::cuda_on_cpu {

struct Launch {     // _Launch in cuda.py
  uint64_t kernel;  // its address in the library's table of symbols
  uint32_t grid[3], block[3];
  uint64_t shared;  // dynamic, in bytes
  uint64_t count;
  const void* const* args;
  const uint64_t* sizes;  // of args, in bytes
};

// Both return 0, or 1 when Python raised: then the text of that is in `error`.
inline int (*on_launch)(const Launch*) = nullptr;
inline int (*on_allocation)(void* data, int64_t bytes, int64_t itemsize) = nullptr;
inline std::string error;

inline int guards = 0;                 // torch's device guards that are alive
inline void* const kStream = &guards;  // torch's current stream: any address of its own

inline void check(int failed) {
  if (failed) throw std::runtime_error(error);
}

}  // namespace lightkernels::cuda_on_cpu

namespace lightkernels::cuda {

template <class... Params>
void launch_kernel(void (*kernel)(Params...), dim3 grid, dim3 block, size_t smem, void* stream, const Params&... args) {
  namespace here = lightkernels::cuda_on_cpu;
  if (!here::on_launch) throw std::runtime_error("a kernel is launched outside of ptx_on_cpu.cuda.device()");
  if (stream != here::kStream) throw std::runtime_error("a kernel is launched on another stream than torch's");
  if (here::guards < 1) throw std::runtime_error("a kernel is launched while no device guard is held");
  const void* const addresses[] = {&args...};
  const uint64_t sizes[] = {sizeof(Params)...};
  const here::Launch launch{reinterpret_cast<uint64_t>(kernel) - reinterpret_cast<uint64_t>(&__ehdr_start),
                            {grid.x, grid.y, grid.z},
                            {block.x, block.y, block.z},
                            smem,
                            sizeof...(Params),
                            addresses,
                            sizes};
  here::check(here::on_launch(&launch));
}

}  // namespace lightkernels::cuda

// --- for cuda.py -----------------------------------------------------------------------------------------------------
#define LIGHTKERNELS_FOR_PYTHON extern "C" __attribute__((used, visibility("default"))) inline

LIGHTKERNELS_FOR_PYTHON void cuda_on_cpu_set(int (*on_launch)(const lightkernels::cuda_on_cpu::Launch*),
                                             int (*on_allocation)(void*, int64_t, int64_t)) {
  lightkernels::cuda_on_cpu::on_launch = on_launch;
  lightkernels::cuda_on_cpu::on_allocation = on_allocation;
}

LIGHTKERNELS_FOR_PYTHON void cuda_on_cpu_error(const char* text) { lightkernels::cuda_on_cpu::error = text; }

#undef LIGHTKERNELS_FOR_PYTHON

// --- for the boundary ------------------------------------------------------------------------------------------------
// torch's C interface, whose headers kernels never see: handles are pointers, and 0 is success.
#define LIGHTKERNELS_FOR_BOUNDARY extern "C" __attribute__((used, visibility("hidden"))) inline

extern "C" int32_t aoti_torch_get_data_ptr(void* tensor, void** data);
extern "C" int32_t aoti_torch_get_storage_size(void* tensor, int64_t* bytes);
extern "C" size_t aoti_torch_dtype_element_size(int32_t dtype);
extern "C" int32_t __real_aoti_torch_empty_strided(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t,
                                                   void**);

// Linked with --wrap: this is what the boundary calls, __real_ is torch's.
LIGHTKERNELS_FOR_BOUNDARY int32_t __wrap_aoti_torch_empty_strided(int64_t dim, const int64_t* sizes,
                                                                  const int64_t* strides, int32_t dtype, int32_t device,
                                                                  int32_t index, void** tensor) {
  namespace here = lightkernels::cuda_on_cpu;
  void* data;
  int64_t bytes;
  if (int32_t failed = __real_aoti_torch_empty_strided(dim, sizes, strides, dtype, device, index, tensor))
    return failed;
  if (int32_t failed = aoti_torch_get_data_ptr(*tensor, &data)) return failed;
  if (int32_t failed = aoti_torch_get_storage_size(*tensor, &bytes)) return failed;
  if (here::on_allocation) {
    here::check(here::on_allocation(data, bytes, static_cast<int64_t>(aoti_torch_dtype_element_size(dtype))));
  }
  return 0;
}

LIGHTKERNELS_FOR_BOUNDARY int32_t aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = lightkernels::cuda_on_cpu::kStream;
  return 0;
}

LIGHTKERNELS_FOR_BOUNDARY int32_t aoti_torch_create_device_guard(int32_t, void** guard) {
  *guard = &++lightkernels::cuda_on_cpu::guards;
  return 0;
}

LIGHTKERNELS_FOR_BOUNDARY int32_t aoti_torch_delete_device_guard(void*) {
  --lightkernels::cuda_on_cpu::guards;
  return 0;
}

#undef LIGHTKERNELS_FOR_BOUNDARY
