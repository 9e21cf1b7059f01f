"""OmniGen2, the second base of UMO's paper: its network, LoRA names and adapter."""
