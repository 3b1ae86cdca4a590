// What the libraries of upsample_argmax and upsample_softmax are given.
#pragma once

#include "../../csrc/upsample.h"

struct Problem {
  int64_t batch, classes, rows, cols, height, width, align_corners, channels_last, dtype;
};

inline pspfast::UpsampleParams make_params(const Problem& problem) {
  return {problem.batch,
          problem.classes,
          problem.rows,
          problem.cols,
          problem.height,
          problem.width,
          problem.align_corners != 0,
          problem.channels_last != 0,
          static_cast<pspfast::DType>(problem.dtype)};
}
