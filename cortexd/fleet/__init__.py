"""The fleet process: polls nodes, owns the snapshot, pushes it to the workers."""
