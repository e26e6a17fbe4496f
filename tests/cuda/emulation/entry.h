// What the libraries of the emulated operators share: each is one kernel file behind C functions that Python can call.
// A function returns null, or what the emulation has to complain about.
#pragma once

#include <cstring>
#include <vector>

#include "runtime_emulation.h"

extern "C" void reset(unsigned seed, int multiprocessors, int clusters, int cooperative, int architecture,
                      unsigned blocks_at_once) {
  emulation::reset(seed);
  emulation::use_device({multiprocessors, clusters != 0, cooperative != 0, architecture, blocks_at_once});
}

// Since the last reset
extern "C" unsigned launches() { return emulation::launches(); }

// The launchers may assume nothing about what is in their workspace, so it is full of NaNs, of all bits.
class Workspace {
 public:
  explicit Workspace(int64_t doubles) : values_(static_cast<size_t>(doubles)) {
    if (!values_.empty()) std::memset(values_.data(), 0xff, values_.size() * sizeof(double));
  }
  double* data() const { return const_cast<double*>(values_.data()); }

 private:
  std::vector<double> values_;
};
