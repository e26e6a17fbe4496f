// What the libraries of the emulated operators share: each is one kernel file behind C functions that Python can call.
// A function returns null, or what the emulation has to complain about.
#pragma once

extern "C" void reset(unsigned seed) { emulation::reset(seed); }

// The launchers may assume nothing about what is in their workspace, so it is full of NaNs.
class Workspace {
 public:
  explicit Workspace(int64_t doubles) : bytes_(static_cast<size_t>(doubles) * sizeof(double), 0xff) {}
  void* data() const { return const_cast<unsigned char*>(bytes_.data()); }

 private:
  std::vector<unsigned char> bytes_;
};
