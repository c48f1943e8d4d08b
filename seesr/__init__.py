"""SeeSR on SD-Turbo: upscale real photographs in 1 to 4 steps."""
