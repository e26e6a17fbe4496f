// What pybind11 binds: facts about the build, which are no tensor operators. Includes nothing of torch, whose own copy
// of pybind11 does not compile against the stable ABI.
#include <pybind11/pybind11.h>

#include "cpu/capability.h"

namespace py = pybind11;

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts about the build of hrrl_ext.";
  m.def("build_info", [] {
    py::dict info;
    info["compiler"] = HRRL_COMPILER;
    info["torch_target"] = HRRL_TORCH_TARGET;
    info["torch_headers"] = HRRL_TORCH_HEADERS;
    info["cuda"] = HRRL_CUDA_VERSION[0] ? py::object(py::str(HRRL_CUDA_VERSION)) : py::object(py::none());
    info["cuda_architectures"] = HRRL_CUDA_ARCHITECTURES;
    info["cpu_best"] = hrrl::cpu::name(hrrl::cpu::best_capability());
    info["cpu_in_use"] = hrrl::cpu::name(hrrl::cpu::capability());
    return info;
  });
}
