"""From a program to an `AimModule`, and how that behaves."""
