"""What draws scenes with several people: compositing, or a diffusion model held to a strict face filter."""
