"""cortexctl: the operator's hands. Never imports torch, transformers or numpy."""
