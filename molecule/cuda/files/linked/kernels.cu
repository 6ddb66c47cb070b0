// Copyright (c) 2026, llamafleet contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

#include <cub/cub.cuh>
#include <cublas_v2.h>
#include <cuda.h>

static __global__ void twice(float *values) { values[threadIdx.x] *= 2; }

extern "C" int devices() {
    // Of cuda/iterator, which is not included here, as in trees of llama.cpp before ggml-org/llama.cpp#22936.
    auto offsets = cuda::make_strided_iterator(cuda::make_counting_iterator(0), 32);
    CUdevice device;
    cublasHandle_t handle;
    int count = 0;
    twice<<<1, offsets[1]>>>(nullptr);
    if (cuDeviceGet(&device, 0) != CUDA_SUCCESS || cublasCreate(&handle) != CUBLAS_STATUS_SUCCESS ||
        cudaGetDeviceCount(&count) != cudaSuccess) {
        return -1;
    }
    return count;
}
