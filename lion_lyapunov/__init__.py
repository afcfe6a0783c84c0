"""Lion-kappa optimizers for optax and the Lyapunov functions that explain them."""
