// The Python module ddfast._C: says how it was built. Importing it registers the kernels.
#include <pybind11/pybind11.h>
#include <torch/version.h>

#include "common/arena.h"
#include "common/simd.h"
#include "convnet/first_block.h"

// Read from the file's bytes where the module cannot be loaded (ddfast/ops/_library.py); used below, so that it is
// kept.
static const char kBuiltFor[] = "ddfast was built for torch " TORCH_VERSION " ";

#ifdef __clang__
static const char kCompiler[] = "Clang " __clang_version__;
#else
static const char kCompiler[] = "GCC " __VERSION__;
#endif

PYBIND11_MODULE(_C, m) {
  m.def("release_memory", &ddfast::release_memory);
  m.def("first_block_parts", &ddfast::first_block_parts);
  m.def("build_info", [] {
    pybind11::dict info;
    info["torch"] = TORCH_VERSION;
    info["compiler"] = kCompiler;
    info["cuda"] = pybind11::none();
    info["cuda_architectures"] = pybind11::none();
#ifdef DDFAST_CUDA_VERSION
    info["cuda"] = DDFAST_CUDA_VERSION;
    info["cuda_architectures"] = DDFAST_CUDA_ARCHITECTURES;
#endif
    info["instructions"] = ddfast::name_of(ddfast::used_instruction_set());
    info["marker"] = kBuiltFor;
    return info;
  });
}
