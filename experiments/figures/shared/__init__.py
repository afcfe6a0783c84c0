"""What the loop's own parts promise: models, data, devices."""
