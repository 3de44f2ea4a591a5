"""Where trials run: in this process, or on Ray. Both drive the same trial and the same driver."""
