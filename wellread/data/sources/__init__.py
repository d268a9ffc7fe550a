"""Where rows and documents come from: files, sets of the hub, text that is made up, Megatron sets."""
