"""`make gpu-check`: compare predicted and measured memory on this machine's GPUs, and measure speed."""
