// The Python module ddfast._C: says how it was built. Importing it registers the kernels.
//
// Written in Python's limited API, without pybind11: one binary serves every Python from 3.10 on.
#include <Python.h>
#include <torch/version.h>

#include "common/arena.h"
#include "common/simd.h"
#include "convnet/first_block.h"

namespace {

// Read from the file's bytes where the module cannot be loaded (ddfast/ops/_extension.py); used below, so that it is
// kept.
const char kBuiltFor[] = "ddfast was built for torch " TORCH_VERSION " ";

#ifdef __clang__
const char kCompiler[] = "Clang " __clang_version__;
#else
const char kCompiler[] = "GCC " __VERSION__;
#endif

#ifdef DDFAST_CUDA_VERSION
const char* const kCuda = DDFAST_CUDA_VERSION;
const char* const kCudaArchitectures = DDFAST_CUDA_ARCHITECTURES;
#else
const char* const kCuda = nullptr;  // None in Python
const char* const kCudaArchitectures = nullptr;
#endif

PyObject* release_memory(PyObject*, PyObject*) {
  ddfast::release_memory();
  Py_RETURN_NONE;
}

PyObject* first_block_parts(PyObject*, PyObject* args) {
  long long images, inputs, outputs;
  if (!PyArg_ParseTuple(args, "LLL:first_block_parts", &images, &inputs, &outputs)) return nullptr;
  return PyLong_FromLongLong(ddfast::first_block_parts(images, inputs, outputs));
}

PyObject* build_info(PyObject*, PyObject*) {
  return Py_BuildValue("{s:s, s:s, s:z, s:z, s:s, s:s}", "torch", TORCH_VERSION, "compiler", kCompiler, "cuda", kCuda,
                       "cuda_architectures", kCudaArchitectures, "instructions",
                       ddfast::name_of(ddfast::used_instruction_set()), "marker", kBuiltFor);
}

PyMethodDef methods[] = {
    {"release_memory", release_memory, METH_NOARGS, nullptr},
    {"first_block_parts", first_block_parts, METH_VARARGS, nullptr},
    {"build_info", build_info, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
