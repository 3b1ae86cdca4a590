"""What kernels ask of L2 and of DRAM, counted on the emulation and in Triton's interpreter."""
