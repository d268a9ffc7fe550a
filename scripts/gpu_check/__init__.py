"""`make gpu-check`: predicted against measured memory on this machine's GPUs, and speed."""
