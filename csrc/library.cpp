// The library pspfast. Every op adds itself to it in <op>.cpp.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(pspfast, m) {}
