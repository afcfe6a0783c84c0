"""The ten figures of Lion-K: constraints, Lyapunov functions, spectra and votes."""
