"""Scenes with several people: composited, or drawn by a diffusion model held to a strict face filter."""
