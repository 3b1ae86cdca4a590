// Element types of a kernel, without torch.
#pragma once

namespace pspfast {

enum class DType : int { kFloat32, kFloat16, kBFloat16, kFloat64 };

}  // namespace pspfast
