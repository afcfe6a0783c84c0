"""Laws of loss: fit them, trust them, decide with them."""
