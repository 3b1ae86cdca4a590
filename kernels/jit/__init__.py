"""What runs on the GPU: functions that Triton compiles, without a launch."""
